"""Tags of words as files write them, and the entities that they say."""

from collections.abc import Sequence
from dataclasses import dataclass

Span = tuple[int, int, str]
"""Start, end, and the type."""


def spans_of(tags: Sequence[str]) -> list[Span]:
    """Entities of a row of tags in IOB1, IOB2 or BIOES (or BILOU), in words; the rules are conlleval's.

    An entity begins at B- and S-, and at any tag of a type that the word before does not go on with; it ends before
    the next begins, at O, and after E- and S-. `L-` is E- and `U-` is S-.
    """
    found: list[Span] = []
    open_type = ""
    for i, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix == "O":
            open_type = ""
            continue
        if prefix in "BSU" or kind != open_type:
            found.append((i, i + 1, kind))
        else:
            found[-1] = (found[-1][0], i + 1, kind)
        open_type = "" if prefix in "ESLU" else kind
    return found


def tags_of(types: Sequence[str]) -> tuple[str, ...]:
    """The tags of a head for these types, in the order of its logits: O, then B- and I- of each type."""
    return ("O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


@dataclass(frozen=True)
class Reading:
    """What the tags of a published head say.

    Attributes:
        numbers: of each tag its number in `tags_of(keys)`; several tags may have the same.
        keys: what tags of one entity share.
        types: the type of entities that each key is shown as.
    """

    numbers: tuple[int, ...]
    keys: tuple[str, ...]
    types: tuple[str, ...]


def read_tags(tags: Sequence[str], join: bool = False) -> Reading:
    """How to read tags of any scheme.

    As in transformers' pipeline with `aggregation_strategy="first"`, a tag that begins with neither B- nor I- goes on
    after the same tag, and its type is what follows its first dash. So E-PER and S-PER are of the type PER, but each is
    an entity of its own.

    Args:
        join: read BIOES, BILOU and BMES as they are meant: S- and U- begin an entity as B- does, and E-, L- and M- go
            on with one as I- does.
    """
    opening, inside = ("BSU", "IELM") if join else ("B", "I")
    keys: dict[str, str] = {}
    numbers = []
    for tag in tags:
        prefix, dash, rest = tag.partition("-")
        known = bool(dash) and len(prefix) == 1 and prefix in opening + inside
        key = rest if known else tag
        if key == "O":
            numbers.append(0)
            continue
        keys.setdefault(key, rest if dash else tag)
        opens = known and prefix in opening
        numbers.append(2 + 2 * list(keys).index(key) - opens)
    return Reading(tuple(numbers), tuple(keys), tuple(keys.values()))


def order_of(reading: Reading) -> tuple[int, ...] | None:
    """The number of the tag that each of `tags_of(reading.keys)` has; None if these are not exactly the tags."""
    complete = sorted(reading.numbers) == list(range(len(tags_of(reading.keys)))) and reading.keys == reading.types
    return tuple(map(reading.numbers.index, sorted(reading.numbers))) if complete else None

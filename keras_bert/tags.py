"""Tags of words as files write them, and the entities that they say."""

from collections.abc import Sequence

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


def types_of(tags: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The types that a row of logits is for, and the number in `tags` of each tag of `tags_of`.

    The numbers are empty where the order is the same, and both are empty where `tags` are not exactly such tags.
    """
    types = tuple(dict.fromkeys(tag[2:] for tag in tags if tag[:2] in ("B-", "I-")))
    ours = tags_of(types)
    if sorted(ours) != sorted(tags) or "" in types:
        return (), ()
    return types, () if ours == tuple(tags) else tuple(tags.index(tag) for tag in ours)

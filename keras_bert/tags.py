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

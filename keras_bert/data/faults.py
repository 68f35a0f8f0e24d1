"""How files with labels of their own are read, and what happens to rows that are wrong."""

from collections.abc import Callable
from dataclasses import dataclass, field

from keras_bert.errors import DataError

Say = Callable[[str], None]

TABLES = (".csv", ".tsv")
"""Where texts alone can be read from."""

LISTED = 5


@dataclass
class Faults:
    """What is wrong with single rows of a file: counted, listed, and refused where it is too much.

    Args:
        say: gets the lines meant for people.
        share: rows with faults that are accepted.
    """

    say: Say
    share: float
    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, what: str, where: str) -> None:
        """Note a fault; `what` says it, and what was done, without the row."""
        self.found.setdefault(what, []).append(where)

    def report(self, path: str, rows: int) -> None:
        """Say what was found.

        Raises:
            DataError: there is too much of it, or nothing else.
        """
        count = sum(map(len, self.found.values()))
        for what, where in self.found.items():
            more = f" and {len(where) - LISTED} more" if len(where) > LISTED else ""
            self.say(f"warning: {path}: {what}: {', '.join(where[:LISTED])}{more}")
        if count > self.share * max(rows, 1):
            raise DataError(
                f"{path}: {count} faults in {rows} rows are more than {self.share:.0%}; mend the file, or accept them "
                "with --max_bad_share"
            )


@dataclass(frozen=True)
class Reading:
    """How files of entities and questions are read.

    Attributes:
        labelled: must there be labels?
        scheme: one of `SCHEMES`, for tags.
        max_bad_share: rows with faults that are accepted.
        say: gets the lines meant for people.
    """

    labelled: bool = True
    scheme: str = "auto"
    max_bad_share: float = 0.02
    say: Say = print

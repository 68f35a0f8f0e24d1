"""How a task's files become examples: `Source` is the form, and what a table with a label column needs.

A dataclass of `config.tasks` names its source. What can be read in one way only is read so; what is wrong with single
rows is counted and listed, and too much of it is an error.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from keras_bert.config import TASKS, DataConfig, HeadConfig, choose, resolve
from keras_bert.data.batches import Examples
from keras_bert.data.faults import TABLES, Reading, Say
from keras_bert.data.tables import Table, find, read
from keras_bert.text.wordpiece import WordPiece

MakeTokenizer = Callable[[], WordPiece]
"""Makes a tokenizer in plain Python that knows [MASK]; few sources need one."""


class Source:
    """The form of a source: rows of a table with the label in a column.

    Attributes:
        labels_optional: whether training may do without labels.
        stratified: whether labels are values whose shares are held equal when rows are held out.
    """

    labels_optional: ClassVar[bool] = False
    stratified: ClassVar[bool] = False

    def read(self, pattern: str | Path, data: DataConfig, how: Reading) -> Table:
        """The rows of one file or several, see `tables.find`; the columns are those of `data`.

        Raises:
            DataError: nothing matches, or a file cannot be read, is broken, or has too many faults.
        """
        return read(pattern, [*text_columns(data), *([data.label_column] if how.labelled else [])])

    def segments(self, table: Table, data: DataConfig) -> tuple[list[Any], ...]:
        """What the model reads of each row: texts, second texts, choices."""
        return tuple(table[name] for name in self.segment_columns(data))

    def segment_columns(self, data: DataConfig) -> list[str]:
        """The columns that the model reads, in the order of a row's segments."""
        return text_columns(data)

    def value(self, label: Any) -> Any:
        """A label as Python gives it, as it stands in a table."""
        return str(label)

    def find_labels(self, table: Table, data: DataConfig) -> tuple[str, ...]:
        """The label values of a table in the order of class ids; none if the task has none.

        Raises:
            DataError: they cannot be used.
        """
        return ()

    def with_labels(
        self, table: Table, data: DataConfig, config: HeadConfig, tokenizer: MakeTokenizer, longest: int, say: Say
    ) -> Table:
        """A table to evaluate on, with labels if it has none and they can be made.

        Args:
            longest: tokens of a row.
            say: gets the lines meant for people.
        """
        return table

    def check(self, table: Table, data: DataConfig, config: HeadConfig) -> None:
        """Raises DataError if a file of labelled rows does not suit the flags of a command."""

    def encode(self, table: Table, data: DataConfig, config: HeadConfig, tokenizer: MakeTokenizer) -> tuple[Any, Any]:
        """Labels and references of `Examples`.

        Raises:
            DataError: a label cannot be used; the file and line are named.
        """
        raise NotImplementedError(type(self).__name__)

    def examples(
        self,
        table: Table,
        data: DataConfig,
        config: HeadConfig,
        tokenizer: MakeTokenizer | None = None,
        labelled: bool = True,
    ) -> Examples:
        """The rows as examples; their labels are encoded here, and nowhere else.

        Raises:
            DataError: as `encode`.
        """
        segments = self.segments(table, data)
        if not labelled:
            return Examples(segments, table=table)
        labels, references = self.encode(table, data, config, tokenizer or no_tokenizer)
        return Examples(segments, labels, references, table)

    def groups(self, table: Table, data: DataConfig) -> list[str]:
        """What rows must not share with those they are judged by: their texts."""
        return joined(table, text_columns(data))

    def strata(self, table: Table, data: DataConfig) -> list[str]:
        """The label of each row if `stratified`, else one value for all."""
        return table[data.label_column] if self.stratified else [""] * len(table)


class FileSource(Source):
    """The form of a source with files of its own kinds, each read by `read_file`."""

    without_labels: ClassVar[tuple[str, ...]] = TABLES
    """Endings of files that are plain tables, as long as no labels are needed."""

    def read(self, pattern: str | Path, data: DataConfig, how: Reading) -> Table:
        files = find(pattern)
        if not how.labelled and {Path(path).suffix.lower() for path in files} <= set(self.without_labels):
            return super().read(pattern, data, how)
        found = [self.read_file(path, data, how) for path in files]
        names = [name for name in found[0].columns if all(name in table.columns for table in found)]
        merged = {name: [value for table in found for value in table[name]] for name in names}
        return Table(merged, [f for t in found for f in t.files], [n for t in found for n in t.lines], found[0].unit)

    def read_file(self, path: str, data: DataConfig, how: Reading) -> Table:
        """The rows of one file.

        Raises:
            DataError: it cannot be read, is broken, or has too many faults.
        """
        raise NotImplementedError(type(self).__name__)


def source_of(config: HeadConfig | type[HeadConfig]) -> Source:
    """The source of a task."""
    found: Source = resolve(config.source)()
    return found


def read_labelled(task: str, pattern: str | Path, data: DataConfig, how: Reading | None = None) -> Table:
    """The rows of the files of a task, see `Source.read`."""
    return source_of(choose(TASKS, task, "task")).read(pattern, data, how or Reading())


def text_columns(data: DataConfig) -> list[str]:
    """The columns of the texts."""
    return [name for name in (data.text_column, data.text_pair_column) if name]


def joined(table: Table, columns: list[str]) -> list[str]:
    """The texts of each row as one string; equal ones but for case and surrounding space are equal."""
    return ["\0".join(table[c][i].strip().casefold() for c in columns) for i in range(len(table))]


def no_tokenizer() -> WordPiece:
    """For sources that need none."""
    raise NotImplementedError("this source needs a tokenizer")


def no_labels(table: Table) -> np.ndarray:
    """Labels of rows that have none beside their segments, int32 `[n]` zeros."""
    return np.zeros(len(table), np.int32)

"""Files with labels of their own, by task: `READERS`.

What can be read in one way only is read so; what is wrong with single rows is counted and listed, and too much of it is
an error.
"""

from collections.abc import Callable
from pathlib import Path

from keras_bert.config import DataConfig
from keras_bert.data.choices import read_choices
from keras_bert.data.entities import read_entities
from keras_bert.data.faults import TABLES, Reading
from keras_bert.data.masked import read_masked
from keras_bert.data.pairs import read_pairs
from keras_bert.data.questions import read_questions
from keras_bert.data.tables import Table, find, read


def read_labelled(task: str, pattern: str | Path, data: DataConfig, how: Reading | None = None) -> Table:
    """The rows of one file or several, see `tables.find`; the columns are those of `data`.

    Raises:
        DataError: nothing matches, or a file cannot be read, is broken, or has too many faults.
    """
    how = how or Reading()
    columns = [c for c in (data.text_column, data.text_pair_column, data.label_column if how.labelled else "") if c]
    if task not in READERS:
        return read(pattern, columns)
    kinds = {Path(path).suffix.lower() for path in find(pattern)}
    if not how.labelled and task != "choice" and kinds <= {*TABLES, *[".jsonl"] * (task == "span")}:
        return read(pattern, columns)
    found = [READERS[task](path, data, how) for path in find(pattern)]
    names = [name for name in found[0].columns if all(name in rows.columns for rows in found)]
    merged = {name: [value for rows in found for value in rows[name]] for name in names}
    return Table(merged, [f for r in found for f in r.files], [n for r in found for n in r.lines], found[0].unit)


READERS: dict[str, Callable[[str, DataConfig, Reading], Table]] = {
    "tag": read_entities,
    "span": read_questions,
    "choice": read_choices,
    "similarity": read_pairs,
    "fill_mask": read_masked,
}
"""The tasks that have files of their own."""

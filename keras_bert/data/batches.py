"""Examples, the order in which batches take them, and batches as `tf.data`."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from keras_bert.config import FEATURES
from keras_bert.data.tables import Table
from keras_bert.errors import DataError


def batches_at_random(
    count: int, batch_size: int, seed: int, epoch: int, lengths: np.ndarray | None = None
) -> list[np.ndarray]:
    """The order of one training epoch of `count` rows: index arrays of at most `batch_size`.

    The same `(seed, epoch)` gives the same order. With `lengths` rows of like length go together, so that a batch holds
    little padding: rows are sorted inside pools of 64 batches, and the batches shuffled. What comes with length, such
    as a label, is then alike in a batch too.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(count)

    def cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
        return [rows[i : i + size] for i in range(0, len(rows), size)]

    if lengths is None:
        return cut(order, batch_size)
    pools = (pool[np.argsort(lengths[pool], kind="stable")] for pool in cut(order, 64 * batch_size))
    batches = [batch for pool in pools for batch in cut(pool, batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def batches_in_order(lengths: np.ndarray, batch_size: int, counts: np.ndarray | None = None) -> list[np.ndarray]:
    """The order of an evaluation: rows from long to short, so memory trouble shows at once.

    Args:
        counts: windows of each row; a batch then has at most `batch_size` of them, or one row.
    """
    order = np.argsort(-lengths, kind="stable")
    if counts is None:
        return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    batches: list[list[int]] = []
    room = 0
    for row in order:
        if counts[row] > room:
            batches.append([])
            room = batch_size
        batches[-1].append(row)
        room -= counts[row]
    return [np.array(batch) for batch in batches]


# === Examples for TensorFlow ===


@dataclass(frozen=True)
class Examples:
    """Texts with their labels as numbers, as training and evaluation take them.

    Attributes:
        segments: lists of n strings: the texts, and the second texts of pairs; choices are a list of n lists, last.
        labels: an array whose first axis is n, or None; see the `encode` of the task's source.
        references: what metrics compare with, if that is more than the labels: n values.
        table: the rows that they were read from, if there are any.
    """

    segments: tuple[list[Any], ...]
    labels: Any = None
    references: Any = None
    table: Table | None = None

    def __post_init__(self) -> None:
        for other in self.segments[1:]:
            if len(other) != len(self.segments[0]):
                raise DataError(f"{len(self.segments[0])} texts but {len(other)} second texts; each text needs one")

    def __len__(self) -> int:
        return len(self.segments[0])

    @property
    def truth(self) -> Any:
        """What metrics compare with."""
        return self.labels if self.references is None else self.references

    @property
    def rows(self) -> Table:
        """The table, of examples that were read from one."""
        assert self.table is not None
        return self.table

    @property
    def columns(self) -> list[list[Any]]:
        """The segments, with lists of choices filled up to one length (`filled`)."""
        return [filled(values) if values and isinstance(values[0], list) else values for values in self.segments]

    def take(self, indices: Iterable[int]) -> "Examples":
        """The examples of `indices`, in that order."""
        numbers = [int(i) for i in indices]
        return Examples(
            tuple([values[i] for i in numbers] for values in self.segments),
            None if self.labels is None else self.labels[numbers],
            None if self.references is None else [self.references[i] for i in numbers],
            None if self.table is None else self.table.take(numbers),
        )


def lengths(examples: Examples, text: Any, chunk: int = 1024, cut: bool = True, how: str = "row") -> np.ndarray:
    """Tokens of each row, or of the longest of each example, as they are or after cutting, int32 `[n]`.

    Args:
        text: a `text.Text`.
        how: how an example is read, one of `config.tasks.READS`; windows count as one row.
    """
    how = "row" if how == "windows" else how
    counts, columns = [np.zeros(0, np.int32)], examples.columns
    for i in range(0, len(examples), chunk):
        part = [encoded(segment[i : i + chunk]) for segment in columns]
        counts.append(text.count(*part, how=how) if cut else text.read(how, *part)["num_tokens"].numpy())
    return np.concatenate(counts)


def encoded(texts: Iterable[Any]) -> list[Any]:
    """UTF-8, also of strings that no decoder gives (lone surrogates); of lists of strings too."""
    return [text.encode("utf-8", "surrogatepass") if isinstance(text, str) else encoded(text) for text in texts]


def filled(choices: Sequence[Sequence[str]]) -> list[list[str]]:
    """Lists of choices, all as long as the longest; "" is no choice."""
    width = max(map(len, choices), default=0)
    return [[*row, *[""] * (width - len(row))] for row in choices]


Prepare = Callable[..., dict[str, Any]]
"""Segments as string tensors `[b]`, labels `[b, ...]`, and where rows are windows the number of each -> `features`,
`labels` and `weights` of a batch."""


def dataset(
    examples: Examples,
    prepare: Prepare,
    batches: list[np.ndarray],
    fixed: tuple[int, int] | None = None,
    windows: np.ndarray | None = None,
) -> Any:
    """A `tf.data.Dataset` of batches as training takes them, one element for each index array in `batches`.

    Args:
        prepare: makes a batch of strings and labels; `rows_of` is one.
        fixed: rows and tokens that every batch is padded to, where shapes must not change (XLA, TPU).
        windows: text and number int32 `[r, 2]` of each window, where the indices are of windows.

    Returns:
        Dicts of what `prepare` makes, `weights` (1, or 0 for a row that only fills up) among it, and `numbers` int32
        `[b]`, which rows these are, from 1; 0 only fills up. An empty index array gives an empty batch.
    """
    import tensorflow as tf

    segments = [tf.constant(encoded(values), tf.string) for values in examples.columns]
    labels = tf.zeros([len(examples)]) if examples.labels is None else tf.constant(examples.labels)
    flat = np.concatenate([*batches, np.zeros(0, np.int64)]).astype(np.int32)
    ragged = tf.RaggedTensor.from_row_lengths(flat, [len(b) for b in batches])

    def element(indices: Any) -> Any:
        which, extra = indices, []
        if windows is not None:
            picked = tf.gather(windows, indices)
            which, extra = picked[:, 0], [picked[:, 1]]
        made = prepare([tf.gather(s, which) for s in segments], tf.gather(labels, which), *extra)
        batch = made | {"numbers": indices + 1}
        return batch if fixed is None else tf.nest.map_structure(lambda t: _fill_up(t, fixed), batch)

    element = tf.autograph.experimental.do_not_convert(element)  # there is no control flow to convert
    return ahead(tf.data.Dataset.from_tensor_slices(ragged).map(element), 4)


def ahead(batches: Any, count: int) -> Any:
    """The same `tf.data.Dataset`, of which up to `count` elements are made before they are asked for.

    Autotuning is off. Its thread sleeps longer each time, up to a minute, and an iterator may not end before it wakes.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.prefetch(count).with_options(options)


def rows_of(text: Any, targets: Callable[[Any, Any], Any] | None = None) -> Prepare:
    """Each text is a row, or several where `text` makes several of it.

    Args:
        text: a `text.Text`, or a `tf.function` of one: it is traced for every dataset otherwise.
        targets: labels and features -> what is to be learnt, see `head.Head.targets`; None takes the labels.
    """

    def prepare(segments: Sequence[Any], labels: Any) -> dict[str, Any]:
        import tensorflow as tf

        made = text(*segments)
        features = {name: made[name] for name in FEATURES if name in made}
        wanted = labels if targets is None else targets(labels, features)
        return {"features": features, "labels": wanted, "weights": tf.ones(tf.shape(labels)[:1])}

    return prepare


def _fill_up(tensor: Any, shape: tuple[int, int]) -> Any:
    """Pad `[b]`, `[b, t]` or `[b, s, t]` with zeros up to `shape`; sizes that are known stay."""
    import tensorflow as tf

    wanted = [shape[0], *(shape[1] if size is None else size for size in tensor.shape[1:])]
    padding = [(0, w - n) for w, n in zip(wanted, tf.unstack(tf.shape(tensor)), strict=True)]
    return tf.ensure_shape(tf.pad(tensor, padding), wanted)

"""Which rows train and which evaluate: stratified, with equal texts on the same side."""

import random
from collections.abc import Iterator, Sequence

import numpy as np

from keras_bert.config import DataConfig
from keras_bert.data.source import Source
from keras_bert.data.tables import Table
from keras_bert.errors import DataError

# === Splits and batches ===


def shuffled(groups: Sequence[str], strata: Sequence[str], seed: int) -> Iterator[list[list[int]]]:
    """For each stratum, in order of its name, the rows of its groups, the groups in a random order.

    A group belongs to the stratum of its first row.
    """
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    by_stratum: dict[str, list[list[int]]] = {}
    for rows in members.values():
        by_stratum.setdefault(strata[rows[0]], []).append(rows)
    for name in sorted(by_stratum):
        random.Random(f"{seed}/{name}").shuffle(by_stratum[name])
        yield by_stratum[name]


def split(groups: Sequence[str], strata: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split rows into train and held-out indices, stratified, with equal `groups` on the same side.

    Args:
        groups: rows that must stay together have equal values (duplicate texts).
        strata: the label of each row; each label gives about `share` of its rows (a group counts as its
            first row's label).
        share: part of the rows to hold out, in (0, 1).
        seed: of the shuffle.

    Returns:
        Two sorted index lists that cover all rows.
    """
    held: set[int] = set()
    for bags in shuffled(groups, strata, seed):
        wanted, taken = round(share * sum(len(b) for b in bags)), 0
        for bag in bags:
            if taken + len(bag) <= wanted:
                held.update(bag)
                taken += len(bag)
    return [i for i in range(len(groups)) if i not in held], sorted(held)


def folds(groups: Sequence[str], strata: Sequence[str], count: int, seed: int) -> np.ndarray:
    """The fold of each row, int32 `[n]` from 0: stratified, with equal `groups` in the same fold.

    Of each label (a group counts as its first row's) every fold gets about the same number of rows, and so in all:
    groups are shuffled, the large ones placed first, each where so far is least.
    """
    fold_of, sizes = np.zeros(len(groups), np.int32), [0] * count
    for bags in shuffled(groups, strata, seed):
        here = [0] * count
        for bag in sorted(bags, key=len, reverse=True):
            fold = min(range(count), key=lambda k: (here[k], sizes[k]))
            fold_of[bag] = fold
            here[fold] += len(bag)
            sizes[fold] += len(bag)
    return fold_of


def hold_out(rows: Table, data: DataConfig, source: Source, share: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to evaluate on: stratified by label, equal texts on one side.

    Raises:
        DataError: there are too few rows for both.
    """
    groups = source.groups(rows, data)
    kept, held = split(groups, source.strata(rows, data), share, seed)
    if not held or not kept:
        raise DataError(
            f"{rows.files[0]}: {len(rows)} rows are too few to hold out {share:.0%} of them for evaluation "
            f"(equal texts stay together; {len(set(groups))} differ); give an evaluation file"
        )
    return kept, held

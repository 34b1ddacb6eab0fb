"""Deals rows to train, validation and test: seeded, stratified, copies kept on one side.

The deal depends on the rows' contents and the seed, not on their order or on a random number
generator's version. Knows hashes and label codes only.
"""

import numpy as np
import numpy.typing as npt

from peft_engine.records.census import Codes, Hashes

TRAIN, VALIDATION, TEST = 0, 1, 2


def deal(near: Hashes, labels: Codes, fractions: tuple[float, float, float], seed: int) -> Codes:
    """Give every row a split.

    Args:
        near: (rows,) folded input hashes: rows with the same one stay together.
        labels: (rows,) rank of the row's label, from 0: each gets its share of every split.
            By content: ranks by first appearance would let the order of the rows decide.
        fractions: Shares of train, validation and test.
        seed: Another seed deals other rows.

    Returns:
        (rows,) 0 train, 1 validation, 2 test. The first group of every label is in train; a split
        whose share is not 0 has a row wherever there are groups enough.
    """
    if not len(near):
        return np.zeros(0, dtype=np.int64)
    keys, group_of = np.unique(near, return_inverse=True)
    sizes = np.bincount(group_of)
    strata = np.full(len(keys), labels.max())
    np.minimum.at(strata, group_of, labels)  # a group belongs to the lowest of its labels
    order = np.lexsort((_scramble(keys, seed), strata))
    dealt = _deal_groups(order, sizes, strata, fractions)
    _fill_empty(dealt, order, strata, fractions)
    return dealt[group_of]


def _scramble(keys: Hashes, seed: int) -> Hashes:
    """splitmix64 of key and seed: a fixed, well mixed order. Wrapping multiplication is meant."""
    with np.errstate(over="ignore"):
        step = np.uint64(0x9E3779B97F4A7C15)
        x = keys + step * np.uint64(seed + 1)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(x ^ (x >> np.uint64(31)), dtype=np.uint64)


def _deal_groups(
    order: npt.NDArray[np.intp], sizes: Codes, strata: Codes, fractions: tuple[float, float, float]
) -> Codes:
    """Group after group to the split that is furthest behind its share; train wins ties."""
    dealt = np.zeros(len(order), dtype=np.int64)
    behind = [0.0, 0.0, 0.0]
    stratum_before = None
    for group, stratum, size in zip(
        order.tolist(), strata[order].tolist(), sizes[order].tolist(), strict=True
    ):
        for split, share in enumerate(fractions):
            behind[split] += share * size
        chosen = TRAIN if stratum != stratum_before else behind.index(max(behind))
        behind[chosen] -= size
        dealt[group] = chosen
        stratum_before = stratum
    return dealt


def _fill_empty(
    dealt: Codes,
    order: npt.NDArray[np.intp],
    strata: Codes,
    fractions: tuple[float, float, float],
) -> None:
    """Very small sets: move one train group into a split that got none, if train can spare it."""
    for split in (VALIDATION, TEST):
        if fractions[split] == 0 or (dealt == split).any():
            continue
        train = order[dealt[order] == TRAIN]
        spare = train[np.bincount(strata[train])[strata[train]] > 1]
        if len(spare):
            dealt[spare[-1]] = split

"""Metrics as sums over rows, so that one definition gives the value and its bootstrap interval."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Legend of axes: N rows of a split, K statistics of a row, R resamples.

BOOTSTRAP_RESAMPLES = 1000
_RESAMPLES_AT_ONCE = 50
"""Bounds the memory of the weights to 50 numbers a row."""


@dataclass(frozen=True)
class RowStatistics:
    """A metric as a function of sums over rows.

    Attributes:
        values: (N, K) what each row adds.
        reduce: (R, K) sums to (R,) metric values.
    """

    values: Floats
    reduce: Callable[[Floats], Floats]

    @property
    def value(self) -> float:
        """The metric over all rows."""
        return float(self.reduce(self.values.sum(0, keepdims=True))[0])


@dataclass(frozen=True)
class Interval:
    """A paired 95 % bootstrap interval of a difference.

    Attributes:
        low: 2.5th percentile.
        high: 97.5th percentile.
    """

    low: float
    high: float


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one model on one split.

    Attributes:
        metrics: Value by name.
        rows: The metrics that can be resampled, by name.
    """

    metrics: Mapping[str, float]
    rows: Mapping[str, RowStatistics]


def paired_interval(before: RowStatistics, after: RowStatistics, *, seed: int = 0) -> Interval:
    """Interval of ``after - before`` when the same rows are drawn for both.

    Args:
        before: The metric of one model.
        after: The metric of another model on the same rows in the same order.
        seed: Seed of the resampling.

    Returns:
        The interval.

    Source: Efron and Tibshirani 1993, chapter 13 (percentile interval); paired as in Koehn 2004.
    """
    count = before.values.shape[0]
    generator = np.random.default_rng(seed)
    differences: list[Floats] = []
    for _ in range(0, BOOTSTRAP_RESAMPLES, _RESAMPLES_AT_ONCE):
        weights = generator.multinomial(  # (R, N) how often each row was drawn
            count, np.full(count, 1 / count), size=_RESAMPLES_AT_ONCE
        ).astype(np.float64)
        differences.append(
            after.reduce(weights @ after.values) - before.reduce(weights @ before.values)
        )
    low, high = np.percentile(np.concatenate(differences), [2.5, 97.5])
    return Interval(float(low), float(high))


def ratio_of_sums(numerator: Floats, denominator: Floats) -> RowStatistics:
    """A mean such as loss per token.

    Args:
        numerator: (N,) what is averaged.
        denominator: (N,) over how much.

    Returns:
        The metric ``Σ numerator / Σ denominator``.
    """
    return RowStatistics(
        np.stack([numerator, denominator], 1).astype(np.float64),
        lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1e-12),
    )

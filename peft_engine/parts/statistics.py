"""Metrics that can be resampled over rows: one definition gives the value and its interval.

Most metrics are functions of sums over rows; rank correlation is not and ranks every resample anew.
A resample is a weight for each row (how often it was drawn), so that no row is ever copied.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Legend of axes: N rows of a split, K statistics of a row, R resamples, B bins, G groups of ties.

BOOTSTRAP_RESAMPLES = 1000
STANDARD_ERROR_RESAMPLES = 200
"""Enough for a standard error (Efron and Tibshirani 1993, section 6.4)."""
_RESAMPLES_AT_ONCE = 50
"""Bounds the memory of the weights to 50 numbers a row."""
CALIBRATION_BINS = 15
"""As in Guo et al. 2017, arXiv 1706.04599, section 5."""


class Resampled(Protocol):
    """A metric that can be computed when rows are drawn again."""

    @property
    def count(self) -> int:
        """N."""

    @property
    def value(self) -> float:
        """The metric over all rows, each once."""

    def resample(self, weights: Floats) -> Floats:
        """The metric of each resample.

        Args:
            weights: (R, N) how often each row was drawn.

        Returns:
            (R,) finite values.
        """


@dataclass(frozen=True)
class RowStatistics:
    """A metric as a function of sums over rows.

    Attributes:
        values: (N, K) what each row adds: an array, or a sparse array of scipy.
        reduce: (R, K) sums to (R,) metric values.
    """

    values: Any
    reduce: Callable[[Floats], Floats]

    @property
    def count(self) -> int:
        """N."""
        return int(self.values.shape[0])

    @property
    def value(self) -> float:
        """The metric over all rows."""
        return float(self.reduce(np.asarray(self.values.sum(axis=0)).reshape(1, -1))[0])

    def resample(self, weights: Floats) -> Floats:
        """See ``Resampled``."""
        # transposed twice: a sparse array stands on the left of its product
        return self.reduce(np.asarray(self.values.T @ weights.T).T)


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation: rows that tie share their mean rank, and copies of a row tie.

    Attributes:
        found: (N,) numbers.
        wanted: (N,) numbers.
    """

    found: Floats
    wanted: Floats

    @property
    def count(self) -> int:
        """N."""
        return len(self.found)

    @property
    def value(self) -> float:
        """The correlation over all rows; 0 where one side is constant."""
        return float(self.resample(np.ones((1, self.count)))[0])

    def resample(self, weights: Floats) -> Floats:
        """See ``Resampled``."""
        drawn = weights.sum(1)  # (R,)
        middle = ((drawn + 1) / 2)[:, None]  # the mean rank, whatever ties
        x, y = (_mean_ranks(side, weights) - middle for side in (self.found, self.wanted))  # (R, N)
        products, squares_x, squares_y = (
            (weights * own).sum(1) for own in (x * y, x * x, y * y)
        )  # (R,) each
        return _ratio_or_zero(products, np.sqrt(squares_x * squares_y))


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
        details: What no single number says, as JSON values of bounded size: tables by class,
            the most frequent mistakes.
    """

    metrics: Mapping[str, float]
    rows: Mapping[str, Resampled]
    details: Mapping[str, Any] = field(default_factory=dict)


def evaluation_of(
    rows: Mapping[str, Resampled],
    *,
    values: Mapping[str, float] | None = None,
    details: Mapping[str, Any] | None = None,
) -> Evaluation:
    """An evaluation whose every metric can be resampled.

    Args:
        rows: The metrics by name.
        values: What a library makes of the same rows; it is what is reported.
        details: See ``Evaluation``.

    Returns:
        The evaluation.
    """
    known = values or {}
    metrics = {name: known.get(name, own.value) for name, own in rows.items()}
    return Evaluation(metrics, rows, details or {})


def draw_rows(
    count: int, resamples: int = BOOTSTRAP_RESAMPLES, *, seed: int = 0
) -> Iterator[Floats]:
    """Draw rows with replacement, as many as there are, again and again.

    Args:
        count: N.
        resamples: R, a multiple of 50.
        seed: Of the draws, which depend on nothing else but N.

    Yields:
        (50, N) how often each row was drawn, for the next 50 resamples.
    """
    generator = np.random.default_rng(seed)
    for _ in range(0, resamples, _RESAMPLES_AT_ONCE):
        drawn = [
            np.bincount(generator.integers(0, count, count), minlength=count)
            for _ in range(_RESAMPLES_AT_ONCE)
        ]
        yield np.stack(drawn).astype(np.float64)


def paired_intervals(
    before: Mapping[str, Resampled], after: Mapping[str, Resampled], *, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of ``after - before`` when the same rows are drawn for both.

    Metrics over the same number of rows share their resamples, which costs R·N for all of them.

    Args:
        before: The metrics of one model.
        after: The metrics of another model on the same rows in the same order.
        seed: Seed of the resampling.

    Returns:
        The interval of each metric that both have, over as many rows.

    Source: Efron and Tibshirani 1993, chapter 13 (percentile interval); paired as in Koehn 2004.
    """
    shared = [
        name
        for name, own in after.items()
        if name in before and before[name].count == own.count and own.count
    ]
    found: dict[str, Interval] = {}
    for count in sorted({after[name].count for name in shared}):
        own = [name for name in shared if after[name].count == count]
        differences: dict[str, list[Floats]] = {name: [] for name in own}
        for weights in draw_rows(count, seed=seed):
            for name in own:
                change = after[name].resample(weights) - before[name].resample(weights)
                differences[name].append(change)
        for name in own:
            low, high = np.percentile(np.concatenate(differences[name]), [2.5, 97.5])
            found[name] = Interval(float(low), float(high))
    return {name: found[name] for name in shared}


def draw_values(own: Resampled) -> Floats:
    """A metric over resamples that depend on nothing but the number of rows.

    Args:
        own: The metric.

    Returns:
        (R,) values of ``STANDARD_ERROR_RESAMPLES``; the standard deviation of the difference of
        two of them is the standard error of the metrics' difference.
    """
    batches = draw_rows(own.count, STANDARD_ERROR_RESAMPLES)
    return np.concatenate([own.resample(weights) for weights in batches])


def ratio_of_sums(numerator: Floats, denominator: Floats) -> RowStatistics:
    """A mean such as loss per token.

    Args:
        numerator: (N,) what is averaged.
        denominator: (N,) over how much.

    Returns:
        The metric ``Σ numerator / Σ denominator``; 0 where there is nothing to average.
    """
    return RowStatistics(
        np.stack([numerator, denominator], 1).astype(np.float64),
        lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1e-12),
    )


def mean_of_rows(values: Floats) -> RowStatistics:
    """The mean of one number a row.

    Args:
        values: (N,) numbers.

    Returns:
        The metric.
    """
    return ratio_of_sums(values, np.ones(len(values)))


def calibration_error(
    confidence: Floats, right: Floats, *, owners: NDArray[np.int64] | None = None, rows: int = 0
) -> RowStatistics:
    """Expected calibration error: how far confidence and being right lie apart.

    Args:
        confidence: (M,) probability that was given to each answer, from 0 to 1.
        right: (M,) 1 where the answer was right, else 0.
        owners: (M,) row of each answer, where a row has several or none; None: one a row.
        rows: N, where there are owners.

    Returns:
        ``Σ_b |Σ_{i in b} (right_i - confidence_i)| / M`` over 15 bins of equal width; of a
        confidence on an edge the upper bin; 0 where there is no answer.

    Source: Guo et al. 2017, arXiv 1706.04599, equation 3.
    """
    from scipy.sparse import coo_array

    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    answers = len(confidence)
    own = np.arange(answers) if owners is None else owners
    shape = (answers if owners is None else rows, CALIBRATION_BINS + 1)
    gaps = coo_array((right - confidence, (own, bins)), shape=shape)
    counts = coo_array((np.ones(answers), (own, np.full(answers, CALIBRATION_BINS))), shape=shape)

    def reduce(sums: Floats) -> Floats:
        error: Floats = np.abs(sums[:, :-1]).sum(1) / np.maximum(sums[:, -1], 1)
        return error

    return RowStatistics((gaps + counts).tocsr(), reduce)


def _mean_ranks(values: Floats, weights: Floats) -> Floats:
    """(R, N) the rank of each row among the drawn ones, ties sharing their mean rank."""
    _, group = np.unique(values, return_inverse=True)  # (N,)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max(initial=-1) + 1))
    sizes = np.add.reduceat(weights[:, order], starts, axis=1)  # (R, G)
    ranks: Floats = (sizes.cumsum(1) - (sizes - 1) / 2)[:, group]
    return ranks


def _ratio_or_zero(numerator: Floats, denominator: Floats) -> Floats:
    safe = np.where(denominator > 0, denominator, 1)
    ratio: Floats = np.where(denominator > 0, numerator / safe, 0.0)
    return ratio

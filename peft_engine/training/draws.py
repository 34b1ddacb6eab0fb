"""The metrics of a tested model over resamples of its test split, kept to compare models later.

The resamples depend on nothing but the number of rows: two models that were tested on the same
rows, in jobs that know nothing of each other, are drawn alike. The difference of their values,
resample by resample, is then the paired bootstrap of their difference.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from peft_engine.configs.training import LOWER_IS_BETTER
from peft_engine.parts.statistics import Evaluation, Floats, Resampled, draw_rows

# Legend of axes: N rows of a split, R resamples.


@dataclass(frozen=True)
class MetricDraws:
    """One metric of one model.

    Attributes:
        value: Over all rows, each once.
        values: R values, one a resample.
        rows: N.
        pairing: ``sha256:…`` of the resamples, which another release of numpy might draw
            otherwise; only values over equal resamples are pairs.
        lower_is_better: True for losses and errors.
    """

    value: float
    values: tuple[float, ...]
    rows: int
    pairing: str
    lower_is_better: bool


def draw_metrics(evaluation: Evaluation) -> dict[str, MetricDraws]:
    """Compute every metric that can be resampled over the resamples of its rows.

    Args:
        evaluation: Of the tuned model on the test split.

    Returns:
        By name of the metric; metrics that are not finite on some resample are left out.

    Source: Efron and Tibshirani 1993, chapter 13 (percentile interval); paired as in Koehn 2004.
    """
    found: dict[str, MetricDraws] = {}
    for count in sorted({own.count for own in evaluation.rows.values()} - {0}):
        same = {name: own for name, own in evaluation.rows.items() if own.count == count}
        values, pairing = _resample(same, count)
        for name in same:
            if np.isfinite(values[name]).all():
                found[name] = MetricDraws(
                    value=float(evaluation.metrics[name]),
                    values=tuple(values[name].tolist()),
                    rows=count,
                    pairing=pairing,
                    lower_is_better=name in LOWER_IS_BETTER,
                )
    return found


def _resample(rows: dict[str, Resampled], count: int) -> tuple[dict[str, Floats], str]:
    """Values (R,) of each metric, and the digest of the resamples."""
    digest = hashlib.sha256()
    pieces: dict[str, list[Floats]] = {name: [] for name in rows}
    for weights in draw_rows(count):
        digest.update(weights.astype("<u4").tobytes())
        for name, own in rows.items():
            pieces[name].append(own.resample(weights))
    values = {name: np.concatenate(own) for name, own in pieces.items()}
    return values, f"sha256:{digest.hexdigest()}"

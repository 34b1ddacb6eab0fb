"""Class scores to metrics and typed answers, shared by the tasks that name one class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from peft_engine.parts.statistics import Evaluation, Floats, RowStatistics, ratio_of_sums

# Legend of axes: N rows of a split, C classes, R resamples.


def label_answer(labels: Sequence[str], shares: Sequence[float]) -> dict[str, Any]:
    """The answer of one row.

    Args:
        labels: Class names.
        shares: Probability of each.

    Returns:
        ``label``, its ``score``, and all ``scores``, highest first.
    """
    ranked = sorted(zip(labels, shares, strict=True), key=lambda pair: -pair[1])
    return {"label": ranked[0][0], "score": ranked[0][1], "scores": dict(ranked)}


def evaluate_logits(logits: Tensor, targets: NDArray[Any]) -> Evaluation:
    """Metrics of class scores.

    Args:
        logits: (N, C) on the CPU.
        targets: (N,) class numbers.

    Returns:
        ``loss`` (mean cross entropy in nats), ``accuracy`` and ``macro_f1``, the unweighted mean
        of F1 over the classes that stand in the targets or the predictions.
    """
    # Imported late: it takes a second that every start of a process would wait for.
    from sklearn.metrics import accuracy_score, f1_score

    predicted = logits.argmax(-1).numpy()
    losses = cross_entropy(logits.double(), torch.from_numpy(targets), reduction="none").numpy()
    ones = np.ones(len(targets))
    correct = (predicted == targets).astype(np.float64)
    classes = logits.shape[1]
    rows = {
        "loss": ratio_of_sums(losses, ones),
        "accuracy": ratio_of_sums(correct, ones),
        "macro_f1": macro_f1_rows(np.eye(classes)[targets], np.eye(classes)[predicted]),
    }
    metrics = {
        "loss": rows["loss"].value,
        "accuracy": float(accuracy_score(targets, predicted)),
        "macro_f1": float(f1_score(targets, predicted, average="macro", zero_division=0)),
    }
    return Evaluation(metrics, rows)


def macro_f1_rows(wanted: Floats, given: Floats, *, all_classes: bool = False) -> RowStatistics:
    """Macro F1 as sums over rows: hits, predictions and targets of each class.

    Args:
        wanted: (N, C) 1 where a class is a target.
        given: (N, C) 1 where a class is predicted.
        all_classes: Whether a class that stands nowhere counts as 0, as it does in
            ``scikit-learn`` when rows carry several labels; otherwise it is left out.

    Returns:
        The unweighted mean of F1 over the classes.
    """

    def reduce(sums: Floats) -> Floats:
        hits, made, true = np.split(sums, 3, axis=1)  # (R, C) each
        present = (made + true) > 0
        scores = np.where(present, 2 * hits / np.maximum(made + true, 1), 0.0)
        counted = np.full(len(sums), scores.shape[1]) if all_classes else present.sum(1)
        mean: Floats = scores.sum(1) / np.maximum(counted, 1)
        return mean

    return RowStatistics(np.concatenate([wanted * given, given, wanted], axis=1), reduce)


def micro_f1_rows(hits: Floats, made: Floats, true: Floats) -> RowStatistics:
    """F1 over all decisions of all rows.

    Args:
        hits: (N,) right ones of each row.
        made: (N,) decisions of each row.
        true: (N,) targets of each row.

    Returns:
        ``2 Σ hits / (Σ made + Σ true)``; 0 where nothing is made and nothing true.
    """
    return ratio_of_sums(2 * hits, made + true)

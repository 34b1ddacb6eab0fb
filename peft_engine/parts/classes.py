"""Class scores to metrics, tables and typed answers, shared by the tasks that have classes."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from peft_engine.parts.statistics import (
    Evaluation,
    Floats,
    RowStatistics,
    calibration_error,
    evaluation_of,
    mean_of_rows,
    ratio_of_sums,
)

# Legend of axes: N rows of a split, C classes, R resamples.

MAX_SHOWN_CLASSES = 100
MAX_SHOWN_CONFUSIONS = 50
"""Both bound a report to some ten kilobytes: it stands in the database and in every answer."""

Ints = NDArray[np.int64]


def prior_logits(counts: Tensor, rows: int) -> Tensor:
    """The same guess for every row: how often each class was a target in training.

    Args:
        counts: (C,) training targets of each class.
        rows: N.

    Returns:
        (N, C) logarithms of the shares, one target added to each class so that all are finite.
    """
    shares = (counts.double() + 1) / (counts.double() + 1).sum()
    return shares.log().expand(rows, -1)


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


@dataclass(frozen=True)
class ClassCounts:
    """What each row adds to the hits, decisions and targets of each class.

    Attributes:
        values: (N, 3C) sparse: hits, decisions, targets of each class.
        classes: C.
    """

    values: Any
    classes: int

    def metric(self, reduce: Callable[[Floats, Floats, Floats], Floats]) -> RowStatistics:
        """A metric that is a function of these counts.

        Args:
            reduce: Hits, decisions and targets, (R, C) each, to (R,) values.

        Returns:
            The metric.
        """

        def of_sums(sums: Floats) -> Floats:
            hits, made, true = np.split(sums, 3, axis=1)
            return reduce(hits, made, true)

        return RowStatistics(self.values, of_sums)

    def table(self, labels: Sequence[str]) -> list[dict[str, Any]]:
        """Precision, recall, F1 and support of each class, as scikit-learn reports them.

        Args:
            labels: Names of the classes.

        Returns:
            The classes with most targets, then decisions, first; at most 100.
        """
        sums = np.asarray(self.values.sum(axis=0)).reshape(3, self.classes)
        return class_table(labels, *sums)

    @classmethod
    def of_one_class(cls, targets: Ints, given: Ints, classes: int) -> "ClassCounts":
        """Counts where each row has one class.

        Args:
            targets: (N,) class numbers.
            given: (N,) class numbers.
            classes: C.

        Returns:
            The counts.
        """
        rows = np.arange(len(targets))
        right = targets == given
        return cls._of(
            [(rows[right], targets[right]), (rows, given), (rows, targets)], len(rows), classes
        )

    @classmethod
    def of_labels(cls, wanted: Floats, given: Floats) -> "ClassCounts":
        """Counts where each row has any number of classes.

        Args:
            wanted: (N, C) 1 where a class is a target.
            given: (N, C) 1 where a class is given.

        Returns:
            The counts.
        """
        pairs = [np.nonzero(own) for own in (wanted * given, given, wanted)]
        return cls._of([(rows, own) for rows, own in pairs], *wanted.shape)

    @classmethod
    def _of(
        cls, marks: Sequence[tuple[NDArray[Any], NDArray[Any]]], rows: int, classes: int
    ) -> "ClassCounts":
        """Counts from the rows and classes of hits, decisions and targets."""
        from scipy.sparse import csr_array

        places = np.concatenate([own for own, _ in marks])
        columns = np.concatenate([own + part * classes for part, (_, own) in enumerate(marks)])
        ones = np.ones(len(places))
        return cls(csr_array((ones, (places, columns)), shape=(rows, 3 * classes)), classes)


def evaluate_logits(logits: Tensor, targets: Ints, *, labels: Sequence[str]) -> Evaluation:
    """Metrics of class scores.

    Args:
        logits: (N, C) on the CPU.
        targets: (N,) class numbers.
        labels: C names.

    Returns:
        ``loss`` (mean cross entropy in nats), ``accuracy``, ``macro_f1`` and ``weighted_f1`` (mean
        of F1 over the classes that stand in the targets or the predictions, each alike or by its
        targets), ``mcc`` (Matthews' correlation coefficient) and ``ece`` (calibration error of the
        softmax); ``details`` has ``classes`` and ``confusions``.
    """
    # Imported late: it takes a second that every start of a process would wait for.
    from sklearn.metrics import accuracy_score, f1_score

    shares, given = (own.numpy() for own in logits.double().softmax(-1).max(-1))
    losses = cross_entropy(logits.double(), torch.from_numpy(targets), reduction="none").numpy()
    right = (given == targets).astype(np.float64)
    counts = ClassCounts.of_one_class(targets, given, logits.shape[1])
    mistakes = Counter(
        (labels[wanted], labels[found])
        for wanted, found in zip(targets.tolist(), given.tolist(), strict=True)
        if wanted != found
    )
    return evaluation_of(
        {
            "loss": mean_of_rows(losses),
            "accuracy": mean_of_rows(right),
            "macro_f1": counts.metric(macro_f1),
            "weighted_f1": counts.metric(weighted_f1),
            "mcc": counts.metric(matthews),
            "ece": calibration_error(shares, right),
        },
        values={
            "accuracy": float(accuracy_score(targets, given)),
            "macro_f1": float(f1_score(targets, given, average="macro", zero_division=0)),
            "weighted_f1": float(f1_score(targets, given, average="weighted", zero_division=0)),
        },
        details={"classes": counts.table(labels), "confusions": confusion_list(mistakes)},
    )


def class_f1(hits: Floats, made: Floats, true: Floats) -> Floats:
    """F1 of each class.

    Args:
        hits: (R, C) right decisions.
        made: (R, C) decisions.
        true: (R, C) targets.

    Returns:
        (R, C); 0 for a class that stands nowhere.
    """
    score: Floats = 2 * hits / np.maximum(made + true, 1)
    return score


def macro_f1(hits: Floats, made: Floats, true: Floats) -> Floats:
    """Mean of F1 over the classes that stand in the targets or the decisions.

    Args:
        hits: (R, C) right decisions.
        made: (R, C) decisions.
        true: (R, C) targets.

    Returns:
        (R,).
    """
    present = ((made + true) > 0).sum(1)
    mean: Floats = class_f1(hits, made, true).sum(1) / np.maximum(present, 1)
    return mean


def macro_f1_of_all(hits: Floats, made: Floats, true: Floats) -> Floats:
    """Mean of F1 over all classes, one that stands nowhere counting 0.

    Args:
        hits: (R, C) right decisions.
        made: (R, C) decisions.
        true: (R, C) targets.

    Returns:
        (R,), as scikit-learn has it when rows carry several labels.
    """
    mean: Floats = class_f1(hits, made, true).mean(1)
    return mean


def weighted_f1(hits: Floats, made: Floats, true: Floats) -> Floats:
    """Mean of F1 over the classes, each by its number of targets.

    Args:
        hits: (R, C) right decisions.
        made: (R, C) decisions.
        true: (R, C) targets.

    Returns:
        (R,); 0 where there is no target.
    """
    mean: Floats = (class_f1(hits, made, true) * true).sum(1) / np.maximum(true.sum(1), 1)
    return mean


def matthews(hits: Floats, made: Floats, true: Floats) -> Floats:
    """Matthews' correlation coefficient of any number of classes.

    Args:
        hits: (R, C) right decisions.
        made: (R, C) decisions.
        true: (R, C) targets.

    Returns:
        (R,) from -1 to 1; 0 where targets or decisions are all of one class.

    Source: Gorodkin 2004, R_K, in the form of scikit-learn's ``matthews_corrcoef``.
    """
    rows = true.sum(1)
    covariance = hits.sum(1) * rows - (made * true).sum(1)
    variances = (rows**2 - (made**2).sum(1)) * (rows**2 - (true**2).sum(1))
    safe = np.sqrt(np.maximum(variances, 1))
    value: Floats = np.where(variances > 0, covariance / safe, 0.0)
    return value


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


def micro_f1_of_labels(wanted: Floats, given: Floats) -> RowStatistics:
    """F1 over all decisions of all rows, each of which may have any number of labels.

    Args:
        wanted: (N, C) 1 where a row has the label.
        given: (N, C) 1 where the label is given.

    Returns:
        See ``micro_f1_rows``.
    """
    return micro_f1_rows((wanted * given).sum(1), given.sum(1), wanted.sum(1))


def class_table(
    labels: Sequence[str], hits: Iterable[float], made: Iterable[float], true: Iterable[float]
) -> list[dict[str, Any]]:
    """Precision, recall, F1 and support of each class.

    Args:
        labels: Names of the classes.
        hits: Right decisions for each.
        made: Decisions for each.
        true: Targets of each: its support.

    Returns:
        The classes with most targets, then decisions, first; at most 100. What divides by 0 is 0.
    """
    rows: list[dict[str, Any]] = [
        {
            "label": label,
            "precision": _share(hit, given),
            "recall": _share(hit, wanted),
            "f1": _share(2 * hit, given + wanted),
            "support": int(wanted),
            "predicted": int(given),
        }
        for label, hit, given, wanted in zip(labels, hits, made, true, strict=True)
    ]
    rows.sort(key=lambda row: (-row["support"], -row["predicted"], row["label"]))
    return rows[:MAX_SHOWN_CLASSES]


def confusion_list(mistakes: Mapping[tuple[str, str], int]) -> list[dict[str, Any]]:
    """The most frequent mistakes: the confusion matrix without its diagonal and its zeros.

    Args:
        mistakes: How often the first name was wanted and the second one given.

    Returns:
        The most frequent first; at most 50.
    """
    ranked = sorted(mistakes.items(), key=lambda item: (-item[1], item[0]))
    return [
        {"label": wanted, "predicted": given, "count": count}
        for (wanted, given), count in ranked[:MAX_SHOWN_CONFUSIONS]
    ]


def _share(part: float, whole: float) -> float:
    # six digits: the table is for reading, and shown in many answers
    return round(float(part / whole), 6) if whole else 0.0

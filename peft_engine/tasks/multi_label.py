"""Text classification with several labels: any number of them for a text or a pair of texts.

One logistic regression for each label over pooled features. A label is given when its probability
is above one half, or above what micro F1 wants (``parts.label_choices``).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear, normalize

from peft_engine.bases.base import Base
from peft_engine.bases.pooling import pool
from peft_engine.configs.manifest import AnyHeadSpec, HeadSpec
from peft_engine.errors import DataError
from peft_engine.parts.batching import Batch, Example
from peft_engine.parts.classes import ClassCounts, macro_f1_of_all, micro_f1_of_labels, weighted_f1
from peft_engine.parts.fits import CENTROID_SCALE, fit_labels, fit_new_labels
from peft_engine.parts.hidden_layer import keep_hidden, last_features
from peft_engine.parts.label_choices import ONE_HALF, choose_threshold
from peft_engine.parts.statistics import (
    Evaluation,
    calibration_error,
    evaluation_of,
    mean_of_rows,
)
from peft_engine.tasks.passes import (
    batch_logits,
    class_numbers,
    encode_rows,
    evaluate_with_head,
    read_text_input,
    sorted_labels,
    stack_one,
    texts_of,
)
from peft_engine.tasks.protocol import (
    Baseline,
    Encoded,
    FeatureSource,
    Forward,
    Frozen,
    Head,
    LossSum,
    Record,
    spec_of,
)

# Legend of axes: B rows of a batch, N rows of a split, T tokens, D width, C classes.

BEFORE_CENTROIDS = (
    "for each label the nearer centroid of the frozen base's features, of rows with it or without"
)
BEFORE_FREQUENT = "the labels that more than half of the training rows have, no model"


class MultiLabelClassification:
    """Any number of labels for a text; a variant of ``text-classification``."""

    name = "text-classification"
    kind = "multi-label"
    metric = "micro_f1"
    metrics: tuple[str, ...] = (
        "loss",
        "micro_f1",
        "macro_f1",
        "weighted_f1",
        "subset_accuracy",
        "ece",
    )
    weighs_classes = True
    max_length_tokens = 256

    def find_labels(self, records: Sequence[Record]) -> tuple[str, ...]:
        """Every label of the training records, sorted; see ``Task.find_labels``."""
        return sorted_labels({label for record in records for label in _labels(record)})

    def encode(
        self,
        base: Base,
        records: Sequence[Record],
        *,
        labels: tuple[str, ...] | None,
        max_length: int,
    ) -> list[Example]:
        """Texts to tokens, labels to sorted class numbers; see ``Task.encode``."""
        rows = encode_rows(base, [texts_of(r) for r in records], max_length=max_length)
        return [
            Example((row,), _numbers(labels, record), cut, record=place)
            for place, ((row, cut), record) in enumerate(zip(rows, records, strict=True))
        ]

    def encode_input(
        self,
        base: Base,
        value: Any,
        *,
        max_length: int,
        spec: AnyHeadSpec | None = None,  # noqa: ARG002  protocol
    ) -> list[Example]:
        """``"text"`` or ``{"text", "text_pair"}``; see ``HeadTask.encode_input``."""
        record = read_text_input(base, value, max_length=max_length)
        return self.encode(base, [record], labels=None, max_length=max_length)

    def first_head(
        self, frozen: Frozen, examples: Sequence[Example], *, labels: tuple[str, ...] | None
    ) -> Head:
        """One logistic regression for each label, and when it is given; see ``HeadTask``."""
        names = labels or ()
        spec = HeadSpec(
            kind="multi-label", pooling=frozen.base.pooling.mode, normalize=True, scale=1.0
        )
        targets = _targets(examples, len(names))
        features = frozen.features(self, spec, examples)
        threshold = choose_threshold(features, targets, check=frozen.check)
        fitted = fit_labels(features, targets, check=frozen.check)
        return Head(spec.model_copy(update={"threshold": threshold}), fitted, names)

    def extend_head(
        self,
        tuned: FeatureSource,
        head: Head,
        examples: Sequence[Example],
        *,
        labels: tuple[str, ...] | None,
    ) -> Head:
        """A regression for each new label; see ``GrowingTask.extend_head``."""
        names = labels or ()
        if names == head.labels:
            return head
        features = tuned.features(self, head.spec, examples)  # (N, D)
        features = last_features(spec_of(head.spec, HeadSpec), head.tensors, features)
        targets = _targets(examples, len(names))  # (N, C)
        fitted = fit_new_labels(features, targets, head.tensors, check=tuned.check)
        return Head(head.spec, keep_hidden(head.tensors, fitted), names)

    def features(self, spec: AnyHeadSpec, hidden: Tensor, batch: Batch) -> Tensor:
        """(B, D) pooled features; see ``HeadTask.features``."""
        own = spec_of(spec, HeadSpec)
        return pool(hidden, batch.mask, mode=own.pooling, normalize=own.normalize)

    def count_features(self, example: Example) -> int:  # noqa: ARG002  protocol
        """One; see ``HeadTask.count_features``."""
        return 1

    def logits(self, head: Head, features: Tensor) -> Tensor:
        """(B, C) logits; see ``HeadTask.logits``."""
        own = last_features(spec_of(head.spec, HeadSpec), head.tensors, features)
        return linear(own, head.tensors["weight"], head.tensors["bias"])

    def loss(
        self,
        base: Base,  # noqa: ARG002  protocol
        head: Head | None,
        hidden: Tensor,
        batch: Batch,
        *,
        label_smoothing: float,
        class_weights: Tensor | None = None,
    ) -> LossSum:
        """Binary cross entropy, counted over rows and labels; see ``Task.loss``.

        ``class_weights`` weigh the rows that have a label against those that have not;
        ``label_smoothing`` moves each target towards one half.
        """
        logits = batch_logits(self, head, hidden, batch)  # (B, C)
        targets = _targets(batch.examples, logits.shape[1]).to(logits.device)
        smooth = targets * (1 - label_smoothing) + 0.5 * label_smoothing
        total = binary_cross_entropy_with_logits(
            logits, smooth, pos_weight=class_weights, reduction="sum"
        )
        return LossSum(total, logits.numel())

    def evaluate(
        self,
        forward: Forward,
        head: Head | None,
        examples: Sequence[Example],
        records: Sequence[Record],
        *,
        batch_size: int,
        generate_rows: int,  # noqa: ARG002  protocol
    ) -> Evaluation:
        """See ``evaluate_labels`` and ``Task.evaluate``."""
        return evaluate_with_head(self, forward, head, examples, records, batch_size=batch_size)

    def score(
        self,
        head: Head,
        examples: Sequence[Example],
        records: Sequence[Record],  # noqa: ARG002  protocol
        logits: Sequence[Tensor],
    ) -> Evaluation:
        """See ``evaluate_labels``."""
        targets = _targets(examples, len(head.labels))
        return evaluate_labels(
            stack_one(logits), targets, labels=head.labels, threshold=_threshold(head)
        )

    def baselines(
        self, frozen: Frozen, head: Head, train: Encoded, asked: Encoded
    ) -> tuple[Baseline, ...]:
        """For each label the nearer centroid, or what is more frequent; see ``HeadTask``."""
        known = frozen.features(self, head.spec, train.examples)  # (N, D)
        targets = _targets(train.examples, len(head.labels))  # (N, C)
        found = frozen.features(self, head.spec, asked.examples)
        with_it = normalize(targets.T @ known, dim=-1)  # (C, D)
        without = normalize((1 - targets).T @ known, dim=-1)  # (C, D)
        counts = targets.sum(0)  # (C,)
        # one row added to each side, so that all are finite
        odds = ((counts + 1) / (len(targets) - counts + 1)).log()
        guesses = {
            BEFORE_CENTROIDS: CENTROID_SCALE * (found @ with_it.T - found @ without.T),
            BEFORE_FREQUENT: odds.expand(len(found), -1),
        }
        wanted = _targets(asked.examples, len(head.labels))
        return tuple(
            Baseline(evaluate_labels(logits, wanted, labels=head.labels), what, len(found))
            for what, logits in guesses.items()
        )

    def answer(
        self,
        head: Head,
        examples: Sequence[Example],  # noqa: ARG002  protocol
        logits: Sequence[Tensor],
    ) -> dict[str, Any]:
        """``labels`` above the ``threshold`` and all ``scores``; see ``HeadTask.answer``."""
        shares = logits[0][0].sigmoid().tolist()
        ranked = sorted(zip(head.labels, shares, strict=True), key=lambda pair: -pair[1])
        threshold = _threshold(head)
        given = [label for label, share in ranked if share > threshold]
        return {"labels": given, "threshold": threshold, "scores": dict(ranked)}

    def count_classes(self, examples: Sequence[Example], *, classes: int) -> Tensor:
        """(2, C) rows with and without each label; see ``HeadTask.count_classes``."""
        with_it = _targets(examples, classes).sum(0)
        return torch.stack([with_it, len(examples) - with_it])


def evaluate_labels(
    logits: Tensor, targets: Tensor, *, labels: Sequence[str], threshold: float = ONE_HALF
) -> Evaluation:
    """Metrics of label scores.

    Args:
        logits: (N, C) on the CPU.
        targets: (N, C) 1 where a row has the label.
        labels: C names.
        threshold: Least probability of a label that is given.

    Returns:
        ``loss`` (binary cross entropy in nats, mean over rows and labels), ``micro_f1`` over all
        decisions, ``macro_f1`` (unweighted mean over all labels; a label that is neither true nor
        given anywhere counts as 0), ``weighted_f1`` (each label by its targets),
        ``subset_accuracy``, the share of rows without any mistake, and ``ece``, the calibration
        error of all decisions; ``details`` has ``classes``.
    """
    # Imported late: it takes a second that every start of a process would wait for.
    from sklearn.metrics import accuracy_score, f1_score

    wanted = targets.double().numpy()
    shares = logits.double().sigmoid()
    decided = shares > threshold
    given = decided.double().numpy()
    losses = binary_cross_entropy_with_logits(
        logits.double(), targets.double(), reduction="none"
    ).mean(1)
    # how sure of each decision, whether it gives the label or not
    sure = torch.where(decided, shares, 1 - shares).flatten().numpy()
    right = (wanted == given).astype(np.float64)
    owners = np.repeat(np.arange(len(wanted)), wanted.shape[1])
    counts = ClassCounts.of_labels(wanted, given)
    rows = {
        "loss": mean_of_rows(losses.numpy()),
        "micro_f1": micro_f1_of_labels(wanted, given),
        "macro_f1": counts.metric(macro_f1_of_all),
        "weighted_f1": counts.metric(weighted_f1),
        "subset_accuracy": mean_of_rows(right.all(1).astype(np.float64)),
        "ece": calibration_error(sure, right.flatten(), owners=owners, rows=len(wanted)),
    }
    values = {
        f"{kind}_f1": float(f1_score(wanted, given, average=kind, zero_division=0))
        for kind in ("micro", "macro", "weighted")
    }
    values["subset_accuracy"] = float(accuracy_score(wanted, given))
    return evaluation_of(rows, values=values, details={"classes": counts.table(labels)})


def _threshold(head: Head) -> float:
    return spec_of(head.spec, HeadSpec).threshold or ONE_HALF


def _labels(record: Record) -> list[str]:
    """Labels of a record.

    Raises:
        DataError: The record has a single ``label``, unlike others of the set.
    """
    if "labels" not in record:
        raise DataError(
            "some rows have `labels` and some `label`; give `labels` in every row",
            code="mixed_labels",
            param="dataset_id",
        )
    return [str(label) for label in record["labels"]]


def _numbers(labels: tuple[str, ...] | None, record: Record) -> list[int]:
    return [] if labels is None else sorted(class_numbers(labels, _labels(record)))


def _targets(examples: Sequence[Example], classes: int) -> Tensor:
    """(N, C) 1 where a row has the label, fp32."""
    found = torch.zeros(len(examples), classes)  # (N, C)
    for place, example in enumerate(examples):
        found[place, example.target] = 1
    return found

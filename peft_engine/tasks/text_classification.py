"""Text classification: one label for a text or a pair of texts.

A linear head over pooled features belongs to the delta. It starts as the classifier that fits the
frozen features best, so training starts at the frozen floor and not at chance.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from peft_engine.bases.base import Base
from peft_engine.bases.pooling import pool
from peft_engine.configs.manifest import AnyHeadSpec, HeadSpec
from peft_engine.parts.batching import Batch, Example
from peft_engine.parts.classes import evaluate_logits, label_answer
from peft_engine.parts.fits import fit_head
from peft_engine.parts.hidden_layer import last_features
from peft_engine.parts.statistics import Evaluation
from peft_engine.tasks.likelihood import BEFORE_LABEL_LIKELIHOOD, score_labels
from peft_engine.tasks.passes import (
    class_baselines,
    class_loss,
    class_numbers,
    class_targets,
    encode_rows,
    evaluate_with_head,
    extend_class_head,
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


class TextClassification:
    """Single-label classification of texts and pairs."""

    name = "text-classification"
    kind = "linear"
    metric = "accuracy"
    metrics: tuple[str, ...] = ("loss", "accuracy", "macro_f1", "weighted_f1", "mcc", "ece")
    weighs_classes = True
    max_length_tokens = 256

    def find_labels(self, records: Sequence[Record]) -> tuple[str, ...]:
        """Every label of the training records, sorted; see ``Task.find_labels``."""
        return sorted_labels({str(record["label"]) for record in records})

    def encode(
        self,
        base: Base,
        records: Sequence[Record],
        *,
        labels: tuple[str, ...] | None,
        max_length: int,
    ) -> list[Example]:
        """Texts to tokens, labels to class numbers; see ``Task.encode``."""
        targets = class_numbers(labels, [str(record.get("label")) for record in records])
        rows = encode_rows(base, [texts_of(r) for r in records], max_length=max_length)
        return [
            Example((row,), target, cut, record=place)
            for place, ((row, cut), target) in enumerate(zip(rows, targets, strict=True))
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
        """Multinomial logistic regression; see ``HeadTask.first_head``."""
        spec = HeadSpec(pooling=frozen.base.pooling.mode, normalize=True, scale=1.0)
        features = frozen.features(self, spec, examples)  # (N, D)
        names = labels or ()
        targets = class_targets(examples)
        fitted = fit_head(features, targets, classes=len(names), check=frozen.check)
        return Head(spec, fitted, names)

    def extend_head(
        self,
        tuned: FeatureSource,
        head: Head,
        examples: Sequence[Example],
        *,
        labels: tuple[str, ...] | None,
    ) -> Head:
        """Rows for new labels; see ``GrowingTask.extend_head``."""
        return extend_class_head(self, tuned, head, examples, labels=labels)

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
        """Cross entropy, summed over rows; see ``Task.loss``."""
        return class_loss(
            self,
            head,
            hidden,
            batch,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
        )

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
        """See ``classes.evaluate_logits`` and ``Task.evaluate``."""
        return evaluate_with_head(self, forward, head, examples, records, batch_size=batch_size)

    def score(
        self,
        head: Head,
        examples: Sequence[Example],
        records: Sequence[Record],  # noqa: ARG002  protocol
        logits: Sequence[Tensor],
    ) -> Evaluation:
        """See ``classes.evaluate_logits``."""
        targets = class_targets(examples).numpy()
        return evaluate_logits(stack_one(logits), targets, labels=head.labels)

    def baselines(
        self, frozen: Frozen, head: Head, train: Encoded, asked: Encoded
    ) -> tuple[Baseline, ...]:
        """Centroid, majority, and labels by likelihood; see ``HeadTask.baselines``."""
        targets = class_targets(asked.examples)
        found = class_baselines(
            frozen.features(self, head.spec, train.examples),
            class_targets(train.examples),
            frozen.features(self, head.spec, asked.examples),
            targets,
            labels=head.labels,
        )
        if not frozen.base.generates:
            return found
        limit = min(frozen.base.max_length, self.max_length_tokens)
        scored = score_labels(frozen, asked.records, head.labels, max_length=limit)
        wanted = targets[scored.rows].numpy()
        evaluation = evaluate_logits(torch.stack(scored.scores), wanted, labels=head.labels)
        return (Baseline(evaluation, BEFORE_LABEL_LIKELIHOOD, len(scored.rows)), *found)

    def answer(
        self,
        head: Head,
        examples: Sequence[Example],  # noqa: ARG002  protocol
        logits: Sequence[Tensor],
    ) -> dict[str, Any]:
        """``label``, ``score`` and ``scores``; see ``HeadTask.answer``."""
        return label_answer(head.labels, logits[0][0].softmax(-1).tolist())

    def count_classes(self, examples: Sequence[Example], *, classes: int) -> Tensor:
        """(C,) rows of each class; see ``HeadTask.count_classes``."""
        return torch.bincount(class_targets(examples), minlength=classes)

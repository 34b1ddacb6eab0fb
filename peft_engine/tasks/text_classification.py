"""Text classification: one label for a text or a pair of texts.

A linear head over pooled features belongs to the delta. It starts as the classifier that fits the
frozen features best, so training starts at the frozen floor and not at chance.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from peft_engine.bases.base import Base
from peft_engine.bases.pooling import pool
from peft_engine.errors import DataError, RowError
from peft_engine.parts.batching import Batch, Example, batches_by_length, collate
from peft_engine.parts.statistics import Evaluation, Floats, RowStatistics, ratio_of_sums
from peft_engine.tasks.protocol import Forward, Head, LossSum, Record

# Legend of axes: B rows of a batch, N rows of a split, T tokens, D width, C classes.


class TextClassification:
    """Single-label classification of texts and pairs."""

    name = "text-classification"
    architectures = frozenset({"encoder", "causal"})
    metric = "accuracy"
    higher_is_better = True
    max_length_tokens = 256

    def find_labels(self, records: Sequence[Record]) -> tuple[str, ...]:
        """Every label of the training records, sorted.

        Args:
            records: Canonical training records.

        Returns:
            The class names.

        Raises:
            DataError: Several labels in a row, or fewer than two in all.
        """
        if any("labels" in record for record in records):
            raise DataError(
                "rows with several labels are not offered yet; give one `label` a row",
                code="task_not_supported",
                param="dataset_id",
            )
        labels = tuple(sorted({str(record["label"]) for record in records}))
        if len(labels) < 2:
            raise DataError(
                f"classification needs two labels at least, found {len(labels)}",
                code="too_few_labels",
                param="dataset_id",
            )
        return labels

    def encode(
        self,
        base: Base,
        records: Sequence[Record],
        *,
        labels: tuple[str, ...] | None,
        max_length: int,
    ) -> list[Example]:
        """Texts to tokens, labels to class numbers.

        Args:
            base: Its tokenizer is used.
            records: Canonical records.
            labels: Class names.
            max_length: Longest row in tokens.

        Returns:
            One example for each record.

        Raises:
            DataError: A label that the training split does not have.
        """
        number = {label: index for index, label in enumerate(labels or ())}
        unknown = sorted({str(r["label"]) for r in records} - set(number)) if number else []
        if unknown:
            raise DataError(
                f"labels {', '.join(unknown[:5])} are not in the training split",
                code="unknown_label",
                param="dataset_id",
            )
        encoded = base.text.encode_inputs([_texts(r) for r in records], max_length=max_length)
        return [
            Example(
                found.input_ids,
                found.type_ids if base.info.model_type == "bert" else None,
                number.get(str(record.get("label")), -1),
                found.cut_tokens,
            )
            for found, record in zip(encoded, records, strict=True)
        ]

    def encode_input(self, base: Base, value: Any, *, max_length: int) -> Example:
        """One input of a prediction.

        Args:
            base: Its tokenizer is used.
            value: ``"text"`` or ``{"text", "text_pair"}``.
            max_length: Longest row in tokens; longer ones are refused, not cut.

        Returns:
            The example.

        Raises:
            RowError: Wrong shape (``bad_input``) or too long (``too_long``).
        """
        record = {"text": value} if isinstance(value, str) else value
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise RowError(
                'expected a text or {"text", "text_pair"}', code="bad_input", param="input"
            )
        if not isinstance(record.get("text_pair", ""), str):
            raise RowError("text_pair must be a text", code="bad_input", param="input.text_pair")
        tokens = base.text.count_input_tokens(_texts(record))
        if tokens > max_length:
            raise RowError(
                f"the input has {tokens} tokens and this adapter takes {max_length}",
                code="too_long",
                param="input",
            )
        return self.encode(base, [record], labels=None, max_length=max_length)[0]

    def logits(self, head: Head, hidden: Tensor, mask: Tensor) -> Tensor:
        """Scores of the classes.

        Args:
            head: Linear head.
            hidden: (B, T, D).
            mask: (B, T) 1 for real tokens.

        Returns:
            (B, C) logits in fp32.
        """
        features = pool(hidden, mask, mode=head.spec.pooling, normalize=head.spec.normalize)
        return linear(features * head.spec.scale, head.tensors["weight"], head.tensors["bias"])

    def loss(
        self,
        base: Base,  # noqa: ARG002  protocol
        head: Head | None,
        hidden: Tensor,
        batch: Batch,
        *,
        label_smoothing: float,
    ) -> LossSum:
        """Cross entropy.

        Args:
            base: Not needed.
            head: Linear head.
            hidden: (B, T, D).
            batch: The same rows.
            label_smoothing: Mass spread over all classes.

        Returns:
            Sum over rows.

        Raises:
            DataError: The head is missing.
        """
        if head is None:
            raise DataError("classification needs a head", code="head_missing")
        targets = torch.tensor(batch.targets, device=hidden.device)  # (B,)
        total = cross_entropy(
            self.logits(head, hidden, batch.mask),
            targets,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
        return LossSum(total, batch.rows)

    def evaluate(
        self,
        forward: Forward,
        head: Head | None,
        examples: Sequence[Example],
        records: Sequence[Record],  # noqa: ARG002  protocol
        *,
        batch_size: int,
        generate_rows: int,  # noqa: ARG002  protocol
    ) -> Evaluation:
        """Loss, accuracy and macro F1.

        Args:
            forward: The model.
            head: Linear head.
            examples: Encoded records.
            records: Not needed.
            batch_size: Rows of one forward.
            generate_rows: Not needed.

        Returns:
            The evaluation.

        Raises:
            DataError: The head is missing.
        """
        if head is None:
            raise DataError("classification needs a head", code="head_missing")
        logits = torch.zeros(len(examples), len(head.labels))  # (N, C)
        for rows in batches_by_length(examples, batch_size=batch_size):
            batch = collate(
                [examples[row] for row in rows],
                pad_id=forward.base.text.pad_id,
                device=forward.base.device,
            )
            logits[rows] = self.logits(head, forward.hidden(batch), batch.mask).cpu()
        targets = np.array([example.target for example in examples])
        return evaluate_logits(logits, targets)

    def answers(self, head: Head, logits: Tensor) -> list[dict[str, Any]]:
        """Typed answers.

        Args:
            head: For its labels.
            logits: (B, C).

        Returns:
            ``label``, ``score`` and ``scores`` for each row.
        """
        return [label_answer(head.labels, row) for row in logits.softmax(-1).tolist()]


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


def evaluate_logits(logits: Tensor, targets: np.ndarray[Any, Any]) -> Evaluation:
    """Metrics of class scores.

    Args:
        logits: (N, C) on the CPU.
        targets: (N,) class numbers.

    Returns:
        ``loss`` (mean cross entropy in nats), ``accuracy`` and ``macro_f1``, the unweighted mean
        of F1 over the classes that stand in the targets or the predictions.
    """
    # Importing scikit-learn takes a second, which every start of a process would wait for.
    from sklearn.metrics import accuracy_score, f1_score

    predicted = logits.argmax(-1).numpy()
    losses = cross_entropy(logits.double(), torch.from_numpy(targets), reduction="none").numpy()
    ones = np.ones(len(targets))
    correct = (predicted == targets).astype(np.float64)
    rows = {
        "loss": ratio_of_sums(losses, ones),
        "accuracy": ratio_of_sums(correct, ones),
        "macro_f1": _macro_f1_rows(predicted, targets, logits.shape[1]),
    }
    metrics = {
        "loss": rows["loss"].value,
        "accuracy": float(accuracy_score(targets, predicted)),
        "macro_f1": float(f1_score(targets, predicted, average="macro", zero_division=0)),
    }
    return Evaluation(metrics, rows)


def _macro_f1_rows(
    predicted: np.ndarray[Any, Any], targets: np.ndarray[Any, Any], classes: int
) -> RowStatistics:
    """(N, 3C): hits, predictions and targets of each class."""
    wanted = np.eye(classes)[targets]
    given = np.eye(classes)[predicted]

    def reduce(sums: Floats) -> Floats:
        hits, made, true = np.split(sums, 3, axis=1)  # (R, C) each
        present = (made + true) > 0
        scores = np.where(present, 2 * hits / np.maximum(made + true, 1), 0.0)
        mean: Floats = scores.sum(1) / np.maximum(present.sum(1), 1)
        return mean

    return RowStatistics(np.concatenate([wanted * given, given, wanted], axis=1), reduce)


def _texts(record: Record) -> str | tuple[str, str]:
    pair = record.get("text_pair")
    return str(record["text"]) if pair is None else (str(record["text"]), str(pair))

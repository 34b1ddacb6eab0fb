"""What tasks with a head share: passes over examples, and reading inputs of predictions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import HeadSpec
from peft_engine.errors import DataError, RowError
from peft_engine.parts.batching import Batch, Example, TokenRow, batches_by_length, collate
from peft_engine.parts.classes import evaluate_logits, prior_logits
from peft_engine.parts.fits import centroid_logits, fit_new_classes
from peft_engine.parts.hidden_layer import keep_hidden, last_features
from peft_engine.parts.statistics import Evaluation
from peft_engine.tasks.protocol import (
    Baseline,
    FeatureSource,
    Forward,
    Head,
    HeadTask,
    LossSum,
    Record,
)

# Legend of axes: B rows, T tokens, D width, F features, C classes, N training rows, M asked rows.

BEFORE_CENTROID = "the nearest class centroid of the frozen base's features"
BEFORE_MAJORITY = "the most frequent class of the training rows, no model"


def need_head(head: Head | None) -> Head:
    """The head of a task that cannot do without.

    Args:
        head: The head.

    Returns:
        The same head.

    Raises:
        DataError: There is none.
    """
    if head is None:
        raise DataError("this task needs a head", code="head_missing")
    return head


def batch_logits(task: HeadTask, head: Head | None, hidden: Tensor, batch: Batch) -> Tensor:
    """Scores of a batch.

    Args:
        task: The task.
        head: Its head.
        hidden: (B, T, D).
        batch: The same rows.

    Returns:
        (F, C) in fp32.
    """
    own = need_head(head)
    return task.logits(own, task.features(own.spec, hidden, batch))


def class_loss(
    task: HeadTask,
    head: Head | None,
    hidden: Tensor,
    batch: Batch,
    *,
    label_smoothing: float,
    class_weights: Tensor | None,
) -> LossSum:
    """Cross entropy of examples with one class each.

    Args:
        task: The task.
        head: Its head.
        hidden: (B, T, D).
        batch: The same rows.
        label_smoothing: Mass spread over all classes.
        class_weights: (C,) how much a target of each class counts; None: all alike.

    Returns:
        Sum over rows, weighed where weights are given.
    """
    targets = torch.tensor(batch.targets, device=hidden.device)  # (B,)
    total = cross_entropy(
        batch_logits(task, head, hidden, batch),
        targets,
        weight=class_weights,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    if class_weights is None:
        return LossSum(total, batch.rows)
    return LossSum(total, float(class_weights[targets].sum()))


def extend_class_head(
    task: HeadTask,
    tuned: FeatureSource,
    head: Head,
    examples: Sequence[Example],
    *,
    labels: tuple[str, ...] | None,
) -> Head:
    """A head of exclusive classes with rows for new labels; the old rows stay.

    Args:
        task: The task.
        tuned: Features of the base with the parent's delta.
        head: The parent's head.
        examples: New training examples with one class each.
        labels: The parent's labels, then the new ones.

    Returns:
        The head itself where no label is new.
    """
    names = labels or ()
    if names == head.labels:
        return head
    features = tuned.features(task, head.spec, examples)
    if isinstance(head.spec, HeadSpec):
        features = last_features(head.spec, head.tensors, features)
    fitted = fit_new_classes(
        features,
        class_targets(examples),
        head.tensors,
        classes=len(names),
        check=tuned.check,
    )
    return Head(head.spec, keep_hidden(head.tensors, fitted), names)


def class_targets(examples: Sequence[Example]) -> Tensor:
    """Class numbers of examples with one class each.

    Args:
        examples: N examples.

    Returns:
        (N,) int64.
    """
    return torch.tensor([example.target for example in examples])


def class_baselines(
    known: Tensor,
    targets: Tensor,
    asked: Tensor,
    asked_targets: Tensor,
    *,
    labels: Sequence[str],
) -> tuple[Baseline, ...]:
    """What frozen features and class frequencies are worth where each row has one class.

    Args:
        known: (N, D) features of training rows, of unit length.
        targets: (N,) their classes.
        asked: (M, D) features of the rows to classify.
        asked_targets: (M,) their classes.
        labels: C names.

    Returns:
        The nearest class centroid, and the most frequent class (of equals the first by name).
    """
    classes, rows = len(labels), len(asked)
    guesses = {
        BEFORE_CENTROID: centroid_logits(known, targets, asked, classes=classes),
        BEFORE_MAJORITY: prior_logits(torch.bincount(targets, minlength=classes), rows),
    }
    wanted = asked_targets.numpy()
    return tuple(
        Baseline(evaluate_logits(logits, wanted, labels=labels), what, rows)
        for what, logits in guesses.items()
    )


def split_logits(task: HeadTask, logits: Tensor, examples: Sequence[Example]) -> list[Tensor]:
    """Deal scores back to their examples.

    Args:
        task: The task.
        logits: (F, C).
        examples: In the order of the scores.

    Returns:
        (F, C) of each example.
    """
    counts = [task.count_features(example) for example in examples]
    return list(logits.split(counts))  # type: ignore[no-untyped-call]


def evaluate_with_head(
    task: HeadTask,
    forward: Forward,
    head: Head | None,
    examples: Sequence[Example],
    records: Sequence[Record],
    *,
    batch_size: int,
) -> Evaluation:
    """One pass over a split, then the task's own metrics.

    Args:
        task: The task.
        forward: The model.
        head: Its head.
        examples: Encoded records.
        records: The same records.
        batch_size: Rows of one forward.

    Returns:
        The evaluation.
    """
    found: dict[int, Tensor] = {}
    for places in batches_by_length(examples, batch_size=batch_size):
        own = [examples[place] for place in places]
        batch = collate(own, pad_id=forward.base.text.pad_id, device=forward.base.device)
        logits = batch_logits(task, head, forward.hidden(batch), batch).detach().cpu()
        found |= zip(places, split_logits(task, logits, own), strict=True)
    ordered = [found[place] for place in range(len(examples))]
    return task.score(need_head(head), examples, records, ordered)


def stack_one(logits: Sequence[Tensor]) -> Tensor:
    """Scores of examples with one feature each.

    Args:
        logits: N of (1, C).

    Returns:
        (N, C).
    """
    return torch.cat(list(logits)) if logits else torch.zeros(0, 1)


def read_object(value: Any, shape: str, *, texts: Sequence[str] = ()) -> Mapping[str, Any]:
    """An input that must be an object.

    Args:
        value: What was asked.
        shape: How it should look, for the message.
        texts: Fields that must be texts with something visible.

    Returns:
        The object.

    Raises:
        RowError: It is none, or a field is no text (``bad_input``).
    """
    if not isinstance(value, Mapping):
        raise RowError(f"expected {shape}", code="bad_input", param="input")
    for name in texts:
        if not isinstance(value.get(name), str) or not value[name].strip():
            raise RowError(
                f"{name} must be a text; expected {shape}",
                code="bad_input",
                param=f"input.{name}",
            )
    return value


def read_text_input(base: Base, value: Any, *, max_length: int) -> Record:
    """A text or a pair of texts that are read in one row, by the base's own template.

    Args:
        base: Its tokenizer is used.
        value: ``"text"`` or ``{"text", "text_pair"}``.
        max_length: Most tokens.

    Returns:
        The record.

    Raises:
        RowError: Wrong shape (``bad_input``) or too long (``too_long``).
    """  # noqa: DOC502  raised below
    record = read_texts(value)
    check_length(base.text.count_input_tokens(texts_of(record)), max_length)
    return record


def read_texts(value: Any) -> Record:
    """A text or a pair of texts of any length.

    Args:
        value: ``"text"`` or ``{"text", "text_pair"}``.

    Returns:
        The record.

    Raises:
        RowError: Wrong shape (``bad_input``).
    """
    record = {"text": value} if isinstance(value, str) else value
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise RowError('expected a text or {"text", "text_pair"}', code="bad_input", param="input")
    if not isinstance(record.get("text_pair", ""), str):
        raise RowError("text_pair must be a text", code="bad_input", param="input.text_pair")
    return record


def check_length(tokens: int, max_length: int) -> None:
    """Refuse an input that does not fit, or that is nothing.

    Args:
        tokens: Its length.
        max_length: Most tokens.

    Raises:
        RowError: It is too long (``too_long``), or has no token (``bad_input``): a base without a
            first token of its own makes none of an empty text.
    """
    if tokens == 0:
        raise RowError("the input has no token: its text is empty", code="bad_input", param="input")
    if tokens > max_length:
        raise RowError(
            f"the input has {tokens} tokens and {max_length} are read at most",
            code="too_long",
            param="input",
        )


def texts_of(record: Record) -> str | tuple[str, str]:
    """The text of a record, or both texts.

    Args:
        record: With ``text`` and perhaps ``text_pair``.

    Returns:
        A text or a pair.
    """
    pair = record.get("text_pair")
    return str(record["text"]) if pair is None else (str(record["text"]), str(pair))


def encode_rows(
    base: Base, inputs: Sequence[str | tuple[str, str]], *, max_length: int
) -> list[tuple[TokenRow, int]]:
    """Texts or pairs as rows.

    Args:
        base: Its tokenizer is used.
        inputs: Texts or pairs.
        max_length: Longest row in tokens.

    Returns:
        A row and the number of tokens that did not fit, for each input.

    Raises:
        DataError: A row has no token (``nothing_to_learn``).
    """
    found = base.text.encode_inputs(inputs, max_length=max_length)
    if not all(one.input_ids for one in found):
        raise DataError(
            "a row has no token: its text is empty", code="nothing_to_learn", param="dataset_id"
        )
    tells_apart = base.tells_texts_apart
    return [
        (TokenRow(one.input_ids, one.type_ids if tells_apart else None), one.cut_tokens)
        for one in found
    ]


def class_numbers(labels: tuple[str, ...] | None, asked: Sequence[str]) -> list[int]:
    """Numbers of class names.

    Args:
        labels: The class names in order; None: nothing is known, and every number is -1.
        asked: Names.

    Returns:
        The number of each.

    Raises:
        DataError: A name that the training split does not have.
    """
    if labels is None:
        return [-1] * len(asked)
    number = {label: index for index, label in enumerate(labels)}
    unknown = sorted(set(asked) - set(number))
    if unknown:
        raise DataError(
            f"labels {', '.join(unknown[:5])} are not in the training split",
            code="unknown_label",
            param="dataset_id",
        )
    return [number[label] for label in asked]


def sorted_labels(found: set[str]) -> tuple[str, ...]:
    """Class names in order.

    Args:
        found: Names of a training split.

    Returns:
        The names, sorted.

    Raises:
        DataError: Fewer than two.
    """
    if len(found) < 2:
        raise DataError(
            f"classification needs two labels at least, found {len(found)}",
            code="too_few_labels",
            param="dataset_id",
        )
    return tuple(sorted(found))

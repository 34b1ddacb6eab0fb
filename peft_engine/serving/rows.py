"""Rows of a prediction: checked and tokenised before they reach the model.

Nothing here touches the model's weights, so it may run in any thread.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from peft_engine.bases.base import Base
from peft_engine.delta import Delta
from peft_engine.errors import DataError, RowError
from peft_engine.generation import Sampling
from peft_engine.parts.batching import Example, TokenRow
from peft_engine.serving.options import read_samplings, refuse_options
from peft_engine.serving.scoring import (
    ANSWERS,
    can_share,
    computed_tokens,
    encode_answers,
    read_answers,
)
from peft_engine.tasks.protocol import HeadTask
from peft_engine.tasks.table import HEAD_TASKS
from peft_engine.tasks.text_classification import TextClassification
from peft_engine.tasks.text_generation import TextGeneration

Kind = Literal["head", "zero-shot", "embed", "generate", "score"]

MAX_ZERO_SHOT_LABELS = 1000
_KEPT_LABEL_SETS = 16

EMBEDDING = "embedding"
"""What an encoder does for a text without being trained for a task, by itself or under a delta."""

_CLASSIFICATION = TextClassification()
_GENERATION = TextGeneration()


@dataclass(frozen=True)
class Row:
    """One input as it was asked.

    Attributes:
        task: Name of the task; None: the delta's own, or what the base does by itself;
            ``embedding``: the feature of the text, whatever the delta was trained for.
        input: In the form of the task.
        delta: A resident delta; None is the plain base.
        options: ``labels`` (zero-shot), ``answers`` (to be scored), or those that
            ``read_samplings`` reads.
    """

    task: str | None
    input: Any
    delta: Delta | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PreparedRow:
    """A row that is sure to fit the model.

    Attributes:
        kind: What is computed for it.
        delta: As in the row.
        examples: Tokens of the input; one example for most tasks.
        task: Who reads the delta's head, of a ``head`` row.
        samplings: How each continuation of a generated row chooses: one, or as many as asked.
        labels: Labels of a zero-shot row.
        label_examples: Tokens of those labels.
        prompt_tokens: Of a ``score`` row, whose examples are answers: what each begins with.
        shares_prompt: Whether the base reads that once.
    """

    kind: Kind
    delta: Delta | None
    examples: tuple[Example, ...]
    task: HeadTask | None = None
    samplings: tuple[Sampling, ...] = ()
    labels: tuple[str, ...] = ()
    label_examples: tuple[Example, ...] = ()
    prompt_tokens: int = 0
    shares_prompt: bool = False

    @property
    def input_tokens(self) -> int:
        """Tokens of the input: a text that is read twice counts twice, a prompt of answers once."""
        whole = sum(example.tokens for example in self.examples)
        return whole - self.prompt_tokens * (len(self.examples) - 1)

    @property
    def cost_tokens(self) -> int:
        """Tokens that the row may take in all: input, labels and the longest answer."""
        labels = sum(example.tokens for example in self.label_examples)
        answers = sum(sampling.max_new_tokens for sampling in self.samplings)
        read = computed_tokens(
            self.examples, prompt_tokens=self.prompt_tokens, shares_prompt=self.shares_prompt
        )
        return read * max(1, len(self.samplings)) + labels + answers


class LabelTexts:
    """Tokens of the label sets that rows chose among lately; may be used from any thread.

    All rows of a call have the same labels, of which there may be many times as many as texts.

    Args:
        base: Its tokenizer is used.
    """

    def __init__(self, base: Base) -> None:
        self._base = base
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, ...], tuple[Example, ...]] = OrderedDict()

    def encode(self, labels: tuple[str, ...]) -> tuple[Example, ...]:
        """Tokens of every label.

        Args:
            labels: Texts.

        Returns:
            One example for each.
        """
        with self._lock:
            found = self._kept.get(labels)
            if found is None:
                texts = [{"text": label.replace("_", " ")} for label in labels]
                limit = min(self._base.max_length, _CLASSIFICATION.max_length_tokens)
                encoded = _CLASSIFICATION.encode(self._base, texts, labels=None, max_length=limit)
                found = self._kept[labels] = tuple(encoded)
            self._kept.move_to_end(labels)
            if len(self._kept) > _KEPT_LABEL_SETS:
                self._kept.popitem(last=False)
        return found


def prepare_row(base: Base, row: Row, labels: LabelTexts | None = None) -> PreparedRow:
    """Check and tokenise a row.

    Args:
        base: The base that will answer.
        row: The row.
        labels: Where tokens of labels are kept; None: they are made for this row.

    Returns:
        The row, ready.

    Raises:
        RowError: Codes ``base_mismatch``, ``task_mismatch``, ``bad_input``, ``bad_option``,
            ``too_long``, ``template_refused``.
    """  # noqa: DOC502  raised below
    task = _task_of(base, row)
    if task == EMBEDDING:
        return _prepare_embedding(base, row)
    if task == "text-generation":
        return _prepare_generation(base, row)
    if row.delta is not None:
        return _prepare_head(base, row, row.delta)
    return _prepare_plain_encoder(base, row, labels or LabelTexts(base))


def _prepare_head(base: Base, row: Row, delta: Delta) -> PreparedRow:
    """An input for the head of a delta.

    Raises:
        RowError: The delta has no head (``task_mismatch``).
    """
    refuse_options(row.options, frozenset())
    spec = delta.manifest.head
    if spec is None:
        raise RowError("this adapter has no head to answer with", code="task_mismatch")
    task = HEAD_TASKS[spec.kind]
    # never more than the base has places for, whatever a file says: on a GPU an index beyond a
    # table ends the process, not the request
    most = min(delta.manifest.max_length, base.max_length)
    found = task.encode_input(base, row.input, max_length=most, spec=spec)
    return PreparedRow("head", delta, tuple(found), task)


def _task_of(base: Base, row: Row) -> str:
    if row.delta is not None and row.delta.manifest.base_fingerprint != base.fingerprint:
        raise RowError(
            f"this adapter belongs to another base ({row.delta.manifest.base_model})",
            code="base_mismatch",
            param="base_model",
        )
    if row.task == EMBEDDING:
        if base.architecture != "encoder":
            raise RowError(
                f"{base.name} gives no embeddings; only encoders do",
                code="task_mismatch",
                param="task",
            )
        return EMBEDDING
    if row.delta is None:
        own = "text-generation" if base.generates else "text-classification"
        if row.task not in (None, own):
            raise RowError(
                f"the plain base {base.name} does not do {row.task}; it does {own}",
                code="task_mismatch",
                param="task",
            )
        return own
    manifest = row.delta.manifest
    if row.task not in (None, manifest.task):
        raise RowError(
            f"this adapter was trained for {manifest.task}, not {row.task}",
            code="task_mismatch",
            param="task",
        )
    return manifest.task


def _prepare_embedding(base: Base, row: Row) -> PreparedRow:
    """A text or a pair whose pooled feature is asked for, with the delta in force."""
    refuse_options(row.options, frozenset())
    return PreparedRow("embed", row.delta, _read_text(base, row.input))


def _read_text(base: Base, value: Any) -> tuple[Example, ...]:
    limit = min(base.max_length, _CLASSIFICATION.max_length_tokens)
    return tuple(_CLASSIFICATION.encode_input(base, value, max_length=limit))


def _prepare_plain_encoder(base: Base, row: Row, texts: LabelTexts) -> PreparedRow:
    """Without labels the plain encoder gives its feature; with labels it picks the nearest.

    Raises:
        RowError: ``labels`` are not a list of texts.
    """
    refuse_options(row.options, frozenset({"labels"}))
    labels = row.options.get("labels")
    if labels is None:
        return _prepare_embedding(base, row)
    examples = _read_text(base, row.input)
    valid = isinstance(labels, Sequence) and not isinstance(labels, str)
    if not valid or not 2 <= len(labels) <= MAX_ZERO_SHOT_LABELS:
        raise RowError(
            f"labels must be a list of 2 to {MAX_ZERO_SHOT_LABELS} texts",
            code="bad_option",
            param="options.labels",
        )
    if not all(isinstance(label, str) and label for label in labels):
        raise RowError("labels must be texts", code="bad_option", param="options.labels")
    if len(set(labels)) < len(labels):
        raise RowError(
            "every label must be there once: equal ones would share a place in the scores",
            code="bad_option",
            param="options.labels",
        )
    own = tuple(labels)
    return PreparedRow("zero-shot", None, examples, labels=own, label_examples=texts.encode(own))


def _prepare_generation(base: Base, row: Row) -> PreparedRow:
    """A prompt to go on with.

    Raises:
        RowError: The base's chat template refuses it (``template_refused``), or it does not fit.
    """
    if ANSWERS in row.options:
        return _prepare_scored(base, row)
    try:
        ids = _GENERATION.encode_input(base, row.input, max_length=base.max_length)
    except DataError as error:
        raise RowError(error.message, code=error.code, param="input") from error
    samplings = read_samplings(row.options, room=base.answer_room(len(ids)))
    return PreparedRow("generate", row.delta, (Example((TokenRow(ids),)),), samplings=samplings)


def _prepare_scored(base: Base, row: Row) -> PreparedRow:
    """Answers that are read behind their prompt."""
    shares = can_share(base, row.delta)
    examples, prompt_tokens = encode_answers(
        base, row.input, read_answers(row.options), shares_prompt=shares
    )
    return PreparedRow(
        "score", row.delta, examples, prompt_tokens=prompt_tokens, shares_prompt=shares
    )

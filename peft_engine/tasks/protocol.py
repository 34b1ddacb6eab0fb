"""What every task is: records to tokens, hidden states to a loss, an evaluation and typed answers.

One file per task; no task knows another, and no task knows methods or deltas.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import AnyHeadSpec
from peft_engine.errors import DeltaError
from peft_engine.generation import Generated, Sampling
from peft_engine.parts.batching import Batch, Example
from peft_engine.parts.statistics import Evaluation

Record = Mapping[str, Any]
HeadTensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class LossSum:
    """A loss before the mean is taken, so that accumulation weighs every target alike.

    Attributes:
        total: Scalar, summed over the targets.
        count: Number of targets (rows or tokens), or the sum of their weights.
    """

    total: Tensor
    count: float


@dataclass(frozen=True)
class Head:
    """A task head: its specification and its tensors, on the device of the base.

    Attributes:
        spec: How features become logits.
        tensors: Tensors by short name.
        labels: Names of the classes, in the order of the logits.
    """

    spec: AnyHeadSpec
    tensors: HeadTensors
    labels: tuple[str, ...]

    def decide_by_likeliest(self) -> "Head":
        """The same head without what it concedes to F1 in deciding.

        For jobs that are judged by accuracy, and for those with class weights, which move the
        probabilities themselves: both together would go too far.

        Returns:
            A head with the same logits.
        """
        plain = {"outside_penalty": 0.0, "threshold": None}
        own = {name: plain[name] for name in plain.keys() & type(self.spec).model_fields.keys()}
        return replace(self, spec=self.spec.model_copy(update=own))

    def explain_decisions(self) -> str | None:
        """What it concedes to F1 in deciding, for people.

        Returns:
            A sentence; None where it decides by the likeliest.
        """
        half = "half of the F1 over training rows that were left out in turn"
        if threshold := getattr(self.spec, "threshold", None):
            return f"labels are given from a probability of {threshold:g} on: {half}"
        if penalty := getattr(self.spec, "outside_penalty", 0.0):
            return (
                f"O counts {penalty:g} less where tags are decided, so that names likelier than "
                f"{half} are answered"
            )
        return None


class Forward(Protocol):
    """The base, with or without a delta in training, as tasks may use it to evaluate."""

    base: Base

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states without gradients.

        Args:
            batch: B rows.

        Returns:
            (B, T, D); where the batch has rows of a decoder, that decoder's.
        """

    def generate(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]
    ) -> list[Generated]:
        """Continue prompts.

        Args:
            prompts: Token ids of each row.
            samplings: How each row chooses.

        Returns:
            One continuation for each row.
        """


class FeatureSource(Protocol):
    """A base, with or without a delta, as heads are fitted on it."""

    base: Base

    def check(self) -> None:
        """Called between the parts of long work; may raise to interrupt."""

    def features(self, task: "HeadTask", spec: AnyHeadSpec, examples: Sequence[Example]) -> Tensor:
        """Features of examples in order.

        Args:
            task: Decides which features.
            spec: As for ``HeadTask.features``.
            examples: At least one.

        Returns:
            (F, D) fp32 on the CPU.
        """


class Frozen(FeatureSource, Protocol):
    """The plain base; its features are computed once and kept."""

    def measure(self, examples: Sequence[Example], of: Callable[[Tensor, Batch], Tensor]) -> Tensor:
        """One number for each example, by the hidden states of the plain base; nothing is kept.

        Args:
            examples: N examples of one row each.
            of: (B, T, D) hidden states and their batch to (B,) numbers.

        Returns:
            (N,) fp32 on the CPU.
        """


@dataclass(frozen=True)
class Baseline:
    """What can be had without tuning: by the untuned base, or by common sense.

    Attributes:
        evaluation: Its metrics.
        what: What it is, in words.
        rows: Records that it was evaluated on; fewer than the split has where all would cost too
            much, and then it is shown but not compared with.
    """

    evaluation: Evaluation
    what: str
    rows: int


class Task(Protocol):
    """A kind of work that a base can be tuned for."""

    name: str
    metric: str
    """Metric that decides which step is best, and whether the job helped."""
    metrics: tuple[str, ...]
    """Metrics on validation; any of them may decide. ``loss`` is always among them."""
    weighs_classes: bool
    """Whether ``class_weights`` means anything."""
    max_length_tokens: int
    """Upper bound of ``max_length: auto``."""

    def find_labels(self, records: Sequence[Record]) -> tuple[str, ...] | None:
        """Class names of a data set.

        Args:
            records: Canonical training records.

        Returns:
            Sorted names; None for a task without classes.

        Raises:
            DataError: Fewer than two classes.
        """

    def encode(
        self,
        base: Base,
        records: Sequence[Record],
        *,
        labels: tuple[str, ...] | None,
        max_length: int,
    ) -> list[Example]:
        """Records to tokens and targets.

        Args:
            base: Its tokenizer and template are used.
            records: Canonical records; those of a prediction have no target.
            labels: Class names; None: there are no targets.
            max_length: Longest row; longer ones are cut and say so, or become several examples.

        Returns:
            One example for each record, in order, or several that name their record.

        Raises:
            DataError: A label that is not among ``labels``.
        """

    def loss(
        self,
        base: Base,
        head: Head | None,
        hidden: Tensor,
        batch: Batch,
        *,
        label_smoothing: float,
        class_weights: Tensor | None = None,
    ) -> LossSum:
        """Loss of a batch.

        Args:
            base: The base, for its language head.
            head: The task head, if the task has one.
            hidden: (B, T, D).
            batch: The same rows.
            label_smoothing: Mass spread over all classes; without meaning for a task that has
                none.
            class_weights: (C,) how much a target of each class counts.

        Returns:
            Sum and count.
        """

    def evaluate(
        self,
        forward: Forward,
        head: Head | None,
        examples: Sequence[Example],
        records: Sequence[Record],
        *,
        batch_size: int,
        generate_rows: int,
    ) -> Evaluation:
        """Metrics on a split.

        Args:
            forward: The model.
            head: The task head, if the task has one.
            examples: Encoded records.
            records: The same records.
            batch_size: Rows of one forward.
            generate_rows: Rows to answer in full, for metrics of text; 0: none.

        Returns:
            The evaluation.
        """


@runtime_checkable
class HeadTask(Task, Protocol):
    """A task whose head belongs to the delta: a linear map of features of the hidden states."""

    kind: str
    """``kind`` of the specification of its heads; serving finds the task by it."""

    def encode_input(
        self, base: Base, value: Any, *, max_length: int, spec: AnyHeadSpec | None = None
    ) -> list[Example]:
        """One input of a prediction.

        Args:
            base: Its tokenizer is used.
            value: In the form of the task.
            spec: Specification of the head that will answer; None: what ``encode`` would do.
            max_length: Longest row in tokens; longer ones are refused, not cut, unless the task
                reads them in windows.

        Returns:
            Its examples.

        Raises:
            RowError: Wrong shape (``bad_input``) or too long (``too_long``).
        """

    def first_head(
        self, frozen: Frozen, examples: Sequence[Example], *, labels: tuple[str, ...] | None
    ) -> Head:
        """The head that fits the frozen features best: where training starts.

        Args:
            frozen: Features of the plain base.
            examples: Training examples.
            labels: Class names.

        Returns:
            The head, on the CPU.
        """

    def features(self, spec: AnyHeadSpec, hidden: Tensor, batch: Batch) -> Tensor:
        """What the head looks at.

        Args:
            spec: Specification of the head.
            hidden: (B, T, D).
            batch: The same rows.

        Returns:
            (F, D') in fp32; those of one example stand one after another.
        """

    def count_features(self, example: Example) -> int:
        """Number of features of an example.

        Args:
            example: The example.

        Returns:
            How many of the F are its own; may be 0.
        """

    def logits(self, head: Head, features: Tensor) -> Tensor:
        """Scores of features.

        Args:
            head: The head.
            features: (F, D').

        Returns:
            (F, C) in fp32.
        """

    def score(
        self,
        head: Head,
        examples: Sequence[Example],
        records: Sequence[Record],
        logits: Sequence[Tensor],
    ) -> Evaluation:
        """Metrics of scores.

        Args:
            head: The head.
            examples: Encoded records.
            records: The same records.
            logits: (F, C) of each example, on the CPU.

        Returns:
            The evaluation; one row of statistics for each record.
        """

    def baselines(
        self,
        frozen: Frozen,
        head: Head,
        train: "Encoded",
        asked: "Encoded",
    ) -> Sequence[Baseline]:
        """What the untuned base, and common sense, are worth on a split.

        Args:
            frozen: Features of the plain base.
            head: The head that training started from; only its specification and labels matter.
            train: Training split.
            asked: Split to evaluate on.

        Returns:
            At least one on all records of the split.
        """

    def answer(
        self, head: Head, examples: Sequence[Example], logits: Sequence[Tensor]
    ) -> dict[str, Any]:
        """The typed answer of one input.

        Args:
            head: The head.
            examples: The examples of the input.
            logits: (F, C) of each, on the CPU.

        Returns:
            JSON values, in the form of the HTTP contract.
        """

    def count_classes(self, examples: Sequence[Example], *, classes: int) -> Tensor:
        """How often each class is a target, for balanced weights.

        Args:
            examples: Training examples.
            classes: C.

        Returns:
            (C,) counts; (2, C) with and without, for a task whose classes do not exclude one
            another. A task that does not weigh classes gives an empty tensor.
        """


@runtime_checkable
class GrowingTask(HeadTask, Protocol):
    """A task whose heads may meet rows that they were not made for, and must grow or refuse."""

    def extend_head(
        self,
        tuned: FeatureSource,
        head: Head,
        examples: Sequence[Example],
        *,
        labels: tuple[str, ...] | None,
    ) -> Head:
        """Make a trained head fit new rows; what it knows already stays as it is.

        Args:
            tuned: Features of the base with the delta that the head belongs to.
            head: The head, on the CPU.
            examples: Training examples, their targets by ``labels``.
            labels: Class names, those of the head first and in its order.

        Returns:
            The very same head when nothing is new; else a larger one, on the CPU.

        Raises:
            ConfigError: The rows are of a form that this head cannot read.
        """


@runtime_checkable
class NamingTask(HeadTask, Protocol):
    """A task whose answers are parts of the text, not all of which its words can name."""

    def count_unnamed(
        self, examples: Sequence[Example], records: Sequence[Record], *, labels: tuple[str, ...]
    ) -> tuple[int, int]:
        """True parts of known types that no answer can name: their ends do not fall on words.

        Args:
            examples: Encoded records, with targets.
            records: The same records.
            labels: Class names that they were encoded with.

        Returns:
            How many there are, and how many parts with character offsets in all.
        """


@dataclass(frozen=True)
class Encoded:
    """One split.

    Attributes:
        records: Canonical records.
        examples: The same as tokens; see ``Example.record``.
    """

    records: Sequence[Record]
    examples: Sequence[Example]


SpecType = TypeVar("SpecType")


def spec_of(spec: AnyHeadSpec, wanted: type[SpecType]) -> SpecType:
    """The specification as the type that a task knows.

    Args:
        spec: Any specification.
        wanted: The type.

    Returns:
        The same object.

    Raises:
        DeltaError: It is of another type.
    """
    if not isinstance(spec, wanted):
        raise DeltaError(f"a head of kind {spec.kind!r} is not of this task", code="delta_corrupt")
    return spec

"""What every task is: records to tokens, hidden states to a loss, an evaluation and typed answers.

One file per task; no task knows another, and no task knows methods or deltas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import HeadSpec
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
        count: Number of targets (rows or tokens).
    """

    total: Tensor
    count: int


@dataclass(frozen=True)
class Head:
    """A task head: its specification and its tensors, on the device of the base.

    Attributes:
        spec: How features become logits.
        tensors: Tensors by short name.
        labels: Names of the classes, in the order of the logits.
    """

    spec: HeadSpec
    tensors: HeadTensors
    labels: tuple[str, ...]


class Forward(Protocol):
    """The base, with or without a delta in training, as tasks may use it to evaluate."""

    base: Base

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states without gradients.

        Args:
            batch: B rows.

        Returns:
            (B, T, D).
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


class Task(Protocol):
    """A kind of work that a base can be tuned for."""

    name: str
    architectures: frozenset[str]
    """Families of bases on which the task is offered."""
    metric: str
    """Metric that decides which step is best, and whether the job helped."""
    higher_is_better: bool
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
            records: Canonical records.
            labels: Class names.
            max_length: Longest row; longer ones are cut and say so.

        Returns:
            One example for each record, in order.

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
    ) -> LossSum:
        """Loss of a batch.

        Args:
            base: The base, for its language head.
            head: The task head, if the task has one.
            hidden: (B, T, D).
            batch: The same rows.
            label_smoothing: Mass spread over all classes.

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

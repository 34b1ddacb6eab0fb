"""What an estimate says."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from peft_engine.training.estimating.fitting import Trial
from peft_engine.training.estimating.memory import Measure
from peft_engine.training.estimating.spread import Spread


@dataclass(frozen=True)
class Memory:
    """What the job takes.

    Attributes:
        peak_bytes: Most of all that was measured; None where it cannot be told.
        measure: ``allocated`` by CUDA's allocator, the base included, or ``resident_growth`` of the
            process, the base not included.
        base_bytes: The base alone.
    """

    peak_bytes: int | None
    measure: Measure | None
    base_bytes: int


@dataclass(frozen=True)
class Seconds:
    """How long the parts of the job take, from its rows to its last report.

    Attributes:
        total: All of it, if nothing ends the run early.
        preparing: Tokens, the first head, choices by data.
        steps: Optimizer steps.
        validations: Evaluations during training.
        reports: Evaluations at the end.
        writing: Texts of all evaluations.
    """

    total: Spread
    preparing: Spread
    steps: Spread
    validations: Spread
    reports: Spread
    writing: Spread


@dataclass(frozen=True)
class Estimate:
    """What a job would take.

    Attributes:
        fits: Whether steps on its largest batch, and its evaluations, came through.
        suggestion: Where it does not fit, settings of ``training`` with which it does; None where
            nothing was found, or needed. Everything below is measured with them.
        trials: Every setting that was tried, as asked first.
        resolved: Every ``auto``; None where nothing fits.
        why: Reasons, by name of the setting.
        memory: What it takes.
        seconds: How long; None where nothing fits.
        tokens: Real tokens of all steps.
        tokens_per_second: Of steps alone.
        total_steps: Optimizer steps.
        validations: Evaluations during training.
        trainable_parameters: Values that are trained, the head included.
        head_parameters: Those of the head.
        base_parameters: Values of the frozen base.
        adapter_bytes: The tensors of the adapter's file.
        rows: Records of each split.
        rows_read: How many of them were read.
        notes: What a reader should know, in sentences.
        measured_seconds: How long measuring took.
    """

    fits: bool
    suggestion: Mapping[str, Any] | None
    trials: Sequence[Trial]
    resolved: Mapping[str, Any] | None
    why: Mapping[str, str]
    memory: Memory
    seconds: Seconds | None
    tokens: int | None
    tokens_per_second: float | None
    total_steps: int | None
    validations: int | None
    trainable_parameters: int | None
    head_parameters: int | None
    base_parameters: int
    adapter_bytes: int | None
    rows: Mapping[str, int]
    rows_read: Mapping[str, int]
    notes: Sequence[str]
    measured_seconds: float

    def as_json(self) -> dict[str, Any]:
        """The estimate as JSON values.

        Returns:
            Its attributes by name.
        """
        return asdict(self)

"""Answers about estimates. What may be asked is ``peft_engine.configs.JobSpec``, as for a job."""

from typing import Any, Literal

from pydantic import Field

from app.schemas.shared import Moment, Sent
from core.states import EstimateStatus


class EstimateError(Sent):
    """Why there is no estimate."""

    code: str
    message: str
    param: str | None = None


class EstimatedSeconds(Sent):
    """Seconds, and what they may vary by: a quarter of `likely` at least, as runs were seen to."""

    likely: float
    low: float = Field(description="As little as was measured, or less.")
    high: float = Field(
        description="As much as was measured, or texts as long as they may be, or more."
    )


class SecondsOfParts(Sent):
    """How long each part of the job takes; loading a base and the certificate come besides."""

    total: EstimatedSeconds = Field(description="All parts, if nothing ends the run early.")
    preparing: EstimatedSeconds = Field(
        description="Rows to tokens, the first head, choices by data."
    )
    steps: EstimatedSeconds = Field(description="Optimizer steps.")
    validations: EstimatedSeconds = Field(description="Evaluations during training.")
    reports: EstimatedSeconds = Field(description="Evaluations at the end.")
    writing: EstimatedSeconds = Field(description="Texts that the evaluations write.")


class EstimatedMemory(Sent):
    """What the job takes of memory."""

    peak_bytes: int | None = Field(None, description="The most; null where it cannot be told.")
    measure: Literal["allocated", "resident_growth"] | None = Field(
        None,
        description="`allocated` on a GPU, the base included; `resident_growth` of the process on "
        "a CPU, the base not included.",
    )
    base_bytes: int = Field(description="The base alone.")


class EstimateTrial(Sent):
    """Settings under which two real steps on the largest batch were tried."""

    batch_size: int
    gradient_accumulation: int
    gradient_checkpointing: bool
    max_length: int
    fits: bool
    peak_bytes: int | None = None


class EstimateResult(Sent):
    """What was measured. Where nothing fits, what follows `trials` is null."""

    fits: bool = Field(description="Whether the job fits as it was asked for.")
    suggestion: dict[str, Any] | None = Field(
        None,
        description="Fields of `training` with which it does fit, where it does not; everything "
        "else here was measured with them.",
    )
    trials: list[EstimateTrial]
    resolved: dict[str, Any] | None = Field(None, description="What every `auto` comes to.")
    why: dict[str, str] = Field(description="Reasons, by name of the setting.")
    memory: EstimatedMemory
    seconds: SecondsOfParts | None = None
    tokens: int | None = Field(None, description="Real tokens of all steps.")
    tokens_per_second: float | None = Field(None, description="Of steps alone.")
    total_steps: int | None = None
    validations: int | None = None
    trainable_parameters: int | None = None
    head_parameters: int | None = None
    base_parameters: int
    adapter_bytes: int | None = Field(None, description="The tensors of the adapter's file.")
    rows: dict[str, int]
    rows_read: dict[str, int] = Field(description="Of a very large split only a part is read.")
    notes: list[str] = Field(description="What a reader should know, in sentences.")
    measured_seconds: float = Field(description="How long measuring took.")
    device: str = Field(description="Where it was measured.")


class JobEstimate(Sent):
    """An estimate as its job shows it."""

    id: str = Field(examples=["est_06f1k2m3n4p5q6r7s8t9v0w1x2"])
    status: EstimateStatus
    reason: str | None = Field(None, description="Why it waits, or why it was given up.")
    result: EstimateResult | None = None
    error: EstimateError | None = None


class EstimateAnswer(JobEstimate):
    """An estimate as it stands now."""

    object: Literal["estimate"] = "estimate"
    queue_position: int | None = Field(
        None, description="How many jobs and estimates are queued before it; 0 is the next."
    )
    dataset_id: str
    base_model: str
    task: str | None = None
    spec: dict[str, Any] = Field(description="Everything asked for with defaults filled in.")
    attempt: int = Field(description="How many times a worker has taken it.")
    job_id: str | None = Field(None, description="The job that it was made with, if it was.")
    created_at: Moment
    started_at: Moment | None = None
    finished_at: Moment | None = None

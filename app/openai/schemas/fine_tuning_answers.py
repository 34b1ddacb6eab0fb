"""Answers about fine-tuning jobs."""

from typing import Any, Literal

from pydantic import Field

from app.schemas.jobs import JobAnswer, JobError
from app.schemas.shared import Sent

JobStatusName = Literal[
    "validating_files",
    "queued",
    "running",
    "pausing",
    "paused",
    "succeeded",
    "failed",
    "cancelled",
]


class HyperparametersInForce(Sent):
    """`auto` until it is resolved."""

    batch_size: int | str
    n_epochs: float | str
    learning_rate_multiplier: Literal[1] = Field(1, description="Rates are not multiplied.")


class SupervisedInForce(Sent):
    """Settings of supervised training."""

    hyperparameters: HyperparametersInForce


class MethodInForce(Sent):
    """How the job learns; `x_tunery.spec.method` says what it trains."""

    type: Literal["supervised"] = "supervised"
    supervised: SupervisedInForce


class FineTuningJob(Sent):
    """A job as it stands now."""

    id: str = Field(examples=["job_06f1k2m3n4p5q6r7s8t9v0w1x2"])
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    created_at: int = Field(description="Unix seconds, as all moments here.")
    model: str = Field(description="The base that is trained on.")
    training_file: str
    validation_file: str | None = None
    status: JobStatusName = Field(
        description="`cancelling` of a native job is `running` until it has stopped."
    )
    fine_tuned_model: str | None = Field(
        None, description="`name@version`, which `/v1/chat/completions` takes as `model`."
    )
    finished_at: int | None = None
    estimated_finish: int | None = Field(
        None, description="null while it cannot be known: before the first steps, and in waiting."
    )
    trained_tokens: int | None = Field(
        None, description="Of all steps, once the job has ended; padding is not counted."
    )
    seed: int
    organization_id: str = Field(description="Your tenant.")
    result_files: list[str] = Field(
        default_factory=list, description="Always empty: curves are in `GET /jobs/{id}/metrics`."
    )
    hyperparameters: HyperparametersInForce
    method: MethodInForce
    integrations: None = None
    metadata: dict[str, str]
    error: JobError | None = None
    x_tunery: JobAnswer = Field(description="The job as `GET /jobs/{id}` shows it.")


class JobEvent(Sent):
    """One thing that happened to a job."""

    id: str = Field(examples=["ftevent-17"])
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"] = Field(description="`metrics`: `data` has the progress.")
    data: dict[str, Any] | None = None


class CheckpointMetrics(Sent):
    """What was measured at the step of a checkpoint; null where nothing was."""

    step: int
    train_loss: float | None = None
    valid_loss: float | None = None
    valid_mean_token_accuracy: float | None = None


class JobCheckpoint(Sent):
    """A step that a killed job goes on from, and that can be asked while it is there."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str | None = Field(
        None,
        description="What to send as `model`, while the checkpoint is there; null only for one "
        "that an earlier version of the service wrote.",
        examples=["ft:smollm2:ten_06f1k2m3n4:menu-texts:job_06f1k2m3n4:ckpt-step-40"],
    )
    step_number: int
    metrics: CheckpointMetrics

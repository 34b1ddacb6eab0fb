"""Checkpoints of a job: what is shown of them, and what may be asked of one."""

from typing import Literal

from pydantic import Field

from app.schemas.shared import Asked, Moment, Name, Sent, Text


class MeasuredAt(Sent):
    """What validation found at a step."""

    step: int
    metrics: dict[str, float | None]


class CheckpointAnswer(Sent):
    """A step that a killed job goes on from, and that can be asked while it is there."""

    id: str = Field(
        description="Send it as `adapter_id` to `POST /predict`.",
        examples=["ckpt_06f1k2m3n4p5q6r7s8t9v0w1x2"],
    )
    object: Literal["checkpoint"] = "checkpoint"
    job_id: str
    step: int
    attempt: int
    bytes: int = Field(description="`delta_bytes` of them answer, the others train.")
    delta_bytes: int | None = None
    sha256: str = Field(description="Of the part that only training reads.")
    digest: str | None = Field(
        None,
        description="Of the delta, as receipts and a published adapter have it.",
    )
    can_predict: bool = Field(
        description="false for one whose weights are lost, or that an earlier version wrote."
    )
    model: str | None = Field(None, description="Its name as `model` under `/v1`.")
    validation: MeasuredAt | None = Field(
        None, description="The last evaluation at this step or before it; null before the first."
    )
    created_at: Moment


class PublishRequest(Asked):
    """What the adapter of a checkpoint is called."""

    name: Name | None = Field(
        None, description="null: the name of the job's adapter and the step, `<name>-step-<step>`."
    )
    metadata: dict[Text, Text] | None = Field(
        None, max_length=50, description="null: that of the job."
    )

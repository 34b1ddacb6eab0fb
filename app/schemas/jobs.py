"""Answers about jobs. What a job may ask for is ``peft_engine.configs.JobSpec``."""

from typing import Any, Literal

from pydantic import Field

from app.schemas.estimates import JobEstimate
from app.schemas.shared import Moment, Sent
from core.states import JobStatus, Phase


class JobError(Sent):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class JobAnswer(Sent):
    """A job as it stands now. Values that are not known yet are null."""

    id: str = Field(examples=["job_06f1k2m3n4p5q6r7s8t9v0w1x2"])
    object: Literal["job"] = "job"
    status: JobStatus
    phase: Phase | None = Field(None, description="What a running job is doing.")
    reason: str | None = Field(None, description="Why the job waits, or why it was handed back.")
    queue_position: int | None = Field(
        None, description="How many jobs stand before this one in the queue; 0 is the next."
    )
    dataset_id: str
    base_model: str
    task: str | None = Field(None, description="null while the data set is being validated.")
    adapter_name: str = Field(description="The adapter becomes the next version of this name.")
    progress: dict[str, Any] | None = Field(
        None,
        description="`step, total_steps, epoch, percent, loss, tokens, tokens_per_second, "
        "training_seconds_left` (to the last step and the validation at it), `eta_seconds` (to the "
        "end of the evaluations after it) and `jobs_beside` (how many other jobs shared the "
        "forward of its last step). Seconds are null while they cannot be known, and in every "
        "phase but `training`.",
    )
    spec: dict[str, Any] = Field(
        description="Everything asked for with defaults filled in; `auto` is replaced as soon as "
        "it is resolved."
    )
    resolved: dict[str, Any] | None = Field(
        None, description="What training made of the spec: values of `auto`, steps, metric."
    )
    attempt: int = Field(description="How many times a worker has taken the job.")
    trainable_parameters: int | None = None
    base_parameters: int | None = None
    metrics: dict[str, Any] | None = Field(
        None,
        description="`train`; `validation` and `test`, each with `before`, `after`, `delta`, "
        "`confidence_interval`, `before_is` and `baselines`; `test` also with `helped` (true, "
        'false or "unclear") by `metric`, `verdict` (a sentence) and `details` (tables by class; '
        "lists of jobs leave them out). See docs/tasks.",
    )
    certificate: dict[str, Any] | None = Field(
        None, description="Outcome of replaying held-out rows through the serving path."
    )
    adapter_id: str | None = None
    reproduces_job_id: str | None = Field(
        None, description="The job that this one repeats; its manifest tells whether it is equal."
    )
    sweep_id: str | None = Field(None, description="The sweep that made this job.")
    estimate: JobEstimate | None = Field(
        None, description="What it would take, of a job made with `auto_start: false`."
    )
    error: JobError | None = None
    metadata: dict[str, str]
    created_at: Moment
    updated_at: Moment
    started_at: Moment | None = None
    first_step_at: Moment | None = None
    finished_at: Moment | None = None


class EventAnswer(Sent):
    """One thing that happened to a job."""

    seq: int = Field(description="Ever growing; ask for what is newer with `?after=<seq>`.")
    event: str = Field(description="`status`, `progress`, `metric`, `log`, `complete` or `error`.")
    level: str = Field("info", description="`info`, `warning` or `error`.")
    message: str
    attempt: int
    data: dict[str, Any] | None = None
    created_at: Moment


class EventPage(Sent):
    """Events, oldest first; poll again with `?after=<last_seq>`."""

    object: Literal["list"] = "list"
    data: list[EventAnswer]
    has_more: bool
    last_seq: int = Field(description="What to send as `after` in the next request.")


class MetricPoint(Sent):
    """One value of one metric."""

    name: str = Field(examples=["train/loss"])
    step: int
    value: float | None
    created_at: Moment


class MetricList(Sent):
    """Points by name and step."""

    object: Literal["list"] = "list"
    data: list[MetricPoint]
    names: list[str] = Field(description="Every metric that this job has, whatever was asked for.")

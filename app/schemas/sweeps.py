"""Answers about sweeps. What a sweep may ask for is ``peft_engine.configs.SweepSpec``."""

from typing import Any, Literal

from pydantic import Field

from app.schemas.jobs import JobError
from app.schemas.shared import Moment, Sent
from core.states import JobStatus, SweepStatus


class TrialAnswer(Sent):
    """One point that was tried."""

    number: int
    params: dict[str, Any] = Field(description="Value by path of the field.")
    job_id: str | None = Field(
        None, description="null where the values go together in no job; `error` says why."
    )
    status: JobStatus
    value: float | None = Field(
        None, description="The deciding metric on validation, of the step that the job kept."
    )
    best_step: int | None = Field(None, description="The step that the job kept; 0 is its start.")
    seconds: float | None = Field(None, description="From its start to its end.")
    adapter_id: str | None = None
    error: JobError | None = None


class BestTrial(Sent):
    """The trial that is best on validation."""

    number: int
    job_id: str
    params: dict[str, Any]
    value: float


class Standing(Sent):
    """Where one trial stands beside the best one."""

    number: int
    value: float
    behind: float = Field(description="How much worse than the best one; 0 for itself.")
    confidence_interval: tuple[float, float] | None = Field(
        None,
        description="95 % interval of `behind`, the same rows drawn again for all trials; all of "
        "them hold together. With 0 in it the rows do not tell the two apart.",
    )
    best_share: float | None = Field(
        None, description="In which share of the resamples of the rows this trial is the best one."
    )


class Comparison(Sent):
    """How clearly the best trial is the best."""

    metric: str
    rows: int | None = Field(None, description="Validation rows that were drawn from.")
    best: int = Field(description="Number of the best trial.")
    standing: list[Standing] = Field(description="Every trial with a value, best first.")
    level: list[int] = Field(description="Trials that the rows do not tell from the best one.")
    seed_deviation: float | None = Field(
        None,
        description="Standard deviation of trials that differ in `training.seed` alone; null where "
        "no two do.",
    )
    verdict: str = Field(description="All of it in words.")


class SweepTest(Sent):
    """The best trial trained once more, and tested."""

    job_id: str
    status: JobStatus
    adapter_id: str | None = None
    metrics: dict[str, Any] | None = Field(
        None, description="`metrics.test` of the job, without its tables by class."
    )
    same_digest: bool | None = Field(
        None,
        description="Whether it is the very adapter of the best trial, number by number; null "
        "until it is known.",
    )


class SweepAnswer(Sent):
    """A sweep as it stands now. Values that are not known yet are null."""

    id: str = Field(examples=["swp_06f1k2m3n4p5q6r7s8t9v0w1x2"])
    object: Literal["sweep"] = "sweep"
    name: str
    status: SweepStatus = Field(
        description="`running`: trials are made; `testing`: the best one is trained once more, "
        "with the test; `succeeded`: it was."
    )
    dataset_id: str
    strategy: str
    job: dict[str, Any] = Field(description="What every trial begins with.")
    search: dict[str, Any]
    seed: int
    metric: str = Field(description="`auto` until the first trial has said which one it is.")
    max_jobs: int = Field(description="How many trials there will be.")
    max_parallel: int
    counts: dict[str, int] = Field(description="Trials by status.")
    best: BestTrial | None = Field(None, description="So far, until all trials have ended.")
    comparison: Comparison | None = Field(None, description="Known when all trials have ended.")
    test: SweepTest | None = None
    trials: list[TrialAnswer] | None = Field(None, description="null in lists.")
    error: JobError | None = None
    created_at: Moment
    updated_at: Moment
    finished_at: Moment | None = None

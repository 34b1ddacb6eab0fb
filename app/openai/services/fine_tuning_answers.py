"""Jobs, their events and their checkpoints, in the words of OpenAI."""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import MappingProxyType
from typing import Any

from app.openai.schemas.fine_tuning_answers import (
    CheckpointMetrics,
    FineTuningJob,
    HyperparametersInForce,
    JobCheckpoint,
    JobEvent,
    JobStatusName,
    MethodInForce,
    SupervisedInForce,
)
from app.openai.services.moments import unix_seconds
from app.schemas.jobs import JobAnswer
from app.services import job_answers
from app.services.origins import name_of
from core.db import Session, adapters, datasets, events
from core.db.models import Checkpoint, Job
from core.db.models import JobEvent as EventRow
from core.errors import BadInput
from core.states import TERMINAL, JobStatus
from peft_engine.configs import BaseConfig
from peft_engine.configs.base import join_base_name

_STATUSES: Mapping[JobStatus, JobStatusName] = MappingProxyType(
    {
        JobStatus.VALIDATING_FILES: "validating_files",
        JobStatus.QUEUED: "queued",
        JobStatus.RUNNING: "running",
        JobStatus.PAUSING: "pausing",
        JobStatus.PAUSED: "paused",
        # no word of OpenAI's; programs that wait for the end go on waiting
        JobStatus.CANCELLING: "running",
        JobStatus.SUCCEEDED: "succeeded",
        JobStatus.FAILED: "failed",
        JobStatus.CANCELLED: "cancelled",
    }
)

_EVENT_PREFIX = "ftevent-"
_MAX_SEQ = 2**63 - 1

_CURVES = ("train/loss", "validation/loss", "validation/token_accuracy")


def as_job(session: Session, job: Job) -> FineTuningJob:
    """Shape a job.

    Args:
        session: To read with what stands elsewhere.
        job: The job.

    Returns:
        What is shown of it.
    """
    return _shape(session, job.tenant_id, [job], [job_answers.as_answer(session, job)])[0]


def as_jobs(session: Session, tenant_id: str, rows: Sequence[Job]) -> list[FineTuningJob]:
    """Shape the rows of a list.

    Args:
        session: To read with what stands elsewhere, once for all.
        tenant_id: Whose jobs.
        rows: The jobs.

    Returns:
        What is shown of them, in their order.
    """
    return _shape(session, tenant_id, rows, job_answers.as_answers(session, tenant_id, rows))


def _shape(
    session: Session, tenant_id: str, rows: Sequence[Job], answers: Sequence[JobAnswer]
) -> list[FineTuningJob]:
    names = adapters.references(
        session, tenant_id, [row.adapter_id for row in rows if row.adapter_id is not None]
    )
    joined = datasets.joined_from(session, tenant_id, [row.dataset_id for row in rows])
    return [
        _as_job(row, answer, names.get(row.adapter_id or ""), joined.get(row.dataset_id, {}))
        for row, answer in zip(rows, answers, strict=True)
    ]


def _as_job(
    job: Job, answer: JobAnswer, name: str | None, files: Mapping[str, str]
) -> FineTuningJob:
    training = answer.spec["training"]
    in_force = HyperparametersInForce(
        batch_size=training["batch_size"], n_epochs=_whole(training["epochs"])
    )
    progress = answer.progress or {}
    error = answer.error
    if error is not None and error.param == "dataset_id":
        error = error.model_copy(update={"param": "training_file"})
    return FineTuningJob(
        id=job.id,
        created_at=unix_seconds(job.created_at),
        model=join_base_name(job.base_model, BaseConfig.model_validate(job.spec.get("base") or {})),
        training_file=files.get("train", job.dataset_id),
        validation_file=files.get("validation"),
        status=_STATUSES[job.status],
        fine_tuned_model=name,
        finished_at=unix_seconds(job.finished_at),
        estimated_finish=_end_of(job, progress),
        trained_tokens=progress.get("tokens") if job.status in TERMINAL else None,
        seed=training["seed"],
        organization_id=job.tenant_id,
        hyperparameters=in_force,
        method=MethodInForce(supervised=SupervisedInForce(hyperparameters=in_force)),
        metadata=answer.metadata,
        error=error,
        x_tunery=answer,
    )


def _end_of(job: Job, progress: Mapping[str, Any]) -> int | None:
    left = progress.get("eta_seconds")
    if left is None or job.status in TERMINAL:
        return None
    # counted from the report, which is older than this answer
    return unix_seconds(job.updated_at + timedelta(seconds=left))


def _whole(epochs: float | str) -> float | str:
    return int(epochs) if isinstance(epochs, float) and epochs.is_integer() else epochs


def as_event(row: EventRow) -> JobEvent:
    """Shape an event.

    Args:
        row: The event.

    Returns:
        What is shown of it.
    """
    return JobEvent.model_validate(
        {
            "id": f"{_EVENT_PREFIX}{row.seq}",
            "created_at": unix_seconds(row.created_at),
            "level": "warn" if row.level == "warning" else row.level,
            "message": row.message,
            "type": "metrics" if row.event in {"progress", "metric"} else "message",
            "data": row.data or None,
        }
    )


def read_cursor(after: str | None) -> int | None:
    """Read the number of an event out of its id.

    Args:
        after: ``last_id`` of the page before.

    Returns:
        The number; None without a cursor.

    Raises:
        BadInput: No event has such an id.
    """
    if after is None:
        return None
    digits = after.removeprefix(_EVENT_PREFIX)
    if digits == after or not digits.isascii() or not digits.isdecimal() or len(digits) > 19:
        raise BadInput(f"no event has the id {after!r}; send last_id of a page", param="after")
    return min(int(digits), _MAX_SEQ)


def as_checkpoints(session: Session, job: Job, rows: Sequence[Checkpoint]) -> list[JobCheckpoint]:
    """Shape checkpoints of one job, with what was measured at their steps.

    Args:
        session: To read the curves with.
        job: The job.
        rows: Its checkpoints.

    Returns:
        What is shown of them, in their order.
    """
    if not rows:
        return []
    steps = [row.step for row in rows]
    train, loss, accuracy = (
        {
            point.step: point.value
            for point in events.metrics(
                session,
                job.tenant_id,
                job.id,
                name=name,
                from_step=min(steps),
                to_step=max(steps),
            )
        }
        for name in _CURVES
    )
    return [
        JobCheckpoint(
            id=row.id,
            created_at=unix_seconds(row.created_at),
            fine_tuning_job_id=row.job_id,
            fine_tuned_model_checkpoint=None if row.delta is None else name_of(job, row),
            step_number=row.step,
            metrics=CheckpointMetrics(
                step=row.step,
                train_loss=train.get(row.step),
                valid_loss=loss.get(row.step),
                valid_mean_token_accuracy=accuracy.get(row.step),
            ),
        )
        for row in rows
    ]

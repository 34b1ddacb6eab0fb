"""How jobs, their events and their curves are shown."""

from collections.abc import Sequence
from typing import Any

from app.schemas.estimates import JobEstimate
from app.schemas.jobs import EventAnswer, JobAnswer, JobError, MetricPoint
from app.services import estimates
from app.services.reports import leave_details_out
from core.db import Session, events, jobs
from core.db.models import Job, JobEvent, JobMetric
from core.states import ACTIVE, TERMINAL, JobStatus, Phase

_FORECASTS = ("training_seconds_left", "eta_seconds")


def as_answer(session: Session, job: Job) -> JobAnswer:
    """Shape a row for the user.

    Args:
        session: To count the queue with.
        job: The job.

    Returns:
        What is shown of it.
    """
    # A job that is watched is asked for again and again, and waits only at first.
    waits = job.status is JobStatus.QUEUED
    position = jobs.queue_position(session, job.tenant_id, job.id) if waits else None
    estimate = estimates.of_jobs(session, [job]).get(job.id)
    return _shape(job, position, job.metrics, estimate)


def as_answers(session: Session, tenant_id: str, rows: Sequence[Job]) -> list[JobAnswer]:
    """Shape the rows of a list; see ``leave_details_out``.

    Args:
        session: To count the queue with, once for all.
        tenant_id: Whose jobs.
        rows: The jobs.

    Returns:
        What is shown of them, in their order.
    """
    waiting = [job.id for job in rows if job.status is JobStatus.QUEUED]
    positions = jobs.queue_positions(session, tenant_id, waiting)
    measured = estimates.of_jobs(session, rows)
    return [
        _shape(job, positions.get(job.id), leave_details_out(job.metrics), measured.get(job.id))
        for job in rows
    ]


def _shape(
    job: Job,
    queue_position: int | None,
    metrics: dict[str, Any] | None,
    estimate: JobEstimate | None,
) -> JobAnswer:
    return JobAnswer(
        id=job.id,
        status=job.status,
        phase=None if job.status in TERMINAL else job.phase,
        reason=job.reason,
        queue_position=queue_position,
        dataset_id=job.dataset_id,
        base_model=job.base_model,
        task=job.task,
        adapter_name=job.adapter_name,
        progress=progress_now(job),
        spec=merge_resolved(job.spec, job.resolved),
        resolved=job.resolved,
        attempt=job.attempt,
        trainable_parameters=job.trainable_parameters,
        base_parameters=job.base_parameters,
        metrics=metrics,
        certificate=job.certificate,
        adapter_id=job.adapter_id,
        reproduces_job_id=job.reproduces_job_id,
        sweep_id=job.sweep_id,
        estimate=estimate,
        error=JobError.model_validate(job.error, extra="ignore") if job.error else None,
        metadata=job.metadata_,
        created_at=job.created_at,
        updated_at=job.updated_at,
        started_at=job.started_at,
        first_step_at=job.first_step_at,
        finished_at=job.finished_at,
    )


def progress_now(job: Job) -> dict[str, Any] | None:
    """Give the report of the last step, without forecasts that no longer hold.

    Nothing counts down while a job waits, or evaluates and publishes after its last step: the phase
    says that, and the seconds told at the last step are soon wrong.

    Args:
        job: The job.

    Returns:
        Its progress; None before the first step.
    """
    if job.progress is None or (job.status in ACTIVE and job.phase is Phase.TRAINING):
        return job.progress
    return {**job.progress, **{name: None for name in _FORECASTS if name in job.progress}}


def merge_resolved(spec: dict[str, Any], resolved: dict[str, Any] | None) -> dict[str, Any]:
    """Put resolved values in the place of ``auto``.

    Args:
        spec: As asked, defaults filled in.
        resolved: What training made of it: ``method``, fields of ``training`` by name, and more; or
            None.

    Returns:
        The spec with every value that is known by now.
    """
    found = resolved or {}
    training = {
        name: found.get(name, value) if value == "auto" else value
        for name, value in spec.get("training", {}).items()
    }
    stopping = training.get("early_stopping")
    if isinstance(stopping, dict):
        training["early_stopping"] = {
            name: found.get(name, value) if value == "auto" else value
            for name, value in stopping.items()
        }
    method = found.get("method", spec.get("method"))
    return {**spec, "method": method, "training": training}


def event_answer(row: JobEvent) -> EventAnswer:
    """Shape an event for the user.

    Args:
        row: The event.

    Returns:
        What is shown of it.
    """
    return EventAnswer(
        seq=row.seq,
        event=row.event,
        level=row.level,
        message=row.message,
        attempt=row.attempt,
        data=row.data or None,
        created_at=row.created_at,
    )


def metric_point(row: JobMetric) -> MetricPoint:
    """Shape a point of a curve for the user.

    Args:
        row: The point.

    Returns:
        What is shown of it.
    """
    return MetricPoint(name=row.name, step=row.step, value=row.value, created_at=row.created_at)


def read_events(
    session: Session, *, tenant_id: str, job_id: str, after_seq: int, limit: int
) -> tuple[list[EventAnswer], bool, JobStatus]:
    """Read what is new about a job.

    Args:
        session: To read with.
        tenant_id: Who asks.
        job_id: Which job.
        after_seq: The last number that is known already.
        limit: How many at most.

    Returns:
        Events, oldest first; whether there are more; and the status that the job has.
    """
    job = jobs.get(session, tenant_id, job_id)
    page = events.page(session, tenant_id, job_id, after_seq=after_seq, limit=limit)
    return [event_answer(row) for row in page.items], page.has_more, job.status


def thin_out(points: list[JobMetric], resolution: int) -> list[JobMetric]:
    """Keep so many points of each curve, evenly over it, the last always.

    Args:
        points: By name, then by step.
        resolution: The most points of one curve.

    Returns:
        The points kept, in the same order.
    """
    curves: dict[str, list[JobMetric]] = {}
    for point in points:
        curves.setdefault(point.name, []).append(point)
    kept = []
    for curve in curves.values():
        count = min(resolution, len(curve))
        kept += [curve[(place + 1) * len(curve) // count - 1] for place in range(count)]
    return kept

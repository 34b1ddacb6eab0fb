"""Jobs: check a wish, make the row, show it.

The message to the workers goes out after the commit, and only as a hint.
"""

from typing import Any, get_args

from app.schemas.jobs import CheckpointAnswer, EventAnswer, JobAnswer, JobError, MetricPoint
from app.schemas.shared import find_unstorable
from app.services.parts import Parts, Unit
from core.db import Session, datasets, events, jobs
from core.db.idempotency import digest_request
from core.db.models import Checkpoint, Dataset, Job, JobEvent, JobMetric
from core.errors import BadInput, Conflict, InvalidTransition, NotFound
from core.settings import Settings
from core.states import TERMINAL, DatasetStatus, JobStatus
from peft_engine.configs import JobSpec
from peft_engine.configs.model import TaskName

ENGINE_TASKS: frozenset[str] = frozenset(get_args(TaskName))
"""Tasks that can be trained; others can be uploaded and checked already."""

_INVALID = {"code": "dataset_invalid", "message": "the data set is invalid", "param": "dataset_id"}


def create(
    unit: Unit,
    *,
    parts: Parts,
    tenant_id: str,
    spec: JobSpec,
    idempotency_key: str | None,
) -> tuple[Job, bool]:
    """Make a job, unless the same wish has made it already.

    Args:
        unit: The transaction.
        parts: The known base models, and the queue that is told after the commit.
        tenant_id: The owner.
        spec: What to train.
        idempotency_key: The caller's key; without one an equal body within two minutes is the same
            wish.

    Returns:
        The job, and whether it is new.

    Raises:
        BadInput: The job cannot be trained as asked; ``param`` names the field.
    """
    asked = spec.model_dump(mode="json")
    where = find_unstorable(asked)
    if where is not None:
        raise BadInput(f"{where} holds U+0000 or half of a surrogate pair", param=where)
    dataset = datasets.get(unit.session, tenant_id, spec.dataset_id)
    task = _check(dataset, spec, parts.settings)
    job, is_new = jobs.create_once(
        unit.session,
        tenant_id=tenant_id,
        idempotency_key=idempotency_key,
        request_digest=digest_request(asked),
        dataset_id=dataset.id,
        base_model=spec.base_model,
        task=task,
        adapter_name=spec.adapter_name or adapter_name(dataset.name, spec.base_model),
        spec={**asked, "task": task},
        metadata=dict(spec.metadata),
        status=JobStatus.QUEUED
        if dataset.status == DatasetStatus.READY
        else JobStatus.VALIDATING_FILES,
        max_attempts=parts.settings.max_attempts,
    )
    if is_new and job.status == JobStatus.QUEUED:
        _send(unit, parts, job.id)
    elif is_new:
        unit.then(lambda: _release_if_validated(parts, job.dataset_id))
    return job, is_new


def _release_if_validated(parts: Parts, dataset_id: str) -> None:
    """Let the jobs go if validation ended between our look at the data set and our commit."""
    with parts.database.write() as session:
        dataset = datasets.get_for_worker(session, dataset_id)
        if dataset is None or dataset.status == DatasetStatus.VALIDATING:
            return
        error = None if dataset.status == DatasetStatus.READY else dataset.error or _INVALID
        ready = jobs.release_waiting(session, dataset_id, error=error)
    for job_id in ready:
        parts.queue.send_training(job_id)


def _send(unit: Unit, parts: Parts, job_id: str) -> None:
    """Tell the workers after the commit. Without a broker the row stays, and the sweep sends it."""

    def send() -> None:
        if not parts.queue.send_training(job_id):
            with parts.database.write() as session:
                jobs.mark_unsent(session, [job_id])

    unit.then(send)


def _check(dataset: Dataset, spec: JobSpec, settings: Settings) -> str | None:
    if spec.base_model not in settings.base_models:
        known = ", ".join(sorted(settings.base_models))
        raise NotFound(
            f"there is no base model {spec.base_model!r}; this service has {known}",
            code="base_not_found",
            param="base_model",
        )
    if dataset.status == DatasetStatus.INVALID:
        raise Conflict(
            f"the data set {dataset.id} is invalid; its report lists every problem with a fix",
            code="dataset_not_ready",
            param="dataset_id",
        )
    if dataset.task is not None:
        _check_task(dataset.task, spec)
    leakage = (dataset.report or {}).get("leakage") or {}
    if leakage.get("blocks") and not spec.allow_leakage:
        raise BadInput(
            f"{leakage.get('exact_rows', 'some')} rows stand in more than one split, so the test "
            "would tell nothing; remove them, or set allow_leakage to true",
            code="dataset_leakage",
            param="dataset_id",
        )
    return spec.task or dataset.task


def _check_task(task: str, spec: JobSpec) -> None:
    if spec.task is not None and spec.task != task:
        raise BadInput(
            f"the data set is for {task}, the job asks for {spec.task}",
            code="task_mismatch",
            param="task",
        )
    if task not in ENGINE_TASKS:
        offered = ", ".join(sorted(ENGINE_TASKS))
        raise BadInput(
            f"{task} cannot be trained yet; offered are {offered}", code="unsupported", param="task"
        )


def adapter_name(dataset_name: str, base_model: str) -> str:
    """Name the adapter of a job that names none.

    Args:
        dataset_name: Name of the data set.
        base_model: Name of the base.

    Returns:
        Both, 64 characters at most.
    """
    tail = f"-{base_model}"[:32]
    return (dataset_name[: 64 - len(tail)] + tail).rstrip("-._")


def resume(unit: Unit, *, parts: Parts, tenant_id: str, job_id: str) -> Job:
    """Queue a paused job again.

    Args:
        unit: The transaction.
        parts: The queue that is told after the commit.
        tenant_id: Who asks.
        job_id: Which job.

    Returns:
        The job; one that is queued or runs is left as it is.
    """
    job = jobs.resume(unit.session, tenant_id, job_id)
    if job.status == JobStatus.QUEUED:
        _send(unit, parts, job.id)
    return job


def retry(unit: Unit, *, parts: Parts, tenant_id: str, job_id: str) -> Job:
    """Queue a failed job again; it goes on from its last checkpoint.

    Args:
        unit: The transaction.
        parts: The queue that is told after the commit.
        tenant_id: Who asks.
        job_id: Which job.

    Returns:
        The job in ``queued``.

    Raises:
        InvalidTransition: The job has not failed.
    """
    job = jobs.get(unit.session, tenant_id, job_id)
    if job.status == JobStatus.FAILED:
        datasets.get(unit.session, tenant_id, job.dataset_id)
    elif job.status == JobStatus.QUEUED:
        raise InvalidTransition(f"job {job_id} is queued already")
    job = jobs.retry(unit.session, tenant_id, job_id, attempts=parts.settings.max_attempts)
    _send(unit, parts, job.id)
    return job


def as_answer(session: Session, job: Job) -> JobAnswer:
    """Shape a row for the user.

    Args:
        session: To count the queue with.
        job: The job.

    Returns:
        What is shown of it.
    """
    return JobAnswer(
        id=job.id,
        status=job.status,
        phase=None if job.status in TERMINAL else job.phase,
        reason=job.reason,
        queue_position=jobs.queue_position(session, job.tenant_id, job.id)
        if job.status == JobStatus.QUEUED
        else None,
        dataset_id=job.dataset_id,
        base_model=job.base_model,
        task=job.task,
        adapter_name=job.adapter_name,
        progress=job.progress,
        spec=merge_resolved(job.spec, job.resolved),
        resolved=job.resolved,
        attempt=job.attempt,
        trainable_parameters=job.trainable_parameters,
        base_parameters=job.base_parameters,
        metrics=job.metrics,
        certificate=job.certificate,
        adapter_id=job.adapter_id,
        error=JobError.model_validate(job.error, extra="ignore") if job.error else None,
        metadata=job.metadata_,
        created_at=job.created_at,
        updated_at=job.updated_at,
        started_at=job.started_at,
        first_step_at=job.first_step_at,
        finished_at=job.finished_at,
    )


def merge_resolved(spec: dict[str, Any], resolved: dict[str, Any] | None) -> dict[str, Any]:
    """Put resolved values in the place of ``auto``.

    Args:
        spec: As asked, defaults filled in.
        resolved: What training made of it: fields of ``training`` by name, and more; or None.

    Returns:
        The spec with every value that is known by now.
    """
    found = resolved or {}
    training = {
        name: found.get(name, value) if value == "auto" else value
        for name, value in spec.get("training", {}).items()
    }
    stopping = training.get("early_stopping")
    if isinstance(stopping, dict) and stopping.get("metric") == "auto":
        metric = found.get("metric", "auto")
        training["early_stopping"] = {**stopping, "metric": metric}
    return {**spec, "training": training}


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


def checkpoint_answer(row: Checkpoint) -> CheckpointAnswer:
    """Shape a checkpoint for the user.

    Args:
        row: The checkpoint.

    Returns:
        What is shown of it.
    """
    return CheckpointAnswer(
        id=row.id,
        step=row.step,
        attempt=row.attempt,
        bytes=row.bytes,
        sha256=row.sha256,
        created_at=row.created_at,
    )


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

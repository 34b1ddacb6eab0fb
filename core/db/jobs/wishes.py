"""What a user wishes of a job: cancel, pause, resume, start, retry; and what its data set decides.

The row is locked first, so the status that is read is the status that is changed.
"""

from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock, datasets, estimates, names, owned
from core.db.jobs.story import tell_status
from core.db.models import Job
from core.db.resending import held_back
from core.errors import Conflict, InvalidTransition
from core.states import ACTIVE, TERMINAL, WAITS_FOR_START, JobStatus, check_transition


def request_cancel(session: Session, tenant_id: str, job_id: str) -> Job:
    """Cancel a job: at once when it waits, through its trainer when it runs.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        job_id: Which one.

    Returns:
        The job, ``cancelled`` or ``cancelling``; a second wish changes nothing.
    """
    job = _lock(session, tenant_id, job_id)
    _refuse_finished(job)
    if job.status is JobStatus.CANCELLING:
        return job
    if job.status in ACTIVE:
        return _move(session, job, JobStatus.CANCELLING, control="cancel")
    return _move(
        session, job, JobStatus.CANCELLED, finished_at=clock.now(), control=None, reason=None
    )


def request_pause(session: Session, tenant_id: str, job_id: str) -> Job:
    """Pause a job: at once when it is queued, through its trainer when it runs.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        job_id: Which one.

    Returns:
        The job, ``paused`` or ``pausing``; a second wish changes nothing.

    Raises:
        InvalidTransition: The job is being cancelled, or its data set is not ready.
    """
    job = _lock(session, tenant_id, job_id)
    _refuse_finished(job)
    if job.status in {JobStatus.PAUSED, JobStatus.PAUSING}:
        return job
    if job.status is JobStatus.RUNNING:
        return _move(session, job, JobStatus.PAUSING, control="pause")
    if job.status is JobStatus.VALIDATING_FILES:
        # paused, it would miss the outcome of the validation, and run on whatever that was
        message = f"job {job.id} waits for its data set; cancel it, or pause it when it is queued"
        raise InvalidTransition(message)
    return _move(session, job, JobStatus.PAUSED, reason="user")


def resume(session: Session, tenant_id: str, job_id: str) -> Job:
    """Queue a job that is paused.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        job_id: Which one.

    Returns:
        The job; send it after the commit when it is ``queued``. One that is queued or runs is left
        as it is.

    Raises:
        InvalidTransition: The job is being paused or cancelled, or its data set is not ready.
    """
    job = _lock(session, tenant_id, job_id)
    _refuse_finished(job)
    if job.status in {JobStatus.QUEUED, JobStatus.RUNNING}:
        return job
    if job.status is not JobStatus.PAUSED:
        message = f"job {job.id} is {job.status}; only a paused job can be resumed"
        raise InvalidTransition(message)
    return _move(session, job, JobStatus.QUEUED, **_queued())


def start(session: Session, tenant_id: str, job_id: str) -> Job:
    """Queue a job that was made to wait for this.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        job_id: Which one.

    Returns:
        The job; send it after the commit when it is ``queued``. One that is queued or runs is left
        as it is.

    Raises:
        InvalidTransition: The job's data set is not ready, or the job waits for something else.
    """
    job = _lock(session, tenant_id, job_id)
    _refuse_finished(job)
    if job.status in {JobStatus.QUEUED, JobStatus.RUNNING}:
        return job
    if job.status is JobStatus.VALIDATING_FILES:
        message = f"job {job.id} waits for its data set; start it when it is paused"
        raise InvalidTransition(message)
    if job.status is not JobStatus.PAUSED or job.reason != WAITS_FOR_START:
        message = f"job {job.id} was started already and is {job.status}; resume a paused one"
        raise InvalidTransition(message)
    return _move(session, job, JobStatus.QUEUED, **_queued())


def retry(session: Session, tenant_id: str, job_id: str, *, attempts: int) -> Job:
    """Queue a failed job again; it goes on from its last checkpoint.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        job_id: Which one.
        attempts: How many further attempts it gets.

    Returns:
        The job; send it after the commit.

    Raises:
        InvalidTransition: The job has not failed. ``Conflict`` (code ``name_taken``) goes through
            when an alias has taken its adapter's name meanwhile.
    """
    job = _lock(session, tenant_id, job_id)
    if job.status is not JobStatus.FAILED:
        message = f"job {job.id} is {job.status}; only a failed job can be retried"
        raise InvalidTransition(message)
    if job.adapter_name is not None:
        # while it had failed, its adapter's name was free for an alias
        names.hold_for_adapter(session, tenant_id, job.adapter_name)
    return _move(
        session,
        job,
        JobStatus.QUEUED,
        error=None,
        finished_at=None,
        max_attempts=job.attempt + attempts,
        **_queued(),
    )


def release_waiting(
    session: Session, dataset_id: str, *, error: dict[str, Any] | None = None
) -> list[str]:
    """Let go the jobs that waited for the validation of a data set.

    Args:
        session: The session that wrote the validation's outcome.
        dataset_id: Which data set.
        error: Why the data set cannot be used (code, message, param); None when it is ready.

    Returns:
        Ids of the jobs to send after the commit: those that are queued now. Jobs that named no
        task have that of the data set. All fail when
        there is an error, and those that do not allow leakage when there is some; those that are
        to be started by their user are paused, and measured at the next sweep.
    """
    dataset = datasets.get_for_worker(session, dataset_id)
    leakage = datasets.find_leakage(dataset)
    query = (
        sa.select(Job)
        .where(Job.dataset_id == dataset_id, Job.status == JobStatus.VALIDATING_FILES)
        .order_by(Job.id)
        .with_for_update(key_share=True)
    )
    ready = []
    for job in session.scalars(query.execution_options(populate_existing=True)):
        if job.task is None and dataset is not None:
            # nobody knew it when the job was made
            job.task, job.spec = dataset.task, {**job.spec, "task": dataset.task}
        fault = error or (None if job.spec.get("allow_leakage") else leakage)
        if fault is not None:
            _move(session, job, JobStatus.FAILED, error=fault, finished_at=clock.now())
        elif not job.spec.get("auto_start", True):
            _move(session, job, JobStatus.PAUSED, reason=WAITS_FOR_START)
            estimates.create(
                session,
                tenant_id=job.tenant_id,
                dataset_id=dataset_id,
                spec=job.spec,
                job_id=job.id,
                is_sent=False,
            )
        else:
            _move(session, job, JobStatus.QUEUED, **_queued())
            ready.append(job.id)
    return ready


def _lock(session: Session, tenant_id: str, job_id: str) -> Job:
    return owned.get(session, Job, tenant_id, job_id, lock=owned.Lock.CHANGE)


def _refuse_finished(job: Job) -> None:
    if job.status in TERMINAL:
        message = f"job {job.id} has ended: it is {job.status}"
        raise Conflict(message, code="job_finished")


def _queued() -> dict[str, Any]:
    return {"reason": None, "phase": None, **held_back(None)}


def _move(session: Session, job: Job, status: JobStatus, **values: Any) -> Job:
    check_transition(job.status, status)
    job.status = status
    for name, value in values.items():
        setattr(job, name, value)
    session.flush()
    tell_status(
        session,
        job_id=job.id,
        tenant_id=job.tenant_id,
        attempt=job.attempt,
        status=status,
        reason=values.get("reason"),
        error=values.get("error"),
    )
    session.refresh(job)
    return job

"""What a worker does with a job: claim it, keep it, write to it, let it go.

A claim raises the job's ``attempt``. Every later write names that attempt and changes nothing when
the job has gone to another one (it is *fenced*), so that a worker thought dead cannot write. All of
it is single conditional updates by the database's clock: no race is decided in Python.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock
from core.db.jobs.story import tell_status
from core.db.models import Job
from core.db.resending import held_back, is_due
from core.states import ACTIVE, TRANSITIONS, JobStatus, Phase

FENCED_COLUMNS = frozenset(
    {
        "phase",
        "reason",
        "resolved",
        "progress",
        "metrics",
        "certificate",
        "environment",
        "trainable_parameters",
        "base_parameters",
        "adapter_id",
        "error",
        "task",
        "first_step_at",
    }
)
"""What an attempt may write; status, lease and owner change only through the functions here."""

TOO_MANY_ATTEMPTS = {
    "code": "too_many_attempts",
    "message": "the worker of this job was lost too often; retry it when the cause is mended",
    "param": None,
}


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write to a job until the lease ends.

    Attributes:
        job_id: The job.
        tenant_id: Its tenant.
        attempt: The number that fences; 1 for the first.
        lease_seconds: For how long, unless renewed by ``beat``.
    """

    job_id: str
    tenant_id: str
    attempt: int
    lease_seconds: float


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat.

    Attributes:
        control: ``cancel``, ``pause``, or None to go on.
        status: The job's status.
    """

    control: str | None
    status: JobStatus


def is_expired() -> sa.ColumnElement[bool]:
    """Give the condition that a job's worker has not been heard of for a whole lease.

    Returns:
        An SQL condition on ``Job``.
    """
    return sa.and_(Job.status.in_(ACTIVE), Job.lease_until < clock.now())


def is_spent() -> sa.ColumnElement[bool]:
    """Give the condition that a job may be claimed by nobody again.

    Returns:
        An SQL condition on ``Job``: it waits or runs, and its last attempt has been given out.
    """
    return sa.and_(
        Job.status.in_((JobStatus.QUEUED, JobStatus.RUNNING)), Job.attempt >= Job.max_attempts
    )


def claim(session: Session, job_id: str, *, owner: str, lease_seconds: float) -> Claim | None:
    """Take a job that is queued, or whose worker has fallen silent.

    Args:
        session: A writing session.
        job_id: Which one.
        owner: Who claims, for people to read.
        lease_seconds: For how long.

    Returns:
        The claim. None when there is nothing to do: the message was a duplicate, the job is over
        or held back, or it was given up here because too many attempts were lost.
    """
    statement = (
        sa.update(Job)
        .where(Job.id == job_id, _is_claimable(), sa.not_(is_spent()))
        .values(
            status=JobStatus.RUNNING,
            phase=Phase.LOADING,
            reason=None,
            attempt=Job.attempt + 1,
            owner=owner,
            lease_until=clock.later(lease_seconds),
            started_at=sa.func.coalesce(Job.started_at, clock.now()),
        )
        .returning(Job.tenant_id, Job.attempt)
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        give_up(session, Job.id == job_id)
        return None
    tell_status(
        session,
        job_id=job_id,
        tenant_id=row.tenant_id,
        attempt=row.attempt,
        status=JobStatus.RUNNING,
    )
    return Claim(job_id, row.tenant_id, row.attempt, lease_seconds)


def find_beside(session: Session, job_id: str) -> str | None:
    """Find a job that may train beside another: the next in the queue, if it fits.

    Jobs for other bases are not overtaken. A job that has been tried before goes by itself, since
    it may be the reason why its trainer was lost, and so does one that several devices train.

    Args:
        session: An open session.
        job_id: The job that is at work.

    Returns:
        A job to claim; None when the queue is empty or its next job does not fit.
    """
    query = (
        sa.select(Job.id, Job.base_model, Job.spec, Job.attempt)
        .where(Job.status == JobStatus.QUEUED, is_due(Job.not_before))
        .order_by(Job.priority, Job.created_at, Job.id)
        .limit(1)
    )
    found = session.execute(query).one_or_none()
    own = session.execute(sa.select(Job.base_model, Job.spec).where(Job.id == job_id)).one_or_none()
    if found is None or own is None or found.attempt > 0:
        return None
    fits = found.base_model == own.base_model and _base_of(found.spec) == _base_of(own.spec)
    alone = any(_devices_of(job.spec) > 1 for job in (found, own))
    return str(found.id) if fits and not alone else None


def _base_of(spec: Mapping[str, Any]) -> tuple[Any, Any]:
    """What decides which copy of a base a job trains on, besides its name."""
    return spec.get("base"), spec.get("training", {}).get("precision")


def _devices_of(spec: Mapping[str, Any]) -> int:
    return int(spec.get("training", {}).get("devices", 1))


def give_up(session: Session, *conditions: sa.ColumnElement[bool]) -> None:
    """Fail the claimable jobs that have no attempt left.

    Args:
        session: A writing session.
        *conditions: Which ones.
    """
    statement = (
        sa.update(Job)
        .where(*conditions, _is_claimable(), is_spent())
        .values(
            status=JobStatus.FAILED,
            error=TOO_MANY_ATTEMPTS,
            finished_at=clock.now(),
            owner=None,
            lease_until=None,
        )
        .returning(Job.id, Job.tenant_id, Job.attempt)
        .execution_options(synchronize_session=False)
    )
    for row in sorted(session.execute(statement)):
        tell_status(
            session,
            job_id=row.id,
            tenant_id=row.tenant_id,
            attempt=row.attempt,
            status=JobStatus.FAILED,
            error=TOO_MANY_ATTEMPTS,
        )


def beat(session: Session, job_id: str, attempt: int, *, lease_seconds: float) -> Beat | None:
    """Renew a lease and hear what the user wishes.

    Args:
        session: A writing session.
        job_id: Which job.
        attempt: The claim's.
        lease_seconds: For how long from now.

    Returns:
        The user's wish; None when the attempt is fenced: stop at once and write nothing more.
    """
    statement = (
        sa.update(Job)
        .where(*_held(job_id, attempt))
        .values(lease_until=clock.later(lease_seconds))
        .returning(Job.control, Job.status)
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    return None if row is None else Beat(row.control, row.status)


def read_wish(session: Session, job_id: str, attempt: int) -> str | None:
    """Hear what the user wishes without renewing the lease; one look-up by primary key.

    Args:
        session: An open session.
        job_id: Which job.
        attempt: The claim's.

    Returns:
        ``cancel``, ``pause``, or None to go on; None also when the attempt is fenced, which
        ``beat`` will tell.
    """
    return session.scalars(sa.select(Job.control).where(*_held(job_id, attempt))).one_or_none()


def hold(session: Session, job_id: str, attempt: int) -> bool:
    """Make sure that an attempt still has its job until this transaction ends.

    Call it first in a transaction that writes rows of other tables for the job.

    Args:
        session: A writing session.
        job_id: Which job.
        attempt: The claim's.

    Returns:
        False when the attempt is fenced.
    """
    query = sa.select(Job.id).where(*_held(job_id, attempt)).with_for_update(key_share=True)
    return session.scalars(query).one_or_none() is not None


def update_fenced(session: Session, job_id: str, attempt: int, **values: Any) -> bool:
    """Write to a job.

    Args:
        session: A writing session.
        job_id: Which job.
        attempt: The claim's.
        **values: Columns out of ``FENCED_COLUMNS``; ``first_step_at=True`` sets the present moment
            unless it is set already.

    Returns:
        False when the attempt is fenced and nothing was written.
    """
    statement = (
        sa.update(Job)
        .where(*_held(job_id, attempt))
        .values(**_checked(values))
        .returning(Job.id)
        .execution_options(synchronize_session=False)
    )
    return session.scalars(statement).one_or_none() is not None


def finish(
    session: Session,
    job_id: str,
    attempt: int,
    status: JobStatus,
    **values: Any,
) -> bool:
    """End an attempt: the job succeeded, failed, was cancelled, or is paused.

    Args:
        session: A writing session.
        job_id: Which job.
        attempt: The claim's.
        status: The new status; what it may follow stands in ``core.states.TRANSITIONS``.
        **values: Columns out of ``FENCED_COLUMNS``.

    Returns:
        False when the attempt is fenced, or the job's status does not allow this one; nothing was
        written.

    Raises:
        ValueError: ``queued`` and the active states are not an end.
    """
    if status in ACTIVE or status in {JobStatus.QUEUED, JobStatus.VALIDATING_FILES}:
        message = f"{status} does not end an attempt"
        raise ValueError(message)
    before = [old for old in ACTIVE if status in TRANSITIONS[old]]
    ended: dict[str, Any] = {"max_attempts": Job.max_attempts + 1}
    if status is JobStatus.PAUSED:
        ended["phase"] = None
    else:
        ended = {"finished_at": clock.now()}
    statement = (
        sa.update(Job)
        .where(*_held(job_id, attempt), Job.status.in_(before))
        .values(
            status=status, control=None, owner=None, lease_until=None, **ended, **_checked(values)
        )
        .returning(Job.tenant_id)
        .execution_options(synchronize_session=False)
    )
    tenant_id = session.scalars(statement).one_or_none()
    if tenant_id is None:
        return False
    tell_status(
        session,
        job_id=job_id,
        tenant_id=tenant_id,
        attempt=attempt,
        status=status,
        reason=values.get("reason"),
        error=values.get("error"),
    )
    return True


def release(
    session: Session,
    job_id: str,
    attempt: int,
    *,
    reason: str,
    counted: bool = False,
    wait_seconds: float | None = None,
) -> bool:
    """Give a job back, for another worker to go on.

    A running job becomes queued; one that was to be paused or cancelled becomes that.

    Args:
        session: A writing session.
        job_id: Which job.
        attempt: The claim's.
        reason: Why, such as ``drain``.
        counted: Whether the attempt counts as lost (its trainer crashed). An attempt that ended in
            order does not: the job is given one more.
        wait_seconds: For how long nobody may claim it; the sweep sends it then.

    Returns:
        False when the attempt is fenced. Send the job after the commit; a duplicate does no harm.
    """
    statement = (
        sa.update(Job)
        .where(*_held(job_id, attempt))
        .values(
            max_attempts=Job.max_attempts if counted else Job.max_attempts + 1,
            reason=reason,
            **let_go(wait_seconds),
        )
        .returning(Job.tenant_id, Job.status)
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    if row is None:
        return False
    tell_status(
        session,
        job_id=job_id,
        tenant_id=row.tenant_id,
        attempt=attempt,
        status=row.status,
        reason=reason,
    )
    return True


def let_go(wait_seconds: float | None = None) -> dict[str, Any]:
    """Give the changes that take an active job from its worker.

    Args:
        wait_seconds: For how long nobody may claim it.

    Returns:
        Values of an update on ``Job``: running becomes queued, pausing paused, cancelling
        cancelled.
    """
    kind = Job.status.type

    def literal(status: JobStatus) -> sa.ColumnElement[JobStatus]:
        return sa.literal(status, kind)

    return {
        "status": sa.case(
            (Job.status == JobStatus.PAUSING, literal(JobStatus.PAUSED)),
            (Job.status == JobStatus.CANCELLING, literal(JobStatus.CANCELLED)),
            else_=literal(JobStatus.QUEUED),
        ),
        "finished_at": sa.case((Job.status == JobStatus.CANCELLING, clock.now()), else_=None),
        "phase": None,
        "control": None,
        "owner": None,
        "lease_until": None,
        **held_back(wait_seconds),
    }


def _is_claimable() -> sa.ColumnElement[bool]:
    return sa.or_(
        sa.and_(Job.status == JobStatus.QUEUED, is_due(Job.not_before)),
        sa.and_(Job.status == JobStatus.RUNNING, is_expired()),
    )


def _held(job_id: str, attempt: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (Job.id == job_id, Job.attempt == attempt, Job.status.in_(ACTIVE))


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    unknown = set(values) - FENCED_COLUMNS
    if unknown:
        message = f"an attempt cannot write {sorted(unknown)}"
        raise TypeError(message)
    if values.get("first_step_at") is True:
        return values | {"first_step_at": sa.func.coalesce(Job.first_step_at, clock.now())}
    return values

"""Sweeps: made once, gone on with by whoever comes first, cancelled with all of their jobs.

Who goes on reads a sweep, decides without any lock, and writes only if the sweep is still the one
that was read (``take``): of two that decide at once one writes, the other decides anew. So each
trial is made once, in the transaction that makes its job.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock, idempotency, owned
from core.db.jobs import wishes
from core.db.models import Job, Sweep
from core.db.pages import Page
from core.errors import Conflict, InvalidTransition
from core.ids import new_id
from core.states import SWEEP_ACTIVE, TERMINAL, SweepStatus

WAITS = -1
"""Of ``Sweep.settled``: somebody shall look at it."""


def create_once(
    session: Session,
    *,
    tenant_id: str,
    dataset_id: str,
    name: str,
    spec: Mapping[str, Any],
    idempotency_key: str | None,
    request_digest: str,
) -> tuple[Sweep, bool]:
    """Insert a sweep unless the same request has done so already.

    Args:
        session: A writing session.
        tenant_id: Whose sweep.
        dataset_id: The tenant's data set.
        name: Of the sweep.
        spec: ``SweepSpec``, its references decided.
        idempotency_key: The caller's key; without one, an equal body within two minutes is the same
            wish, unless its sweep has failed or was cancelled.
        request_digest: Digest of the request body.

    Returns:
        The sweep, and whether it is new: send it after the commit.
    """
    sweep = Sweep(
        id=new_id("swp"),
        tenant_id=tenant_id,
        dataset_id=dataset_id,
        name=name,
        status=SweepStatus.RUNNING,
        spec=dict(spec),
        idempotency_key=idempotency_key,
        request_digest=request_digest,
    )
    still_wanted = Sweep.status.not_in((SweepStatus.FAILED, SweepStatus.CANCELLED))
    return idempotency.insert_once(session, sweep, still_wanted)


def get(session: Session, tenant_id: str, sweep_id: str) -> Sweep:
    """Read a sweep.

    Args:
        session: An open session.
        tenant_id: Who asks.
        sweep_id: Which one.

    Returns:
        The sweep; ``NotFound`` when the tenant has none such.
    """
    return owned.get(session, Sweep, tenant_id, sweep_id)


def get_for_worker(session: Session, sweep_id: str) -> Sweep | None:
    """Read a sweep named by a message, which carries nothing but the id.

    Args:
        session: An open session.
        sweep_id: Which one.

    Returns:
        The sweep, or None.
    """
    return session.get(Sweep, sweep_id, populate_existing=True)


def list_page(
    session: Session, tenant_id: str, *, limit: int = 20, after: str | None = None
) -> Page[Sweep]:
    """List a tenant's sweeps, newest first.

    Args:
        session: An open session.
        tenant_id: Who asks.
        limit: Rows of a page.
        after: Last id of the page before.

    Returns:
        One page.
    """
    return owned.list_page(session, Sweep, tenant_id, limit=limit, after=after)


def take(session: Session, sweep: Sweep, *, settled: int, **values: Any) -> bool:
    """Change a sweep if it is still the one that was read; nobody else can until the commit.

    Args:
        session: A writing session.
        sweep: As it was read.
        settled: How many of its jobs had ended then; ``WAITS`` when somebody shall look again.
        **values: Columns and what they become; a status in which it has ended sets the moment.

    Returns:
        False when it has changed since: read it again.
    """
    if values.get("status", SweepStatus.RUNNING) not in SWEEP_ACTIVE:
        values["finished_at"] = clock.now()
    statement = (
        sa.update(Sweep)
        .where(Sweep.id == sweep.id, Sweep.version == sweep.version)
        .values(version=Sweep.version + 1, settled=settled, **values)
        .returning(Sweep.id)
        .execution_options(synchronize_session=False)
    )
    return session.scalars(statement).one_or_none() is not None


def note_test(session: Session, sweep: Sweep, job_id: str) -> None:
    """Write down the job that tests the best trial, in the transaction that made it.

    Args:
        session: A session that has taken the sweep.
        sweep: Which one.
        job_id: The job.
    """
    session.execute(
        sa.update(Sweep)
        .where(Sweep.id == sweep.id)
        .values(test_job_id=job_id)
        .execution_options(synchronize_session=False)
    )


def request_cancel(session: Session, tenant_id: str, sweep_id: str) -> Sweep:
    """Cancel a sweep and every job of it that has not ended.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        sweep_id: Which one.

    Returns:
        The sweep, ``cancelling``: send it after the commit. A second wish changes nothing.

    Raises:
        Conflict: It has ended (code ``sweep_finished``).
    """
    sweep = get(session, tenant_id, sweep_id)
    statement = (
        sa.update(Sweep)
        .where(Sweep.id == sweep.id, Sweep.status.in_(SWEEP_ACTIVE))
        .values(status=SweepStatus.CANCELLING, version=Sweep.version + 1, settled=WAITS)
        .returning(Sweep.id)
        .execution_options(synchronize_session=False)
    )
    # whoever is making a trial holds the row: what it made is seen below
    if session.scalars(statement).one_or_none() is None:
        message = f"sweep {sweep.id} has ended: it is {get(session, tenant_id, sweep_id).status}"
        raise Conflict(message, code="sweep_finished")
    for job_id in _living(session, sweep.id):
        _cancel_job(session, tenant_id, job_id)
    return get(session, tenant_id, sweep_id)


def reopen(session: Session, job: Job) -> None:
    """Let a sweep that has failed go on, since a job that it failed for is tried again.

    Before the job is locked, as when a sweep is cancelled. It is found by the recovery sweep.

    Args:
        session: A writing session, in which the job is queued next.
        job: Any failed job; nothing is done for one of no sweep, or a trial whose sweep failed in
            its test.

    Raises:
        InvalidTransition: The sweep is being cancelled: it would wait for the job.
    """
    if job.sweep_id is None:
        return
    # who cancels looks for living jobs while it holds the sweep, and this one is about to be one
    sweep = owned.get(session, Sweep, job.tenant_id, job.sweep_id, lock=owned.Lock.CHANGE)
    if sweep.status is SweepStatus.CANCELLING:
        message = f"sweep {sweep.id} of job {job.id} is being cancelled"
        raise InvalidTransition(f"{message}; retry the job when the sweep is cancelled")
    if sweep.status is SweepStatus.FAILED and sweep.test_job_id in (None, job.id):
        sweep.status = SweepStatus.RUNNING if sweep.test_job_id is None else SweepStatus.TESTING
        sweep.error = sweep.finished_at = None
        sweep.version += 1
        sweep.settled = WAITS
        session.flush()


def _living(session: Session, sweep_id: str) -> Sequence[str]:
    query = sa.select(Job.id).where(Job.sweep_id == sweep_id, Job.status.not_in(TERMINAL))
    return session.scalars(query.order_by(Job.id)).all()


def _cancel_job(session: Session, tenant_id: str, job_id: str) -> None:
    try:
        wishes.request_cancel(session, tenant_id, job_id)
    except Conflict as error:
        if error.code != "job_finished":  # it ended between the look and the lock
            raise


def find_due(session: Session, *, resend_after_seconds: float) -> list[str]:
    """Find the sweeps that somebody should go on with, and count them as sent.

    Args:
        session: A writing session.
        resend_after_seconds: How long a message may be under way.

    Returns:
        Ids of sweeps whose jobs have ended, or which were made or cancelled, without that anybody
        went on since.
    """
    ended = (
        sa.select(sa.func.count())
        .where(Job.sweep_id == Sweep.id, Job.status.in_(TERMINAL))
        .scalar_subquery()
    )
    statement = (
        sa.update(Sweep)
        .where(
            Sweep.status.in_(SWEEP_ACTIVE),
            Sweep.sent_at < clock.later(-resend_after_seconds),
            Sweep.settled != ended,
        )
        .values(sent_at=clock.now())
        .returning(Sweep.id)
        .execution_options(synchronize_session=False)
    )
    return sorted(session.scalars(statement))

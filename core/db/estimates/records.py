"""Making, reading and cancelling estimates."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock, owned
from core.db.locks import lock_name
from core.db.models import Estimate, Job
from core.db.pages import Page
from core.errors import Conflict, TooMany
from core.ids import new_id
from core.states import ESTIMATE_ENDS, EstimateStatus, JobStatus

MOST_WAITING = 8
"""Estimates of one tenant that are not over. Each takes a trainer for some half a minute, and jobs
of everybody wait for it."""

PRIORITY = 0
"""Of the messages of estimates: they take turns with jobs that were asked for one by one."""


def create(
    session: Session,
    *,
    tenant_id: str,
    dataset_id: str,
    spec: Mapping[str, Any],
    job_id: str | None = None,
    is_sent: bool = True,
) -> Estimate:
    """Insert an estimate.

    Args:
        session: A writing session.
        tenant_id: Whose.
        dataset_id: The tenant's data set.
        spec: The job as asked, defaults filled in.
        job_id: The job that it is made with, if any; such a one is not counted.
        is_sent: Whether it counts as sent: send it after the commit. Else the next sweep does.

    Returns:
        The estimate, queued.

    Raises:
        TooMany: The tenant has ``MOST_WAITING`` already (code ``too_many_estimates``).
    """
    if job_id is None:
        # two at once must not both find the last place
        lock_name(session, f"estimates/{tenant_id}")
        waiting = sa.select(sa.func.count()).where(
            Estimate.tenant_id == tenant_id,
            Estimate.job_id.is_(None),
            Estimate.status.not_in(ESTIMATE_ENDS),
        )
        if session.scalar(waiting) >= MOST_WAITING:  # type: ignore[operator]  # a count is a number
            raise TooMany(
                f"{MOST_WAITING} estimates of yours wait or run; ask again when one is over",
                code="too_many_estimates",
                retry_after_seconds=10,
            )
    estimate = Estimate(
        id=new_id("est"),
        tenant_id=tenant_id,
        dataset_id=dataset_id,
        job_id=job_id,
        spec=dict(spec),
        status=EstimateStatus.QUEUED,
        attempt=0,
        losses=0,
        sends=1 if is_sent else 0,
        sent_at=clock.now() if is_sent else None,
    )
    session.add(estimate)
    session.flush()
    session.refresh(estimate)
    return estimate


def get(session: Session, tenant_id: str, estimate_id: str) -> Estimate:
    """Read an estimate.

    Args:
        session: An open session.
        tenant_id: Who asks.
        estimate_id: Which one.

    Returns:
        The estimate; ``NotFound`` when the tenant has none such.
    """
    return owned.get(session, Estimate, tenant_id, estimate_id)


def get_for_worker(session: Session, estimate_id: str) -> Estimate | None:
    """Read an estimate named by a message, which carries nothing but the id.

    Args:
        session: An open session.
        estimate_id: Which one.

    Returns:
        The estimate, or None.
    """
    return session.get(Estimate, estimate_id, populate_existing=True)


def list_page(
    session: Session,
    tenant_id: str,
    *,
    status: EstimateStatus | None = None,
    limit: int = 20,
    after: str | None = None,
) -> Page[Estimate]:
    """List a tenant's estimates, newest first.

    Args:
        session: An open session.
        tenant_id: Who asks.
        status: Only these.
        limit: Rows of a page.
        after: Last id of the page before.

    Returns:
        One page.
    """
    wanted = owned.matching((Estimate.status, status))
    return owned.list_page(session, Estimate, tenant_id, *wanted, limit=limit, after=after)


def find_of_jobs(session: Session, job_ids: Sequence[str]) -> dict[str, Estimate]:
    """Find the estimates that were made with jobs.

    Args:
        session: An open session.
        job_ids: The jobs.

    Returns:
        The newest one by job, of those that have one.
    """
    if not job_ids:
        return {}
    query = sa.select(Estimate).where(Estimate.job_id.in_(job_ids)).order_by(Estimate.id)
    return {str(row.job_id): row for row in session.scalars(query)}


def queue_positions(session: Session, rows: Sequence[Estimate]) -> dict[str, int]:
    """Count for each of some queued estimates what goes before it, of whatever tenant.

    Args:
        session: An open session.
        rows: Estimates; those that are not queued are left out.

    Returns:
        By id the jobs and estimates that are queued and whose turn comes sooner.
    """
    waiting = [row.id for row in rows if row.status is EstimateStatus.QUEUED]
    if not waiting:
        return {}
    ahead = sa.union_all(
        # jobs of a sweep stand behind all that were asked for by themselves
        sa.select(Job.id, Job.created_at).where(
            Job.status == JobStatus.QUEUED, Job.priority <= PRIORITY
        ),
        sa.select(Estimate.id, Estimate.created_at).where(Estimate.status == EstimateStatus.QUEUED),
    ).subquery()
    place = sa.func.row_number().over(order_by=(ahead.c.created_at, ahead.c.id)) - 1
    queue = sa.select(ahead.c.id, place.label("place")).subquery()
    query = sa.select(queue).where(queue.c.id.in_(waiting))
    return {row.id: row.place for row in session.execute(query)}


def request_cancel(session: Session, tenant_id: str, estimate_id: str) -> Estimate:
    """Cancel an estimate: at once when it waits, through its trainer when it runs.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        estimate_id: Which one.

    Returns:
        The estimate; a second wish changes nothing.

    Raises:
        Conflict: It is over (code ``estimate_finished``).
    """
    _cancel(session, Estimate.id == estimate_id, Estimate.tenant_id == tenant_id, reason=None)
    row = get(session, tenant_id, estimate_id)
    if row.status in ESTIMATE_ENDS - {EstimateStatus.CANCELLED}:
        message = f"estimate {row.id} is over: it is {row.status}"
        raise Conflict(message, code="estimate_finished")
    return row


def cancel_of_job(session: Session, job_id: str, *, reason: str) -> None:
    """Cancel what was measured for a job that no longer waits for it.

    Args:
        session: A writing session.
        job_id: The job.
        reason: Why, for its owner.
    """
    _cancel(session, Estimate.job_id == job_id, reason=reason)


def _cancel(session: Session, *which: sa.ColumnElement[bool], reason: str | None) -> None:
    """One update for both states: whoever claims it or gives it back comes before or after."""
    is_queued = Estimate.status == EstimateStatus.QUEUED
    session.execute(
        sa.update(Estimate)
        .where(*which, Estimate.status.not_in(ESTIMATE_ENDS))
        .values(
            status=sa.case(
                (is_queued, sa.literal(EstimateStatus.CANCELLED, Estimate.status.type)),
                else_=Estimate.status,
            ),
            finished_at=sa.case((is_queued, clock.now()), else_=None),
            control=sa.case((is_queued, None), else_="cancel"),
            reason=reason,
        )
        .execution_options(synchronize_session=False)
    )

"""A job's story: events in order, and the curves of its metrics."""

import math
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from core.db import clock
from core.db.models import Job, JobEvent, JobMetric
from core.db.pages import Page, refuse_cursor, take_page


def append(
    session: Session,
    *,
    job_id: str,
    tenant_id: str,
    attempt: int,
    event: str,
    message: str,
    level: str = "info",
    data: Mapping[str, Any] | None = None,
) -> int:
    """Add an event.

    On Postgres the job's row is locked first: numbers are given before commit, and without the lock
    a reader could see a later number, ask for what follows it, and never learn of an earlier one.

    Args:
        session: A writing session; a worker has called ``jobs.hold`` in it.
        job_id: Whose story.
        tenant_id: The job's tenant.
        attempt: The attempt that speaks; the job's present one for the api.
        event: ``status``, ``progress``, ``metric``, ``log``, ``complete`` or ``error``.
        message: One line for people.
        level: ``info``, ``warning`` or ``error``.
        data: The same for programs.

    Returns:
        The event's number, larger than every earlier one of the job.
    """
    session.execute(sa.select(Job.id).where(Job.id == job_id).with_for_update(key_share=True))
    row = JobEvent(
        job_id=job_id,
        tenant_id=tenant_id,
        attempt=attempt,
        event=event,
        level=level,
        # Postgres holds no NUL in text, and messages may quote what a user sent
        message=message.replace("\x00", ""),
        data=dict(data or {}),
    )
    session.add(row)
    session.flush()
    return row.seq


def page(
    session: Session, tenant_id: str, job_id: str, *, after_seq: int = 0, limit: int = 100
) -> Page[JobEvent]:
    """Read a job's events in the order in which they happened.

    Args:
        session: An open session.
        tenant_id: Who asks.
        job_id: Whose story; ``jobs.get`` tells whether it exists.
        after_seq: Number of the last event that is known already.
        limit: Rows of a page.

    Returns:
        One page, oldest first; empty for an unknown job.
    """
    query = (
        sa.select(JobEvent)
        .where(JobEvent.tenant_id == tenant_id, JobEvent.job_id == job_id, JobEvent.seq > after_seq)
        .order_by(JobEvent.seq)
    )
    return take_page(session, query, limit=limit)


def newest(
    session: Session, tenant_id: str, job_id: str, *, before_seq: int | None, limit: int
) -> Page[JobEvent]:
    """Read a job's events backwards.

    Args:
        session: An open session.
        tenant_id: Who asks.
        job_id: Whose story; ``jobs.get`` tells whether it exists.
        before_seq: Number of the last event of the page before; None for the first page.
        limit: Rows of a page.

    Returns:
        One page, newest first; empty for an unknown job. ``BadInput`` goes through for a number
        that is no event of this job.
    """
    query = sa.select(JobEvent).where(JobEvent.tenant_id == tenant_id, JobEvent.job_id == job_id)
    if before_seq is not None:
        if session.scalars(query.where(JobEvent.seq == before_seq)).one_or_none() is None:
            refuse_cursor(f"event {before_seq}")
        query = query.where(JobEvent.seq < before_seq)
    return take_page(session, query.order_by(JobEvent.seq.desc()), limit=limit)


def put_metric(
    session: Session,
    *,
    job_id: str,
    tenant_id: str,
    attempt: int,
    name: str,
    step: int,
    value: float,
) -> None:
    """Set one point of a curve; a step that a resumed job does again is overwritten.

    Args:
        session: A writing session; a worker has called ``jobs.hold`` in it.
        job_id: Whose curve.
        tenant_id: The job's tenant.
        attempt: The attempt that measured.
        name: Name of the curve, such as ``train/loss``.
        step: Optimizer step.
        value: The value; one that is not finite is kept as NULL, which JSON can say.
    """
    values = {
        "job_id": job_id,
        "tenant_id": tenant_id,
        "attempt": attempt,
        "name": name,
        "step": step,
        "value": value if math.isfinite(value) else None,
        "created_at": clock.now(),
    }
    changes = {key: values[key] for key in ("attempt", "value", "created_at")}
    keys = ["job_id", "name", "step"]
    if session.get_bind().dialect.name == "postgresql":
        session.execute(
            postgresql.insert(JobMetric)
            .values(values)
            .on_conflict_do_update(index_elements=keys, set_=changes)
        )
    else:
        session.execute(
            sqlite.insert(JobMetric)
            .values(values)
            .on_conflict_do_update(index_elements=keys, set_=changes)
        )


def metrics(
    session: Session,
    tenant_id: str,
    job_id: str,
    *,
    name: str | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
) -> list[JobMetric]:
    """Read a job's curves.

    Args:
        session: An open session.
        tenant_id: Who asks.
        job_id: Whose curves.
        name: Only this curve.
        from_step: First step, inclusive.
        to_step: Last step, inclusive.

    Returns:
        Points by name, then by step; empty for an unknown job.
    """
    query = sa.select(JobMetric).where(JobMetric.tenant_id == tenant_id, JobMetric.job_id == job_id)
    if name is not None:
        query = query.where(JobMetric.name == name)
    if from_step is not None:
        query = query.where(JobMetric.step >= from_step)
    if to_step is not None:
        query = query.where(JobMetric.step <= to_step)
    return list(session.scalars(query.order_by(JobMetric.name, JobMetric.step)))


def measured_at(
    session: Session, tenant_id: str, job_id: str, *, prefix: str, step: int
) -> tuple[int, dict[str, float | None]] | None:
    """Find what was measured last, at a step or before it.

    Args:
        session: An open session.
        tenant_id: Who asks.
        job_id: Whose curves.
        prefix: Of the curves' names, such as ``validation/``.
        step: Optimizer step.

    Returns:
        The step of the measurement and its values by name without the prefix; None when there is
        none so far.
    """
    own = (
        JobMetric.tenant_id == tenant_id,
        JobMetric.job_id == job_id,
        JobMetric.name.startswith(prefix, autoescape=True),
    )
    newest = sa.select(sa.func.max(JobMetric.step)).where(*own, JobMetric.step <= step)
    last = session.scalar(newest)
    if last is None:
        return None
    query = sa.select(JobMetric.name, JobMetric.value).where(*own, JobMetric.step == last)
    found = session.execute(query.order_by(JobMetric.name))
    return last, {row.name.removeprefix(prefix): row.value for row in found}


def metric_names(session: Session, tenant_id: str, job_id: str) -> list[str]:
    """Name a job's curves.

    Args:
        session: An open session.
        tenant_id: Who asks.
        job_id: Whose curves.

    Returns:
        Sorted; empty for an unknown job.
    """
    query = (
        sa.select(JobMetric.name)
        .where(JobMetric.tenant_id == tenant_id, JobMetric.job_id == job_id)
        .distinct()
    )
    return sorted(session.scalars(query))

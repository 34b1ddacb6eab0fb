"""Making and reading jobs."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock, idempotency, names, owned
from core.db.jobs.story import tell_status
from core.db.models import Job
from core.db.pages import Page
from core.ids import new_id
from core.states import JobStatus


def create(
    session: Session,
    *,
    tenant_id: str,
    dataset_id: str,
    base_model: str,
    spec: Mapping[str, Any],
    max_attempts: int,
    task: str | None = None,
    adapter_name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    priority: int = 0,
    status: JobStatus = JobStatus.QUEUED,
    reason: str | None = None,
    reproduces_job_id: str | None = None,
    sweep_id: str | None = None,
    idempotency_key: str | None = None,
    request_digest: str | None = None,
) -> Job:
    """Insert a job; use ``create_once`` where a caller may repeat itself.

    Args:
        session: A writing session.
        tenant_id: Whose job.
        dataset_id: The tenant's data set.
        base_model: Name of the base.
        spec: The job as asked, defaults filled in.
        max_attempts: How often its worker may be lost.
        task: The task; None to take the data set's.
        adapter_name: Name of the adapter to publish.
        metadata: The user's own labels.
        priority: Lower runs sooner.
        status: ``queued``; ``validating_files`` while the data set is not ready; ``paused`` to wait
            for ``start``, with the reason ``core.states.WAITS_FOR_START``.
        reason: Why it waits.
        reproduces_job_id: The tenant's job that it repeats.
        sweep_id: The tenant's sweep that makes it.
        idempotency_key: The caller's key.
        request_digest: Digest of the request body.

    Returns:
        The job; a queued one counts as sent: send it after the commit. ``Conflict`` (code
        ``name_taken``) goes through when an alias has the adapter's name.
    """
    if adapter_name is not None:
        names.hold_for_adapter(session, tenant_id, adapter_name)
    queued = status is JobStatus.QUEUED
    job = Job(
        id=new_id("job"),
        tenant_id=tenant_id,
        dataset_id=dataset_id,
        base_model=base_model,
        task=task,
        adapter_name=adapter_name,
        status=status,
        reason=reason,
        reproduces_job_id=reproduces_job_id,
        sweep_id=sweep_id,
        spec=dict(spec),
        metadata_=dict(metadata or {}),
        priority=priority,
        max_attempts=max_attempts,
        attempt=0,
        sends=1 if queued else 0,
        sent_at=clock.now() if queued else None,
        idempotency_key=idempotency_key,
        request_digest=request_digest,
    )
    session.add(job)
    session.flush()
    tell_status(
        session, job_id=job.id, tenant_id=tenant_id, attempt=0, status=status, reason=reason
    )
    session.refresh(job)
    return job


def create_once(
    session: Session,
    *,
    tenant_id: str,
    idempotency_key: str | None,
    request_digest: str | None,
    **values: Any,
) -> tuple[Job, bool]:
    """Insert a job unless the same request has done so already.

    Args:
        session: A writing session.
        tenant_id: Whose job.
        idempotency_key: The caller's key; without one, an equal body within two minutes is the same
            wish, unless its job has failed or was cancelled.
        request_digest: Digest of the request body (``core.db.idempotency.digest_request``).
        **values: As for ``create``.

    Returns:
        The job, and whether it is new.
    """
    return idempotency.create_once(
        session,
        Job,
        lambda: create(
            session,
            tenant_id=tenant_id,
            idempotency_key=idempotency_key,
            request_digest=request_digest,
            **values,
        ),
        _still_wanted(),
        tenant_id=tenant_id,
        idempotency_key=idempotency_key,
        request_digest=request_digest,
    )


def get(session: Session, tenant_id: str, job_id: str) -> Job:
    """Read a job.

    Args:
        session: An open session.
        tenant_id: Who asks.
        job_id: Which one.

    Returns:
        The job; ``NotFound`` when the tenant has none such.
    """
    return owned.get(session, Job, tenant_id, job_id)


def get_for_worker(session: Session, job_id: str) -> Job | None:
    """Read a job named by a message, which carries nothing but the id.

    Args:
        session: An open session.
        job_id: Which one.

    Returns:
        The job, or None.
    """
    return session.get(Job, job_id, populate_existing=True)


def list_page(
    session: Session,
    tenant_id: str,
    *,
    status: JobStatus | None = None,
    dataset_id: str | None = None,
    base_model: str | None = None,
    sweep_id: str | None = None,
    metadata: Mapping[str, str] | None = None,
    limit: int = 20,
    after: str | None = None,
) -> Page[Job]:
    """List a tenant's jobs, newest first.

    Args:
        session: An open session.
        tenant_id: Who asks.
        status: Only these.
        dataset_id: Only these.
        base_model: Only these.
        sweep_id: Only these.
        metadata: Only jobs that carry all of these labels.
        limit: Rows of a page.
        after: Last id of the page before.

    Returns:
        One page.
    """
    wanted = owned.matching(
        (Job.status, status),
        (Job.dataset_id, dataset_id),
        (Job.base_model, base_model),
        (Job.sweep_id, sweep_id),
    )
    labelled = [_has_label(session, name, label) for name, label in (metadata or {}).items()]
    return owned.list_page(session, Job, tenant_id, *wanted, *labelled, limit=limit, after=after)


def queue_position(session: Session, tenant_id: str, job_id: str) -> int | None:
    """Count the jobs that run before a queued one; other tenants' jobs are counted and not shown.

    Args:
        session: An open session.
        tenant_id: Who asks.
        job_id: Which one.

    Returns:
        0 for the next one to run; None for a job that is not queued.
    """
    job = get(session, tenant_id, job_id)
    return queue_positions(session, tenant_id, [job.id]).get(job.id)


def queue_positions(session: Session, tenant_id: str, job_ids: Sequence[str]) -> dict[str, int]:
    """Count for each of some jobs those that run before it, of whatever tenant.

    Args:
        session: An open session.
        tenant_id: Who asks.
        job_ids: Which ones.

    Returns:
        Position by id, 0 for the next one to run; jobs that are not queued, or another's, are left
        out.
    """
    if not job_ids:
        return {}
    place = sa.func.row_number().over(order_by=(Job.priority, Job.id)) - 1
    queue = (
        sa.select(Job.id, Job.tenant_id, place.label("place"))
        .where(Job.status == JobStatus.QUEUED)
        .subquery()
    )
    query = sa.select(queue.c.id, queue.c.place).where(
        queue.c.tenant_id == tenant_id, queue.c.id.in_(job_ids)
    )
    return {row.id: row.place for row in session.execute(query)}


def newest_spec(session: Session) -> dict[str, Any] | None:
    """Read what was asked of last, so that an idle trainer can load that base beforehand.

    Args:
        session: An open session.

    Returns:
        The spec of the newest job of any tenant, or None before the first.
    """
    return session.scalars(sa.select(Job.spec).order_by(Job.id.desc()).limit(1)).one_or_none()


def _has_label(session: Session, name: str, label: str) -> sa.ColumnElement[bool]:
    if session.get_bind().dialect.name == "postgresql":
        is_equal: sa.ColumnElement[bool] = Job.metadata_[name].as_string() == label
        return is_equal
    # SQLite takes a name for a path, in which quotes and backslashes cannot stand
    entry = sa.func.json_each(Job.metadata_).table_valued("key", "value")
    return sa.exists().where(entry.c.key == name, entry.c.value == label)


def _still_wanted() -> sa.ColumnElement[bool]:
    # who asks again after a failure wants another try
    return Job.status.not_in((JobStatus.FAILED, JobStatus.CANCELLED))

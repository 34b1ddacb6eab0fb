"""Checkpoints: rows appear after the bytes are in storage."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock
from core.db.models import Checkpoint, Job
from core.db.objects import hold_object
from core.ids import new_id
from core.states import JobStatus


def add(
    session: Session,
    *,
    job_id: str,
    tenant_id: str,
    attempt: int,
    step: int,
    key: str,
    bytes: int,
    sha256: str,
    delta: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Note a checkpoint; the same attempt and step a second time replaces the first.

    The bytes of its delta were in storage, and cannot be removed any more when this returns: look
    once more whether they are there before the transaction ends, since equal bytes may have been
    removed meanwhile.

    Args:
        session: A writing session; the worker has called ``jobs.hold`` in it.
        job_id: Whose checkpoint.
        tenant_id: The job's tenant.
        attempt: The attempt that wrote it.
        step: Optimizer steps done.
        key: Where its state lies in storage.
        bytes: Size of the state.
        sha256: Of the state, in hex.
        delta: What the row of an adapter would say of its delta: ``key``, ``digest``, ``bytes`` and
            the other columns by name; None for a state that holds its delta.

    Returns:
        The row.
    """
    if delta is not None:
        hold_object(session, str(delta["key"]))
    session.execute(
        sa.delete(Checkpoint).where(
            Checkpoint.job_id == job_id, Checkpoint.attempt == attempt, Checkpoint.step == step
        )
    )
    row = Checkpoint(
        id=new_id("ckpt"),
        job_id=job_id,
        tenant_id=tenant_id,
        attempt=attempt,
        step=step,
        key=key,
        bytes=bytes,
        sha256=sha256,
        delta_key=None if delta is None else str(delta["key"]),
        delta=None if delta is None else dict(delta),
    )
    session.add(row)
    session.flush()
    return row


def find(session: Session, tenant_id: str, checkpoint_id: str) -> Checkpoint | None:
    """Read a checkpoint by id.

    Args:
        session: An open session.
        tenant_id: Who asks.
        checkpoint_id: ``ckpt_…``.

    Returns:
        The row; None when the tenant has none such, or none any more.
    """
    query = sa.select(Checkpoint).where(
        Checkpoint.id == checkpoint_id, Checkpoint.tenant_id == tenant_id
    )
    return session.scalars(query).one_or_none()


def list_newest(session: Session, tenant_id: str, job_id: str) -> list[Checkpoint]:
    """List a job's checkpoints, the furthest first.

    Args:
        session: An open session.
        tenant_id: The job's tenant.
        job_id: Whose checkpoints.

    Returns:
        By step, then by attempt, both falling: the first that can be read is the one to resume
        from.
    """
    query = (
        sa.select(Checkpoint)
        .where(Checkpoint.tenant_id == tenant_id, Checkpoint.job_id == job_id)
        .order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc())
    )
    return list(session.scalars(query))


def list_abandoned(session: Session, *, older_than_seconds: float) -> list[tuple[str, str]]:
    """List jobs that will never go on and still have checkpoints.

    Args:
        session: An open session.
        older_than_seconds: How long ago the job ended, at least: its worker deletes them itself.

    Returns:
        Tenant and id of each, of every tenant. A failed job may be retried and is not among them.
    """
    query = (
        sa.select(Job.tenant_id, Job.id)
        .join(Checkpoint, Job.id == Checkpoint.job_id)
        .where(
            Job.status.in_((JobStatus.SUCCEEDED, JobStatus.CANCELLED)),
            Job.finished_at < clock.later(-older_than_seconds),
        )
        .distinct()
        .order_by(Job.id)
    )
    return [(row.tenant_id, row.id) for row in session.execute(query)]


def prune(session: Session, tenant_id: str, job_id: str, *, keep: int) -> list[Checkpoint]:
    """Forget all but the furthest checkpoints.

    Args:
        session: A writing session.
        tenant_id: The job's tenant.
        job_id: Whose checkpoints.
        keep: How many stay.

    Returns:
        Those that are gone; their bytes are to be removed after the commit.
    """
    gone = list_newest(session, tenant_id, job_id)[keep:]
    if gone:
        forget(session, tenant_id, [row.id for row in gone])
    return gone


def forget(session: Session, tenant_id: str, checkpoint_ids: Sequence[str]) -> None:
    """Forget some checkpoints.

    Args:
        session: A writing session; the worker has called ``jobs.hold`` in it.
        tenant_id: Whose checkpoints.
        checkpoint_ids: Which ones.
    """
    session.execute(
        sa.delete(Checkpoint).where(
            Checkpoint.tenant_id == tenant_id, Checkpoint.id.in_(checkpoint_ids)
        )
    )

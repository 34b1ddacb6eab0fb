"""How the service as a whole is: counts over all tenants, for whoever runs it."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import nodes
from core.db.jobs.leases import is_expired
from core.db.models import Batch, Dataset, Job
from core.states import BATCH_ENDED, DatasetStatus, JobStatus


def count_jobs(session: Session) -> dict[JobStatus, int]:
    """Count jobs.

    Args:
        session: An open session.

    Returns:
        Every status, with 0 where there is none.
    """
    query = sa.select(Job.status, sa.func.count()).group_by(Job.status)
    counts = dict.fromkeys(JobStatus, 0)
    for status, count in session.execute(query):
        counts[status] = count
    return counts


def count_expired_leases(session: Session) -> int:
    """Count jobs whose worker has not been heard of for a whole lease.

    Args:
        session: An open session.

    Returns:
        How many; the sweep takes them away within seconds.
    """
    return _count(session, sa.select(sa.func.count()).select_from(Job).where(is_expired()))


def count_validating(session: Session) -> int:
    """Count data sets that are not validated yet.

    Args:
        session: An open session.

    Returns:
        How many.
    """
    query = sa.select(sa.func.count()).select_from(Dataset)
    return _count(
        session,
        query.where(Dataset.status == DatasetStatus.VALIDATING, Dataset.deleted_at.is_(None)),
    )


def count_open_batches(session: Session) -> int:
    """Count batches that have not ended.

    Args:
        session: An open session.

    Returns:
        How many, whether somebody runs them or not.
    """
    query = sa.select(sa.func.count()).select_from(Batch)
    return _count(session, query.where(Batch.status.not_in(BATCH_ENDED)))


def count_inference(session: Session) -> int:
    """Count inference processes.

    Args:
        session: An open session.

    Returns:
        How many were heard of lately.
    """
    return len(nodes.list_live(session))


def _count(session: Session, query: sa.Select[int]) -> int:
    return session.scalar(query) or 0

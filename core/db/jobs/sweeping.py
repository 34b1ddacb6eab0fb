"""Recovery: jobs whose worker was lost, and queued jobs whose message was lost.

Any process may sweep at any time, and several at once: each job is given out to one of them.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock
from core.db.jobs.leases import give_up, is_expired, is_spent, let_go
from core.db.jobs.story import tell_status
from core.db.locks import lock_name
from core.db.models import Job
from core.db.resending import is_due, is_overdue
from core.states import JobStatus


def sweep(session: Session, *, resend_after_seconds: float) -> dict[str, int]:
    """Take back what was lost.

    Running jobs with an expired lease become queued (or failed, when no attempt is left), those to
    be paused or cancelled become that; queued jobs that are not held back and whose message is
    overdue count as sent now.

    Args:
        session: A writing session.
        resend_after_seconds: How long the first message of a queued job may take.

    Returns:
        Priority by id of the jobs to send after the commit; call ``mark_unsent`` for those that
        could not be sent.
    """
    # two sweeps that meet would lock the same rows in different order
    lock_name(session, "jobs/sweep")
    give_up(session, is_expired())
    expired = (
        sa.update(Job)
        # a lease may end between the two updates; a job without attempts then waits for a sweep
        .where(is_expired(), sa.not_(is_spent()))
        .values(reason="worker_lost", **let_go())
        .returning(Job.id, Job.tenant_id, Job.attempt, Job.status, Job.priority)
        .execution_options(synchronize_session=False)
    )
    requeued = {}
    for row in sorted(session.execute(expired)):
        tell_status(
            session,
            job_id=row.id,
            tenant_id=row.tenant_id,
            attempt=row.attempt,
            status=row.status,
            reason="worker_lost",
        )
        if row.status is JobStatus.QUEUED:
            requeued[row.id] = row.priority
    forgotten = (
        sa.update(Job)
        .where(
            Job.status == JobStatus.QUEUED,
            is_due(Job.not_before),
            is_overdue(Job.sends, Job.sent_at, resend_after_seconds),
        )
        .values(sent_at=clock.now(), sends=Job.sends + 1)
        .returning(Job.id, Job.priority)
        .execution_options(synchronize_session=False)
    )
    return requeued | {row.id: row.priority for row in sorted(session.execute(forgotten))}


def mark_unsent(session: Session, job_ids: Sequence[str]) -> None:
    """Note that jobs could not be sent, so that the next sweep tries again at once.

    Args:
        session: A writing session.
        job_ids: Which ones; those that are not queued any more are left alone.
    """
    session.execute(
        sa.update(Job)
        .where(Job.id.in_(job_ids), Job.status == JobStatus.QUEUED)
        .values(sent_at=None, sends=0)
        .execution_options(synchronize_session=False)
    )

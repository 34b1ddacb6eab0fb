"""What a worker does with an estimate: claim it, keep it, end it, let it go; and the sweep.

As with jobs every write names the attempt and changes nothing when another one has the estimate.
One that was lost is tried once more: what ended its trainer is most likely the estimate itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock
from core.db.locks import lock_name
from core.db.models import Estimate
from core.db.resending import held_back, is_due, is_overdue
from core.states import ESTIMATE_ENDS, EstimateStatus

MOST_LOSSES = 2

WORKER_LOST = {
    "code": "estimate_lost",
    "message": "the worker that measured was lost twice, most likely for want of memory; ask for "
    "smaller batches or rows",
    "param": None,
}


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to write to an estimate until the lease ends.

    Attributes:
        estimate_id: The estimate.
        tenant_id: Its tenant.
        attempt: The number that fences; 1 for the first.
        losses: Attempts that were lost before.
    """

    estimate_id: str
    tenant_id: str
    attempt: int
    losses: int


def claim(session: Session, estimate_id: str, *, owner: str, lease_seconds: float) -> Claim | None:
    """Take an estimate that is queued and not held back.

    Args:
        session: A writing session.
        estimate_id: Which one.
        owner: Who claims, for people to read.
        lease_seconds: For how long.

    Returns:
        The claim; None when there is nothing to do.
    """
    statement = (
        sa.update(Estimate)
        .where(
            Estimate.id == estimate_id,
            Estimate.status == EstimateStatus.QUEUED,
            is_due(Estimate.not_before),
        )
        .values(
            status=EstimateStatus.RUNNING,
            reason=None,
            attempt=Estimate.attempt + 1,
            owner=owner,
            lease_until=clock.later(lease_seconds),
            started_at=clock.now(),
        )
        .returning(Estimate.tenant_id, Estimate.attempt, Estimate.losses)
        .execution_options(synchronize_session=False)
    )
    row = session.execute(statement).one_or_none()
    return None if row is None else Claim(estimate_id, row.tenant_id, row.attempt, row.losses)


def beat(session: Session, estimate_id: str, attempt: int, *, lease_seconds: float) -> bool:
    """Renew a lease.

    Args:
        session: A writing session.
        estimate_id: Which estimate.
        attempt: The claim's.
        lease_seconds: For how long from now.

    Returns:
        False when the attempt is fenced: stop at once and write nothing more.
    """
    return _write(session, estimate_id, attempt, lease_until=clock.later(lease_seconds))


def read_wish(session: Session, estimate_id: str, attempt: int) -> str | None:
    """Hear what the owner wishes.

    Args:
        session: An open session.
        estimate_id: Which estimate.
        attempt: The claim's.

    Returns:
        ``cancel``, or None to go on; None also when the attempt is fenced.
    """
    query = sa.select(Estimate.control).where(*_held(estimate_id, attempt))
    return session.scalars(query).one_or_none()


def finish(
    session: Session,
    estimate_id: str,
    attempt: int,
    status: EstimateStatus,
    *,
    result: Mapping[str, Any] | None = None,
    error: Mapping[str, Any] | None = None,
) -> bool:
    """End an estimate.

    Args:
        session: A writing session.
        estimate_id: Which one.
        attempt: The claim's.
        status: How.
        result: What was measured, when it succeeded.
        error: Why it failed.

    Returns:
        False when the attempt is fenced and nothing was written.

    Raises:
        ValueError: The status is no end.
    """
    if status not in ESTIMATE_ENDS:
        message = f"{status} does not end an estimate"
        raise ValueError(message)
    return _write(
        session,
        estimate_id,
        attempt,
        status=status,
        result=None if result is None else dict(result),
        error=None if error is None else dict(error),
        finished_at=clock.now(),
        **_free(),
    )


def release(
    session: Session,
    estimate_id: str,
    attempt: int,
    *,
    reason: str,
    is_lost: bool,
    wait_seconds: float | None = None,
) -> bool:
    """Give an estimate back, for another attempt; one that was to be cancelled is.

    Args:
        session: A writing session.
        estimate_id: Which one.
        attempt: The claim's.
        reason: Why, such as ``drain``.
        is_lost: Whether the attempt counts as lost.
        wait_seconds: For how long nobody may claim it; the sweep sends it then.

    Returns:
        False when the attempt is fenced. Send it after the commit.
    """
    return _write(
        session,
        estimate_id,
        attempt,
        losses=Estimate.losses + (1 if is_lost else 0),
        **_let_go(reason, wait_seconds),
    )


def sweep(session: Session, *, resend_after_seconds: float) -> list[str]:
    """Take back what was lost.

    Args:
        session: A writing session.
        resend_after_seconds: How long the first message of a queued estimate may take.

    Returns:
        Ids of the estimates to send after the commit; call ``mark_unsent`` for those that could not
        be sent.
    """
    lock_name(session, "estimates/sweep")
    silent = (Estimate.status == EstimateStatus.RUNNING, Estimate.lease_until < clock.now())
    _update(session, *silent, Estimate.control.is_not(None), **_let_go(None))
    _update(
        session,
        *silent,
        Estimate.losses + 1 >= MOST_LOSSES,
        status=EstimateStatus.FAILED,
        error=WORKER_LOST,
        losses=Estimate.losses + 1,
        finished_at=clock.now(),
        **_free(),
    )
    lost = _update(
        session,
        *silent,
        Estimate.losses + 1 < MOST_LOSSES,
        losses=Estimate.losses + 1,
        **_let_go("worker_lost"),
    )
    forgotten = _update(
        session,
        Estimate.status == EstimateStatus.QUEUED,
        is_due(Estimate.not_before),
        is_overdue(Estimate.sends, Estimate.sent_at, resend_after_seconds),
        sent_at=clock.now(),
        sends=Estimate.sends + 1,
    )
    return lost + forgotten


def mark_unsent(session: Session, estimate_ids: Sequence[str]) -> None:
    """Note that estimates could not be sent, so that the next sweep tries again at once.

    Args:
        session: A writing session.
        estimate_ids: Which ones; those that are not queued any more are left alone.
    """
    _update(
        session,
        Estimate.id.in_(estimate_ids),
        Estimate.status == EstimateStatus.QUEUED,
        sent_at=None,
        sends=0,
    )


def _free() -> dict[str, Any]:
    return {"control": None, "owner": None, "lease_until": None}


def _let_go(reason: str | None, wait_seconds: float | None = None) -> dict[str, Any]:
    """Queued again, unless its owner wished it away and its worker had not heard of it yet."""
    kind, is_unwanted = Estimate.status.type, Estimate.control.is_not(None)
    return {
        "status": sa.case(
            (is_unwanted, sa.literal(EstimateStatus.CANCELLED, kind)),
            else_=sa.literal(EstimateStatus.QUEUED, kind),
        ),
        "finished_at": sa.case((is_unwanted, clock.now()), else_=None),
        "reason": sa.case((is_unwanted, Estimate.reason), else_=sa.literal(reason)),
        **held_back(wait_seconds),
        **_free(),
    }


def _held(estimate_id: str, attempt: int) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        Estimate.id == estimate_id,
        Estimate.attempt == attempt,
        Estimate.status == EstimateStatus.RUNNING,
    )


def _write(session: Session, estimate_id: str, attempt: int, **values: Any) -> bool:
    return bool(_update(session, *_held(estimate_id, attempt), **values))


def _update(session: Session, *which: sa.ColumnElement[bool], **values: Any) -> list[str]:
    statement = (
        sa.update(Estimate)
        .where(*which)
        .values(**values)
        .returning(Estimate.id)
        .execution_options(synchronize_session=False)
    )
    return sorted(session.scalars(statement))

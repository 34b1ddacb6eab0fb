"""Who sends a delivery, and what came of it.

A claim raises ``attempts`` and moves ``due_at`` to when it is taken for lost; an outcome names its
attempt and changes nothing when another one was begun since. So two workers do not send the same at
once, and what a killed one left is sent again: at least once, under the same id.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock
from core.db.models import WebhookDelivery, WebhookEndpoint, WebhookEvent
from core.db.webhooks import endpoints
from core.errors import NotFound
from core.states import DeliveryStatus

RETRY_PAUSES_SECONDS = (5, 30, 300, 1800, 7200, 18_000, 36_000, 50_400)
"""Behind each attempt that failed; the ninth is the last, some 32 hours after the first."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to send a delivery until its lease ends.

    Attributes:
        delivery_id: The delivery, also for its receiver (``webhook-id``).
        attempt: The number that fences; 1 for the first.
        endpoint_id: Where it goes.
        tenant_id: Whose it is.
        url: The endpoint's address.
        may_be_private: Whether that was allowed to be a private one.
        secrets: What signs: the endpoint's secret, and one before it that is still good.
        event_id: What is told, as the four below.
        event_type: One of ``core.states.WebhookEventType``.
        object_id: The job or batch.
        happened_at: When.
    """

    delivery_id: str
    attempt: int
    endpoint_id: str
    tenant_id: str
    url: str
    may_be_private: bool
    secrets: tuple[str, ...] = field(repr=False)
    event_id: str
    event_type: str
    object_id: str
    happened_at: datetime


def is_due(session: Session) -> bool:
    """Tell whether there is anything to send now.

    Args:
        session: An open session.

    Returns:
        True when ``claim`` would find something.
    """
    return session.scalar(sa.select(sa.exists(_due(sa.select(WebhookDelivery.id))))) or False


def claim(
    session: Session,
    *,
    limit: int,
    per_endpoint: int,
    lease_seconds: float,
    busy: Collection[str] = (),
) -> list[Claim]:
    """Take what is due, of every endpoint some: one with a thousand does not hold up the others.

    Args:
        session: A writing session.
        limit: How many at most.
        per_endpoint: How many of one endpoint at most.
        lease_seconds: For how long; what has no outcome then is due again.
        busy: Endpoints of which the caller has some in hand: they wait.

    Returns:
        What to send after the commit.
    """
    turn = sa.func.row_number().over(
        partition_by=WebhookDelivery.endpoint_id,
        order_by=(WebhookDelivery.due_at, WebhookDelivery.id),
    )
    due = _due(sa.select(WebhookDelivery.id, WebhookDelivery.due_at, turn.label("turn")))
    queue = due.where(WebhookDelivery.endpoint_id.not_in(busy)).subquery()
    first = (
        sa.select(queue.c.id)
        .where(queue.c.turn <= per_endpoint)
        .order_by(queue.c.turn, queue.c.due_at, queue.c.id)
        .limit(limit)
    )
    found = session.scalars(first).all()
    # Locked where nobody else has them in hand, without waiting, and looked at once more.
    free = _due(sa.select(WebhookDelivery.id).where(WebhookDelivery.id.in_(found)))
    ids = session.scalars(free.with_for_update(of=WebhookDelivery, skip_locked=True)).all()
    session.execute(
        sa.update(WebhookDelivery)
        .where(WebhookDelivery.id.in_(ids))
        .values(
            attempts=WebhookDelivery.attempts + 1,
            due_at=clock.later(lease_seconds),
            attempted_at=clock.now(),
        )
        .execution_options(synchronize_session=False)
    )
    return _read_claims(session, ids)


def _due(query: sa.Select[Any]) -> sa.Select[Any]:
    return query.join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id).where(
        WebhookDelivery.status == DeliveryStatus.PENDING,
        WebhookDelivery.due_at <= clock.now(),
        WebhookEndpoint.deleted_at.is_(None),
        WebhookEndpoint.disabled_reason.is_(None),
    )


def _read_claims(session: Session, ids: Sequence[str]) -> list[Claim]:
    old_secret_counts = WebhookEndpoint.previous_secret_until > clock.now()
    query = (
        sa.select(WebhookDelivery, WebhookEndpoint, WebhookEvent, old_secret_counts)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .join(WebhookEvent, WebhookEvent.id == WebhookDelivery.event_id)
        .where(WebhookDelivery.id.in_(ids))
        .order_by(WebhookDelivery.id)
        .execution_options(populate_existing=True)
    )
    return [
        Claim(
            delivery_id=delivery.id,
            attempt=delivery.attempts,
            endpoint_id=endpoint.id,
            tenant_id=endpoint.tenant_id,
            url=endpoint.url,
            may_be_private=endpoint.may_be_private,
            secrets=(endpoint.secret, endpoint.previous_secret)
            if with_old and endpoint.previous_secret
            else (endpoint.secret,),
            event_id=event.id,
            event_type=event.type,
            object_id=event.object_id,
            happened_at=event.created_at,
        )
        for delivery, endpoint, event, with_old in session.execute(query)
    ]


def note_delivered(session: Session, claim: Claim, *, status_code: int) -> bool:
    """Note that an endpoint took a delivery.

    Args:
        session: A writing session.
        claim: Of the attempt.
        status_code: What it answered.

    Returns:
        False when another attempt was begun, or the delivery ended; nothing was written.
    """
    endpoint = _hold_endpoint(session, claim)
    if endpoint is None or not _note(
        session,
        claim,
        status=DeliveryStatus.DELIVERED,
        due_at=None,
        status_code=status_code,
        error=None,
    ):
        return False
    endpoint.delivered = WebhookEndpoint.delivered + 1
    session.flush()
    return True


def note_failed(
    session: Session,
    claim: Claim,
    *,
    error: str,
    status_code: int | None = None,
    is_gone: bool = False,
) -> bool:
    """Note that an attempt failed: it is made again after a pause, or was the last.

    Args:
        session: A writing session.
        claim: Of the attempt.
        error: What was wrong, for people.
        status_code: What the endpoint answered, if it did.
        is_gone: The endpoint said that it wants nothing any more: it is disabled.

    Returns:
        False when another attempt was begun, or the delivery ended; nothing was written.
    """
    endpoint = _hold_endpoint(session, claim)
    is_last = is_gone or claim.attempt > len(RETRY_PAUSES_SECONDS)
    if endpoint is None or not _note(
        session,
        claim,
        status=DeliveryStatus.FAILED if is_last else DeliveryStatus.PENDING,
        due_at=None if is_last else clock.later(RETRY_PAUSES_SECONDS[claim.attempt - 1]),
        status_code=status_code,
        error=error,
    ):
        return False
    if is_last:
        endpoint.failed = WebhookEndpoint.failed + 1
        session.flush()
    if is_gone:
        endpoints.disable(session, endpoint, reason=error)
    return True


def _hold_endpoint(session: Session, claim: Claim) -> WebhookEndpoint | None:
    try:
        return endpoints.hold(session, claim.tenant_id, claim.endpoint_id)
    except NotFound:  # deleted meanwhile, which has ended its deliveries
        return None


def _note(session: Session, claim: Claim, **values: Any) -> bool:
    statement = (
        sa.update(WebhookDelivery)
        .where(
            WebhookDelivery.id == claim.delivery_id,
            WebhookDelivery.attempts == claim.attempt,
            WebhookDelivery.status == DeliveryStatus.PENDING,
        )
        .values(**values)
        .returning(WebhookDelivery.id)
        .execution_options(synchronize_session=False)
    )
    return session.scalars(statement).one_or_none() is not None

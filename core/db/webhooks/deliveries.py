"""Deliveries as their owner sees them; how many there are; and when they are forgotten."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock
from core.db.models import WebhookDelivery, WebhookEndpoint, WebhookEvent
from core.db.pages import Page, refuse_cursor, take_page
from core.db.webhooks import endpoints
from core.errors import Conflict, NotFound
from core.ids import is_id
from core.states import DeliveryStatus

RETENTION_SECONDS = 30 * 24 * 3600.0
_FORGOTTEN_AT_ONCE = 1000
"""Old rows that one sweep removes; the next one comes within seconds."""


def list_deliveries(
    session: Session,
    tenant_id: str,
    endpoint_id: str,
    *,
    limit: int = 20,
    after: str | None = None,
) -> Page[tuple[WebhookDelivery, WebhookEvent]]:
    """List what was sent to an endpoint, or is to be, newest first.

    Args:
        session: An open session.
        tenant_id: Who asks.
        endpoint_id: Where to; ``get`` tells whether it exists.
        limit: Rows of a page.
        after: Last id of the page before; one that was forgotten since has nothing behind it.

    Returns:
        One page of deliveries with their events.
    """
    query = _with_event(tenant_id, endpoint_id)
    if after is not None:
        if not is_id("whd", after):
            refuse_cursor(repr(after))
        query = query.where(WebhookDelivery.id < after)
    ids = take_page(
        session,
        query.with_only_columns(WebhookDelivery.id).order_by(WebhookDelivery.id.desc()),
        limit=limit,
    )
    rows = session.execute(query.where(WebhookDelivery.id.in_(ids.items)))
    newest_first = sorted(rows, key=lambda row: row[0].id, reverse=True)
    return Page([(delivery, event) for delivery, event in newest_first], ids.has_more)


def resend(
    session: Session, tenant_id: str, endpoint_id: str, delivery_id: str
) -> tuple[WebhookDelivery, WebhookEvent]:
    """Make a delivery due now, whatever became of it.

    If it fails it goes on with the pauses behind as many attempts as it has had; one that has had
    them all gets this one more. How it ends is counted once more.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        endpoint_id: Where to.
        delivery_id: Which one.

    Returns:
        The delivery and its event.

    Raises:
        NotFound: The endpoint was sent no such delivery, or it is forgotten.
        Conflict: The endpoint is disabled (code ``webhook_disabled``).
    """
    endpoint = endpoints.hold(session, tenant_id, endpoint_id)
    if endpoint.disabled_reason is not None:
        message = f"webhook endpoint {endpoint_id} is disabled ({endpoint.disabled_reason})"
        raise Conflict(f"{message}; enable it first", code="webhook_disabled")
    session.execute(
        sa.update(WebhookDelivery)
        .where(WebhookDelivery.endpoint_id == endpoint.id, WebhookDelivery.id == delivery_id)
        .values(status=DeliveryStatus.PENDING, due_at=clock.now())
        .execution_options(synchronize_session=False)
    )
    query = _with_event(tenant_id, endpoint_id).where(WebhookDelivery.id == delivery_id)
    row = session.execute(query.execution_options(populate_existing=True)).one_or_none()
    if row is None:
        message = f"no delivery {delivery_id!r} to webhook endpoint {endpoint_id}"
        raise NotFound(message, code="webhook_delivery_not_found", param="delivery_id")
    return row[0], row[1]


def _with_event(tenant_id: str, endpoint_id: str) -> sa.Select[WebhookDelivery, WebhookEvent]:
    return (
        sa.select(WebhookDelivery, WebhookEvent)
        .join(WebhookEvent, WebhookEvent.id == WebhookDelivery.event_id)
        .where(
            WebhookDelivery.tenant_id == tenant_id,
            WebhookDelivery.endpoint_id == endpoint_id,
        )
    )


def count_pending(session: Session) -> int:
    """Count deliveries of all tenants that are to be sent, now or after a pause.

    Args:
        session: An open session.

    Returns:
        How many.
    """
    query = sa.select(sa.func.count()).where(WebhookDelivery.status == DeliveryStatus.PENDING)
    return session.scalar(query) or 0


def count_totals(session: Session) -> dict[DeliveryStatus, int]:
    """Count deliveries of all tenants that ended, ever.

    Args:
        session: An open session.

    Returns:
        How many were delivered and how many failed; neither shrinks when rows are forgotten.
    """
    query = sa.select(
        sa.func.coalesce(sa.func.sum(WebhookEndpoint.delivered), 0),
        sa.func.coalesce(sa.func.sum(WebhookEndpoint.failed), 0),
    )
    delivered, failed = session.execute(query).one()
    return {DeliveryStatus.DELIVERED: int(delivered), DeliveryStatus.FAILED: int(failed)}


def forget_old(session: Session, *, older_than_seconds: float = RETENTION_SECONDS) -> None:
    """Remove what was to be told long ago.

    Args:
        session: A writing session.
        older_than_seconds: Age of a delivery, and of an event that no delivery names any more.
    """
    before = clock.later(-older_than_seconds)
    old = sa.select(WebhookDelivery.id).where(WebhookDelivery.created_at < before)
    ids = session.scalars(old.limit(_FORGOTTEN_AT_ONCE).with_for_update(skip_locked=True)).all()
    if ids:
        session.execute(sa.delete(WebhookDelivery).where(WebhookDelivery.id.in_(ids)))
    told = sa.exists().where(WebhookDelivery.event_id == WebhookEvent.id)
    done = sa.select(WebhookEvent.id).where(WebhookEvent.created_at < before, ~told)
    events = session.scalars(done.limit(_FORGOTTEN_AT_ONCE).with_for_update(skip_locked=True)).all()
    if events:
        session.execute(sa.delete(WebhookEvent).where(WebhookEvent.id.in_(events)))

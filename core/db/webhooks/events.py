"""What happened, written in the transaction in which it happened (an outbox)."""

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock
from core.db.models import WebhookDelivery, WebhookEndpoint, WebhookEvent
from core.ids import new_id
from core.states import DeliveryStatus, WebhookEventType


def announce(session: Session, *, tenant_id: str, type: WebhookEventType, object_id: str) -> int:
    """Have the endpoints told that want to know.

    Both are written or neither: what is rolled back is not told, and what is committed is, whatever
    dies afterwards. Tell the workers after the commit (``core.queue.JobQueue.send_deliveries``), or
    let the sweep find it.

    Args:
        session: The session that writes what happened.
        tenant_id: Whose job or batch.
        type: What happened.
        object_id: The job or batch, as ``/v1`` knows it.

    Returns:
        How many endpoints will be told; without any, no event is written.
    """
    # Shared, so that an endpoint that is being disabled or deleted is not given one more delivery.
    query = (
        sa.select(WebhookEndpoint.id, WebhookEndpoint.event_types)
        .where(
            WebhookEndpoint.tenant_id == tenant_id,
            WebhookEndpoint.deleted_at.is_(None),
            WebhookEndpoint.disabled_reason.is_(None),
        )
        .order_by(WebhookEndpoint.id)
        .with_for_update(read=True)
    )
    wanting = [row.id for row in session.execute(query) if type.value in row.event_types]
    if not wanting:
        return 0
    event = WebhookEvent(
        id=new_id("evt"), tenant_id=tenant_id, type=type.value, object_id=object_id
    )
    session.add(event)
    session.flush()
    session.add_all(
        WebhookDelivery(
            id=new_id("whd"),
            tenant_id=tenant_id,
            event_id=event.id,
            endpoint_id=endpoint_id,
            status=DeliveryStatus.PENDING,
            due_at=clock.now(),
        )
        for endpoint_id in wanting
    )
    session.flush()
    return len(wanting)

"""Webhook endpoints and deliveries, for the tests of their rows."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from core.db import Database, webhooks
from core.db.models import WebhookDelivery, WebhookEndpoint, WebhookEvent
from core.db.webhooks import Claim
from core.states import DeliveryStatus, WebhookEventType

SECRET = "whsec_" + "A" * 44
LEASE = 30.0


@dataclass(frozen=True)
class Hooks:
    """The webhooks of one tenant."""

    database: Database
    tenant_id: str

    def endpoint(self, *event_types: WebhookEventType, **values: Any) -> str:
        """Make an endpoint, for every type unless some are named; gives its id."""
        with self.database.write() as session:
            return webhooks.create(session, **self._wish(*event_types) | values).id

    def endpoint_once(self) -> str:
        """Make an endpoint as somebody does who may have asked before."""
        with self.database.write() as session:
            return webhooks.create(session, **self._wish(), request_digest="sha256:of-it").id

    def _wish(self, *event_types: WebhookEventType) -> dict[str, Any]:
        return {
            "tenant_id": self.tenant_id,
            "name": "ci",
            "url": "https://example.com/hook",
            "event_types": event_types or tuple(WebhookEventType),
            "secret": SECRET,
            "may_be_private": False,
        }

    def get(self, endpoint_id: str) -> WebhookEndpoint:
        with self.database.read() as session:
            return webhooks.get(session, self.tenant_id, endpoint_id)

    def announce(self, type: WebhookEventType = WebhookEventType.BATCH_COMPLETED) -> int:
        """Tell of a batch."""
        with self.database.write() as session:
            return webhooks.announce(
                session, tenant_id=self.tenant_id, type=type, object_id="batch_1"
            )

    def claim(
        self, *, limit: int = 100, lease_seconds: float = LEASE, **options: Any
    ) -> list[Claim]:
        with self.database.write() as session:
            return webhooks.claim(
                session,
                **{"limit": limit, "per_endpoint": 100, "lease_seconds": lease_seconds} | options,
            )

    def deliver(self, claim: Claim) -> bool:
        with self.database.write() as session:
            return webhooks.note_delivered(session, claim, status_code=204)

    def fail(self, claim: Claim, **values: Any) -> bool:
        with self.database.write() as session:
            return webhooks.note_failed(session, claim, **{"error": "answered 500"} | values)

    def deliveries(self, endpoint_id: str) -> list[tuple[WebhookDelivery, WebhookEvent]]:
        with self.database.read() as session:
            page = webhooks.list_deliveries(session, self.tenant_id, endpoint_id, limit=100)
        return page.items

    def told(self) -> list[tuple[str, str]]:
        """Give what was announced, by whichever endpoint: type and object, in order."""
        query = sa.select(WebhookEvent.type, WebhookEvent.object_id).order_by(WebhookEvent.id)
        with self.database.read() as session:
            return [(row.type, row.object_id) for row in session.execute(query)]

    def statuses(self) -> list[DeliveryStatus]:
        with self.database.read() as session:
            return list(
                session.scalars(sa.select(WebhookDelivery.status).order_by(WebhookDelivery.id))
            )

    def make_due(self, **more: Any) -> None:
        """Let every pause and every lease pass."""
        values = {"due_at": datetime(2020, 1, 1).astimezone()} | more
        with self.database.write() as session:
            waiting = WebhookDelivery.status == DeliveryStatus.PENDING
            session.execute(sa.update(WebhookDelivery).where(waiting).values(**values))

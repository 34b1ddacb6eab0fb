"""Whom to tell, what happened, and what became of telling it."""

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from core.db.base import Base, text_enum
from core.db.clock import now
from core.db.models.columns import (
    DIGEST,
    ID,
    NAME,
    SECRET,
    created_column,
    id_column,
    tenant_column,
)
from core.states import DeliveryStatus


class WebhookEndpoint(Base):
    """An address that a tenant wants to be told at."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (
        sa.Index(None, "tenant_id", "id"),
        # an index and no constraint: SQLite adds none to a table that is there
        sa.Index(None, "tenant_id", "idempotency_key", unique=True),
    )

    id: Mapped[str] = id_column()
    tenant_id: Mapped[str] = tenant_column()
    name: Mapped[str] = mapped_column(NAME)
    url: Mapped[str] = mapped_column(sa.Text)
    event_types: Mapped[list[str]]
    secret: Mapped[str] = mapped_column(SECRET)
    """As it was shown: whoever signs needs the secret itself, a hash would not do."""
    previous_secret: Mapped[str | None] = mapped_column(SECRET)
    """Signs beside the new one for a while after a rotation."""
    previous_secret_until: Mapped[datetime | None]
    may_be_private: Mapped[bool]
    """Whether the api that took the address allowed private ones; a worker must allow them too."""
    disabled_reason: Mapped[str | None] = mapped_column(sa.Text)
    """Why nothing is sent any more; None: it is."""
    delivered: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    """Deliveries that were taken; only grows, also when their rows are forgotten."""
    failed: Mapped[int] = mapped_column(sa.BigInteger, default=0)
    """The same of those that were given up."""
    idempotency_key: Mapped[str | None] = mapped_column(sa.String(255))
    request_digest: Mapped[str | None] = mapped_column(DIGEST)
    created_at: Mapped[datetime] = created_column()
    updated_at: Mapped[datetime] = mapped_column(default=now())
    """Of what its owner set; counting does not move it."""
    deleted_at: Mapped[datetime | None]


class WebhookEvent(Base):
    """Something that happened and that an endpoint is to be told; written with what it tells of."""

    __tablename__ = "webhook_events"
    __table_args__ = (sa.Index(None, "created_at"),)

    id: Mapped[str] = id_column()
    tenant_id: Mapped[str] = tenant_column()
    type: Mapped[str] = mapped_column(NAME)
    """``core.states.WebhookEventType``; no check, since later versions add some."""
    object_id: Mapped[str] = mapped_column(ID)
    """The job or batch, as ``/v1`` knows it."""
    created_at: Mapped[datetime] = created_column()


class WebhookDelivery(Base):
    """One event on its way to one endpoint; ``attempts`` fences who sends it."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        sa.Index(None, "status", "due_at"),
        sa.Index(None, "endpoint_id", "id"),
        sa.Index(None, "event_id"),
        sa.Index(None, "created_at"),
    )

    id: Mapped[str] = id_column()
    tenant_id: Mapped[str] = tenant_column()
    event_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("webhook_events.id"))
    endpoint_id: Mapped[str] = mapped_column(ID, sa.ForeignKey("webhook_endpoints.id"))
    status: Mapped[DeliveryStatus] = mapped_column(text_enum(DeliveryStatus, name="status"))
    attempts: Mapped[int] = mapped_column(default=0)
    due_at: Mapped[datetime | None]
    """When it is to be sent; while it is being sent, when it is taken for lost. None: it ended."""
    attempted_at: Mapped[datetime | None]
    status_code: Mapped[int | None]
    """HTTP status of the last answer; None when there was none."""
    error: Mapped[str | None] = mapped_column(sa.Text)
    """What was wrong with the last attempt, for people."""
    created_at: Mapped[datetime] = created_column()

"""Webhook endpoints: made, shown, changed, disabled, deleted.

Knows no HTTP: whether an address may be used was decided before. A deleted endpoint's row stays,
without its address and its secret, for the count of its deliveries and for cursors.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import clock, idempotency, owned
from core.db.locks import lock_name
from core.db.models import WebhookDelivery, WebhookEndpoint
from core.db.pages import Page
from core.errors import Conflict
from core.ids import new_id
from core.states import DeliveryStatus, WebhookEventType

MAX_ENDPOINTS = 20
"""Of one tenant: every job's end reads them all, and writes a row for each that wants to know."""

OLD_SECRET_SECONDS = 24 * 3600.0
"""What the official client promises of ``keep_old_secret_active_for_24_hours``."""


def create(
    session: Session,
    *,
    tenant_id: str,
    name: str,
    url: str,
    event_types: Sequence[WebhookEventType],
    secret: str,
    may_be_private: bool,
    idempotency_key: str | None = None,
    request_digest: str | None = None,
) -> WebhookEndpoint:
    """Make an endpoint, unless the same wish has made it already.

    A client that lost the answer asks again, and would be told of everything twice. It needs the
    secret of the first, so the whole row is given.

    Args:
        session: A writing session.
        tenant_id: Whose endpoint.
        name: What the owner calls it.
        url: Where to send, checked.
        event_types: Of what to tell; doubles are left out.
        secret: What signs, of a new one (``core.webhooks.signing.new_secret``).
        may_be_private: Whether the address was allowed to be a private one.
        idempotency_key: The caller's key; without one an equal body within two minutes is the same
            wish, unless its endpoint is disabled.
        request_digest: Of the body; None makes an endpoint whatever was made before.

    Returns:
        The endpoint. ``Conflict`` goes through when the tenant has ``MAX_ENDPOINTS`` already (code
        ``too_many_webhook_endpoints``), and for a key that was used otherwise.
    """
    row = WebhookEndpoint(
        id=new_id("whe"),
        tenant_id=tenant_id,
        name=name,
        url=url,
        event_types=_in_order(event_types),
        secret=secret,
        may_be_private=may_be_private,
        idempotency_key=idempotency_key,
        request_digest=request_digest,
    )

    def make() -> WebhookEndpoint:
        _hold_room(session, tenant_id)
        session.add(row)
        session.flush()
        session.refresh(row)
        return row

    found, _ = idempotency.create_once(
        session,
        WebhookEndpoint,
        make,
        WebhookEndpoint.may_be_private == may_be_private,
        WebhookEndpoint.deleted_at.is_(None),
        WebhookEndpoint.disabled_reason.is_(None),
        tenant_id=tenant_id,
        idempotency_key=idempotency_key,
        request_digest=request_digest,
    )
    return found


def get(session: Session, tenant_id: str, endpoint_id: str) -> WebhookEndpoint:
    """Read an endpoint.

    Args:
        session: An open session.
        tenant_id: Who asks.
        endpoint_id: Which one.

    Returns:
        The endpoint; ``NotFound`` goes through when the tenant has no such one.
    """
    return owned.get(session, WebhookEndpoint, tenant_id, endpoint_id)


def list_page(
    session: Session, tenant_id: str, *, limit: int = 20, after: str | None = None
) -> Page[WebhookEndpoint]:
    """List a tenant's endpoints, newest first.

    Args:
        session: An open session.
        tenant_id: Who asks.
        limit: Rows of a page.
        after: Last id of the page before.

    Returns:
        One page.
    """
    return owned.list_page(session, WebhookEndpoint, tenant_id, limit=limit, after=after)


def update(
    session: Session,
    tenant_id: str,
    endpoint_id: str,
    *,
    name: str | None = None,
    url: str | None = None,
    may_be_private: bool | None = None,
    event_types: Sequence[WebhookEventType] | None = None,
    is_enabled: bool | None = None,
) -> WebhookEndpoint:
    """Change an endpoint; what is None stays.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        endpoint_id: Which one.
        name: What the owner calls it.
        url: Where to send from now on, deliveries that wait too; checked.
        may_be_private: Goes with ``url``.
        event_types: Of what to tell.
        is_enabled: True sends to a disabled one again. False gives up what waits, and tells it of
            nothing until then.

    Returns:
        The endpoint; one that already was so is not called updated.
    """
    row = hold(session, tenant_id, endpoint_id)
    changes: dict[str, Any] = {
        "name": name,
        "url": url,
        "may_be_private": may_be_private,
        "event_types": None if event_types is None else _in_order(event_types),
    }
    changes = {field: value for field, value in changes.items() if value is not None}
    is_new = any(getattr(row, field) != value for field, value in changes.items())
    for field, value in changes.items():
        setattr(row, field, value)
    if is_enabled is not None and is_enabled == (row.disabled_reason is not None):
        is_new = True
        if is_enabled:
            row.disabled_reason = None
        else:
            disable(session, row, reason="its owner wished so")
    if is_new:
        row.updated_at = clock.now()
    session.flush()
    session.refresh(row)
    return row


def rotate_secret(
    session: Session, tenant_id: str, endpoint_id: str, *, secret: str, keeps_old: bool
) -> WebhookEndpoint:
    """Give an endpoint a new secret.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        endpoint_id: Which one.
        secret: The new one.
        keeps_old: Whether the one before signs beside it for ``OLD_SECRET_SECONDS``.

    Returns:
        The endpoint.
    """
    row = hold(session, tenant_id, endpoint_id)
    row.previous_secret = row.secret if keeps_old else None
    row.previous_secret_until = clock.later(OLD_SECRET_SECONDS) if keeps_old else None
    row.secret = secret
    row.updated_at = clock.now()
    session.flush()
    session.refresh(row)
    return row


def delete(session: Session, tenant_id: str, endpoint_id: str) -> None:
    """Delete an endpoint, and give up what waits for it.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        endpoint_id: Which one.
    """
    row = hold(session, tenant_id, endpoint_id)
    row.deleted_at = clock.now()
    row.url = row.secret = ""
    row.previous_secret = row.previous_secret_until = None
    _give_up_waiting(session, row, error="the endpoint was deleted")


def disable(session: Session, row: WebhookEndpoint, *, reason: str) -> None:
    """Send nothing to an endpoint any more, and give up what waits for it.

    Args:
        session: A writing session that holds the endpoint.
        row: The endpoint.
        reason: Why, for its owner.
    """
    row.disabled_reason = reason
    _give_up_waiting(session, row, error=f"the endpoint is disabled: {reason}")


def hold(session: Session, tenant_id: str, endpoint_id: str) -> WebhookEndpoint:
    """Read an endpoint and keep it as it is until the transaction ends.

    Args:
        session: A writing session.
        tenant_id: Who asks.
        endpoint_id: Which one.

    Returns:
        The endpoint; ``NotFound`` goes through when the tenant has no such one.
    """
    return owned.get(session, WebhookEndpoint, tenant_id, endpoint_id, lock=owned.Lock.CHANGE)


def _hold_room(session: Session, tenant_id: str) -> None:
    """Keep others from making an endpoint until this one is there.

    Raises:
        Conflict: There are too many.
    """
    lock_name(session, f"webhook_endpoints/{tenant_id}")
    own = sa.select(sa.func.count()).where(
        WebhookEndpoint.tenant_id == tenant_id, WebhookEndpoint.deleted_at.is_(None)
    )
    if (session.scalar(own) or 0) >= MAX_ENDPOINTS:
        message = f"there are {MAX_ENDPOINTS} webhook endpoints already; delete one first"
        raise Conflict(message, code="too_many_webhook_endpoints")


def _give_up_waiting(session: Session, row: WebhookEndpoint, *, error: str) -> None:
    session.flush()
    given_up = (
        sa.update(WebhookDelivery)
        .where(
            WebhookDelivery.endpoint_id == row.id,
            WebhookDelivery.status == DeliveryStatus.PENDING,
        )
        .values(status=DeliveryStatus.FAILED, due_at=None, error=error)
        .returning(WebhookDelivery.id)
        .execution_options(synchronize_session=False)
    )
    count = len(session.scalars(given_up).all())
    row.failed = WebhookEndpoint.failed + count
    session.flush()


def _in_order(event_types: Sequence[WebhookEventType]) -> list[str]:
    return [kind.value for kind in WebhookEventType if kind in event_types]

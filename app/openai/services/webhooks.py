"""Webhook endpoints: which addresses are taken, what is shown, and tests."""

from datetime import UTC, datetime

from app.openai.schemas.webhooks import (
    DeliveryAnswer,
    EndpointAnswer,
    EndpointCreate,
    EndpointUpdate,
    EventAnswer,
    EventData,
    NewEndpointAnswer,
    TestAnswer,
)
from app.openai.services.moments import unix_seconds
from app.services.parts import Parts
from core.db import Session, webhooks
from core.db.idempotency import digest_request
from core.db.models import WebhookDelivery, WebhookEndpoint, WebhookEvent
from core.errors import BadInput, TooMany
from core.ids import ID_LENGTH, new_id
from core.settings import Settings
from core.states import WebhookEventType
from core.webhooks import signing
from core.webhooks.addresses import AddressRefusedError, check_url
from core.webhooks.messages import make_body
from core.webhooks.sending import Message

MAX_TESTS = 4
"""At a time, in one api process: somebody waits up to ten seconds for each."""


def create(
    session: Session,
    settings: Settings,
    *,
    tenant_id: str,
    asked: EndpointCreate,
    idempotency_key: str | None,
) -> NewEndpointAnswer:
    """Make an endpoint.

    Args:
        session: A writing session.
        settings: Whether private addresses are allowed.
        tenant_id: The owner.
        asked: The endpoint.
        idempotency_key: The caller's key; without one an equal body within two minutes is the same
            wish.

    Returns:
        The endpoint with its secret, as it is by now. ``BadInput`` goes through for an address that
        is refused.
    """
    may_be_private = settings.webhooks_may_be_private
    _check_url(asked.url, may_be_private=may_be_private)
    row = webhooks.create(
        session,
        tenant_id=tenant_id,
        name=asked.name,
        url=asked.url,
        event_types=asked.event_types,
        secret=signing.new_secret(),
        may_be_private=may_be_private,
        idempotency_key=idempotency_key,
        request_digest=digest_request(asked.model_dump(mode="json")),
    )
    return _with_secret(row)


def update(
    session: Session, settings: Settings, *, tenant_id: str, endpoint_id: str, asked: EndpointUpdate
) -> EndpointAnswer:
    """Change an endpoint.

    Args:
        session: A writing session.
        settings: Whether private addresses are allowed.
        tenant_id: The owner.
        endpoint_id: Which one.
        asked: The changes.

    Returns:
        The endpoint; ``BadInput`` goes through for an address that is refused.
    """
    may_be_private = settings.webhooks_may_be_private
    if asked.url is not None:
        _check_url(asked.url, may_be_private=may_be_private)
    row = webhooks.update(
        session,
        tenant_id,
        endpoint_id,
        name=asked.name,
        url=asked.url,
        may_be_private=None if asked.url is None else may_be_private,
        event_types=asked.event_types,
        is_enabled=asked.x_enabled,
    )
    return as_endpoint(row)


def rotate_secret(
    session: Session, *, tenant_id: str, endpoint_id: str, keeps_old: bool
) -> NewEndpointAnswer:
    """Give an endpoint a new secret.

    Args:
        session: A writing session.
        tenant_id: The owner.
        endpoint_id: Which one.
        keeps_old: Whether the one before signs beside it for a day.

    Returns:
        The endpoint with its secret.
    """
    secret = signing.new_secret()
    row = webhooks.rotate_secret(
        session, tenant_id, endpoint_id, secret=secret, keeps_old=keeps_old
    )
    return _with_secret(row)


async def send_test(
    parts: Parts, endpoint: WebhookEndpoint, event_type: WebhookEventType
) -> TestAnswer:
    """Send a sample event, once; it is no delivery and leaves no row.

    Args:
        parts: What sends; no transaction is open meanwhile.
        endpoint: Where to; a disabled one too, to find out whether it is well again.
        event_type: Of the sample, which tells of a job or batch that does not exist.

    Returns:
        What was answered.

    Raises:
        TooMany: Others are being tested.
        BadInput: Nothing was answered (code ``webhook_unreachable``).
    """
    if parts.webhooks.under_way >= MAX_TESTS:
        raise TooMany(f"{MAX_TESTS} tests are under way in this process; wait for one to end")
    body = make_body(
        event_id=new_id("evt"),
        type=event_type.value,
        object_id=_sample_id(event_type),
        happened_at=datetime.now(UTC),
    )
    message = Message(
        id=new_id("whd"),
        url=endpoint.url,
        may_be_private=endpoint.may_be_private and parts.settings.webhooks_may_be_private,
        keys=(endpoint.secret,),
        body=body,
    )
    reply = await parts.webhooks.send(message)
    if reply.status_code is None:
        raise BadInput(f"the endpoint was not reached: {reply.error}", code="webhook_unreachable")
    return TestAnswer(
        webhook_endpoint_id=endpoint.id, event_type=event_type.value, status_code=reply.status_code
    )


def _sample_id(event_type: WebhookEventType) -> str:
    kind = "batch" if event_type.startswith("batch.") else "job"
    return f"{kind}_" + "0" * ID_LENGTH


def as_endpoint(row: WebhookEndpoint) -> EndpointAnswer:
    """Shape an endpoint, without its secret.

    Args:
        row: The endpoint.

    Returns:
        What is shown of it.
    """
    return EndpointAnswer(
        id=row.id,
        created_at=unix_seconds(row.created_at),
        updated_at=unix_seconds(row.updated_at),
        name=row.name,
        url=row.url,
        event_types=row.event_types,
        signing_secret_hint=signing.hint(row.secret),
        x_enabled=row.disabled_reason is None,
        x_disabled_reason=row.disabled_reason,
        x_delivered=row.delivered,
        x_failed=row.failed,
    )


def as_delivery(row: WebhookDelivery, event: WebhookEvent) -> DeliveryAnswer:
    """Shape a delivery.

    Args:
        row: The delivery.
        event: What it tells.

    Returns:
        What is shown of it.
    """
    return DeliveryAnswer(
        id=row.id,
        webhook_endpoint_id=row.endpoint_id,
        created_at=unix_seconds(row.created_at),
        event=EventAnswer(
            id=event.id,
            type=event.type,
            created_at=unix_seconds(event.created_at),
            data=EventData(id=event.object_id),
        ),
        status=row.status,
        attempts=row.attempts,
        last_attempt_at=unix_seconds(row.attempted_at),
        next_attempt_at=unix_seconds(row.due_at),
        status_code=row.status_code,
        error=row.error,
    )


def _with_secret(row: WebhookEndpoint) -> NewEndpointAnswer:
    return NewEndpointAnswer(**as_endpoint(row).model_dump(), signing_secret=row.secret)


def _check_url(url: str, *, may_be_private: bool) -> None:
    try:
        check_url(url, may_be_private=may_be_private)
    except AddressRefusedError as error:
        raise BadInput(f"url: {error}", code="webhook_address_refused", param="url") from error

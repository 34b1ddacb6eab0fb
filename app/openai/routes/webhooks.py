"""``/v1/webhook_endpoints``: be told when a job has ended.

All of it asks for the scope ``write``: an address may be as secret as a key.
"""

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool

from app.dependencies import (
    After,
    GuardedRoute,
    Id,
    IdempotencyKey,
    Limit,
    PartsDep,
    ReadDep,
    UnitDep,
    Writer,
)
from app.openai.routes.documented import body_examples
from app.openai.schemas.webhooks import (
    DeliveryAnswer,
    EndpointAnswer,
    EndpointCreate,
    EndpointDeleted,
    EndpointUpdate,
    EventTypeList,
    NewEndpointAnswer,
    SecretRotate,
    TestAnswer,
    TestRequest,
)
from app.openai.services import webhooks as service
from app.schemas.errors import JSON_BODY, error_answers
from app.schemas.shared import Page
from app.services.parts import Parts
from core.db import webhooks
from core.db.models import WebhookEndpoint
from core.states import WebhookEventType

router = APIRouter(prefix="/v1", tags=["openai"], route_class=GuardedRoute)

_ENDPOINT = "/webhook_endpoints/{webhook_endpoint_id}"


@router.post(
    "/webhook_endpoints",
    summary="Create a webhook endpoint",
    response_model=NewEndpointAnswer,
    responses=error_answers(
        "webhook_address_refused",
        "too_many_webhook_endpoints",
        "idempotency_mismatch",
        *JSON_BODY,
    ),
)
def create_webhook_endpoint(
    body: EndpointCreate,
    caller: Writer,
    unit: UnitDep,
    parts: PartsDep,
    idempotency_key: IdempotencyKey = None,
) -> NewEndpointAnswer:
    """Name an address that is told when a job or a batch has ended.

    `signing_secret` is shown this once. Messages are signed with it as Standard Webhooks say, so
    that `client.webhooks.unwrap(body, headers, secret=…)` reads and checks them. The same body sent
    again within two minutes, or under the same `Idempotency-Key`, is the same endpoint, with its
    secret.
    """
    return service.create(
        unit.session,
        parts.settings,
        tenant_id=caller.tenant_id,
        asked=body,
        idempotency_key=idempotency_key,
    )


@router.get(
    "/webhook_endpoints",
    summary="List webhook endpoints",
    response_model=Page[EndpointAnswer],
    responses=error_answers(),
)
def list_webhook_endpoints(
    caller: Writer, session: ReadDep, limit: Limit = 20, after: After = None
) -> Page[EndpointAnswer]:
    """List your endpoints, newest first, disabled ones too."""
    page = webhooks.list_page(session, caller.tenant_id, limit=limit, after=after)
    return Page.of([service.as_endpoint(row) for row in page.items], has_more=page.has_more)


@router.get(
    _ENDPOINT,
    summary="Get a webhook endpoint",
    response_model=EndpointAnswer,
    responses=error_answers("webhook_endpoint_not_found"),
)
def get_webhook_endpoint(
    webhook_endpoint_id: Id, caller: Writer, session: ReadDep
) -> EndpointAnswer:
    """Show an endpoint, with what became of its deliveries as numbers."""
    return service.as_endpoint(webhooks.get(session, caller.tenant_id, webhook_endpoint_id))


@router.post(
    _ENDPOINT,
    summary="Update a webhook endpoint",
    response_model=EndpointAnswer,
    responses=error_answers("webhook_endpoint_not_found", "webhook_address_refused", *JSON_BODY),
    openapi_extra=body_examples(
        again=("Send again to one that was disabled", {"x_enabled": True}),
        other=("Another address", {"url": "https://example.com/hooks/new"}),
    ),
)
def update_webhook_endpoint(
    webhook_endpoint_id: Id, body: EndpointUpdate, caller: Writer, unit: UnitDep, parts: PartsDep
) -> EndpointAnswer:
    """Change name, address or event types. Deliveries that wait go to the new address."""
    return service.update(
        unit.session,
        parts.settings,
        tenant_id=caller.tenant_id,
        endpoint_id=webhook_endpoint_id,
        asked=body,
    )


@router.delete(
    _ENDPOINT,
    summary="Delete a webhook endpoint",
    response_model=EndpointDeleted,
    responses=error_answers("webhook_endpoint_not_found"),
)
def delete_webhook_endpoint(
    webhook_endpoint_id: Id, caller: Writer, unit: UnitDep
) -> EndpointDeleted:
    """Delete an endpoint and its secret, and give up what waits for it."""
    webhooks.delete(unit.session, caller.tenant_id, webhook_endpoint_id)
    return EndpointDeleted(id=webhook_endpoint_id)


@router.post(
    _ENDPOINT + "/rotate_secret",
    summary="Give a webhook endpoint a new secret",
    response_model=NewEndpointAnswer,
    responses=error_answers("webhook_endpoint_not_found", *JSON_BODY),
    openapi_extra=body_examples(
        overlap=("Both sign for a day", {"keep_old_secret_active_for_24_hours": True})
    ),
)
def rotate_webhook_secret(
    webhook_endpoint_id: Id, caller: Writer, unit: UnitDep, body: SecretRotate | None = None
) -> NewEndpointAnswer:
    """Replace the secret; `signing_secret` is shown this once."""
    return service.rotate_secret(
        unit.session,
        tenant_id=caller.tenant_id,
        endpoint_id=webhook_endpoint_id,
        keeps_old=(body or SecretRotate()).keep_old_secret_active_for_24_hours,
    )


@router.post(
    _ENDPOINT + "/test",
    summary="Send a sample event to a webhook endpoint",
    response_model=TestAnswer,
    responses=error_answers(
        "webhook_endpoint_not_found", "webhook_unreachable", "rate_limited", *JSON_BODY
    ),
    openapi_extra=body_examples(
        failed=("A job that failed", {"event_type": "fine_tuning.job.failed"})
    ),
)
async def send_webhook_test(
    webhook_endpoint_id: Id, caller: Writer, parts: PartsDep, body: TestRequest | None = None
) -> TestAnswer:
    """Send a sample at once, signed as every message, and show the status of the answer.

    It tells of `job_0…` or `batch_0…`, which do not exist. It is sent once, also to a disabled
    endpoint, and is not listed with the deliveries.
    """
    endpoint = await run_in_threadpool(_read, parts, caller.tenant_id, webhook_endpoint_id)
    return await service.send_test(parts, endpoint, (body or TestRequest()).event_type)


def _read(parts: Parts, tenant_id: str, endpoint_id: str) -> WebhookEndpoint:
    # no transaction may be open while somebody else's server is waited for
    with parts.database.read() as session:
        return webhooks.get(session, tenant_id, endpoint_id)


@router.get(
    _ENDPOINT + "/deliveries",
    summary="List deliveries to a webhook endpoint",
    response_model=Page[DeliveryAnswer],
    responses=error_answers("webhook_endpoint_not_found"),
)
def list_webhook_deliveries(
    webhook_endpoint_id: Id,
    caller: Writer,
    session: ReadDep,
    limit: Limit = 20,
    after: After = None,
) -> Page[DeliveryAnswer]:
    """List what was sent in the last 30 days or waits to be, newest first (an extension of ours).

    A message that is not taken (any 2xx) is sent again after 5 s, 30 s, 5 min, 30 min, 2 h, 5 h,
    10 h and 14 h, then it has `failed`.
    """
    webhooks.get(session, caller.tenant_id, webhook_endpoint_id)
    page = webhooks.list_deliveries(
        session, caller.tenant_id, webhook_endpoint_id, limit=limit, after=after
    )
    rows = [service.as_delivery(row, event) for row, event in page.items]
    return Page.of(rows, has_more=page.has_more)


@router.post(
    _ENDPOINT + "/deliveries/{delivery_id}/resend",
    summary="Send a delivery again",
    response_model=DeliveryAnswer,
    responses=error_answers(
        "webhook_endpoint_not_found", "webhook_delivery_not_found", "webhook_disabled"
    ),
)
def resend_webhook_delivery(
    webhook_endpoint_id: Id, delivery_id: Id, caller: Writer, unit: UnitDep, parts: PartsDep
) -> DeliveryAnswer:
    """Send a delivery now, whatever became of it, under the same `webhook-id` (ours)."""
    row, event = webhooks.resend(unit.session, caller.tenant_id, webhook_endpoint_id, delivery_id)
    unit.then(lambda: parts.queue.send_deliveries(event.object_id))
    return service.as_delivery(row, event)


@router.get(
    "/webhook_event_types",
    summary="List the types of webhook events",
    response_model=EventTypeList,
    responses=error_answers(),
)
async def list_webhook_event_types(_caller: Writer) -> EventTypeList:
    """List of what endpoints can be told."""
    return EventTypeList(data=[kind.value for kind in WebhookEventType])

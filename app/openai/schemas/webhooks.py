"""``/v1/webhook_endpoints``: what is asked, and what is shown."""

from typing import Annotated, Literal

from pydantic import Field

from app.schemas.shared import Asked, Sent, Text
from core.states import DeliveryStatus, WebhookEventType
from core.webhooks.addresses import MAX_URL_CHARS

EndpointName = Annotated[Text, Field(min_length=1, max_length=64, examples=["ci"])]
Url = Annotated[
    Text,
    Field(
        min_length=1,
        max_length=MAX_URL_CHARS,
        description="Begins with `https://`, and is on the public internet; where the operator "
        "allows private addresses also `http://` and those.",
        examples=["https://example.com/hooks/tunery"],
    ),
]
EventTypes = Annotated[
    tuple[WebhookEventType, ...],
    Field(min_length=1, max_length=32, examples=[["fine_tuning.job.succeeded"]]),
]


class EndpointCreate(Asked):
    """Where to be told, and of what."""

    name: EndpointName
    url: Url
    event_types: EventTypes


class EndpointUpdate(Asked):
    """What to change; what is left out stays."""

    name: EndpointName | None = None
    url: Url | None = None
    event_types: EventTypes | None = None
    x_enabled: bool | None = Field(
        None,
        description="true: send again to an endpoint that was disabled. false: give up what waits, "
        "and send nothing until then.",
    )


class SecretRotate(Asked):
    """What becomes of the secret before."""

    keep_old_secret_active_for_24_hours: bool = Field(
        False, description="true: messages are signed with both for so long."
    )


class TestRequest(Asked):
    """What to send."""

    event_type: WebhookEventType = Field(
        WebhookEventType.JOB_SUCCEEDED, description="Need not be one that the endpoint wants."
    )


class EndpointAnswer(Sent):
    """An endpoint without its secret."""

    id: str = Field(examples=["whe_06f1k2m3n4p5q6r7s8t9v0w1x2"])
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int = Field(description="Unix seconds, as all moments here.")
    updated_at: int = Field(description="When its owner last changed it, or its secret.")
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str = Field(description="To tell secrets apart.", examples=["whsec_…9fQk"])
    x_enabled: bool = Field(description="false: nothing is sent.")
    x_disabled_reason: str | None = Field(
        None, description="Such as an answer 410, by which a receiver asks for it."
    )
    x_delivered: int = Field(description="Deliveries that were taken, ever.")
    x_failed: int = Field(description="Deliveries that were given up, ever.")


class NewEndpointAnswer(EndpointAnswer):
    """An endpoint with its secret, shown this once."""

    signing_secret: str = Field(
        description="Keep it: it cannot be shown again, only replaced.", examples=["whsec_…"]
    )


class EndpointDeleted(Sent):
    """An endpoint that is gone."""

    id: str
    object: Literal["webhook_endpoint.deleted"] = "webhook_endpoint.deleted"
    deleted: Literal[True] = True


class TestAnswer(Sent):
    """What the endpoint answered to a sample event; `status_code` says whether it took it."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    webhook_endpoint_id: str
    event_type: str
    success: Literal[True] = Field(True, description="It answered; without an answer 400.")
    status_code: int


class EventTypeList(Sent):
    """Of what endpoints can be told."""

    object: Literal["list"] = "list"
    data: list[str]


class EventData(Sent):
    """What it tells of."""

    id: str = Field(description="Of the job or batch.", examples=["job_06f1k2m3n4p5q6r7s8t9v0w1x2"])


class EventAnswer(Sent):
    """An event as it is sent."""

    id: str = Field(examples=["evt_06f1k2m3n4p5q6r7s8t9v0w1x2"])
    object: Literal["event"] = "event"
    type: str
    created_at: int
    data: EventData


class DeliveryAnswer(Sent):
    """One event on its way to one endpoint."""

    id: str = Field(
        description="The header `webhook-id` of the message, whenever it is sent.",
        examples=["whd_06f1k2m3n4p5q6r7s8t9v0w1x2"],
    )
    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    webhook_endpoint_id: str
    created_at: int
    event: EventAnswer
    status: DeliveryStatus
    attempts: int
    last_attempt_at: int | None = None
    next_attempt_at: int | None = Field(
        None,
        description="null when it has ended; while it is being sent, when it is taken as lost.",
    )
    status_code: int | None = Field(None, description="Of the last answer; null without one.")
    error: str | None = Field(None, description="What was wrong with the last attempt.")

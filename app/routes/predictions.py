"""``/predict``: ask adapters and plain base models, mixed in one call."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import StreamingResponse

from app import asking
from app.dependencies import GuardedRoute, PartsDep, Predictor
from app.schemas.errors import JSON_BODY, error_answers
from app.schemas.predictions import PredictAnswer, PredictRequest
from app.services import prediction_answers, prediction_streams

router = APIRouter(tags=["predict"], route_class=GuardedRoute)

_EXAMPLES: dict[str, Any] = {
    "classify": {
        "summary": "One adapter, several rows",
        "value": {
            "adapter_id": "support-intents",
            "inputs": ["My card has not arrived", "How do I top up?"],
        },
    },
    "compare": {
        "summary": "An adapter beside its plain base and an older version",
        "value": {
            "adapter_id": "support-intents@3",
            "compare": [None, "support-intents@2"],
            "inputs": ["My card has not arrived"],
        },
    },
    "mixed": {
        "summary": "Several adapters and the plain base",
        "value": {
            "base_model": "smollm2",
            "inputs": [
                {"adapter_id": "menu-texts@2", "input": "name[Aromi], food[Chinese]"},
                {"adapter_id": None, "input": "name[Aromi], food[Chinese]"},
            ],
            "options": {"max_new_tokens": 40, "temperature": 0},
        },
    },
}


@router.post(
    "/predict",
    summary="Predict",
    response_model=PredictAnswer,
    openapi_extra={"requestBody": {"content": {"application/json": {"examples": _EXAMPLES}}}},
    responses={
        200: {
            "description": "Outputs in the order of the inputs; server-sent events for "
            "`options.stream`.",
            "content": {
                "text/event-stream": {
                    "schema": {"type": "string"},
                    "example": 'event: text\ndata: {"index": 0, "choice": 0, "text": "Aromi"}\n\n',
                }
            },
        },
        **error_answers(
            "adapter_not_found",
            "base_not_found",
            "base_mismatch",
            "base_model_required",
            "too_many_rows",
            "too_long",
            "queue_full",
            "inference_unavailable",
            "deadline_exceeded",
            *JSON_BODY,
        ),
    },
)
async def predict(
    body: PredictRequest, request: Request, caller: Predictor, parts: PartsDep
) -> Any:
    """Answer rows in their order.

    Rows of different adapters and of the plain base go through one forward pass.

    Each answer has a receipt: the digest of the tensors that were on the device, the base's
    fingerprint, and the version and alias that the request's reference meant when it came. A row
    whose adapter is not found is an error that names the row; the plain base never answers in its
    place.

    `compare` asks other adapters, or the plain base, for the same inputs in the same batch; their
    answers stand in `comparison`.

    With `options.stream` the answer is `text/event-stream`: `text` events with new text of a row
    (`index`, `choice`, `text`), an `output` event for every row that is over (`index`, `output`,
    `receipt`), then `done` with the usage, or `error`. Hanging up ends the rows.
    """
    planned = await asking.plan(parts, caller, body)
    if body.options.stream:
        events = await asking.stream(parts, caller, planned)
        return StreamingResponse(
            prediction_streams.as_server_sent(planned, events),
            media_type="text/event-stream",
            headers=asking.STREAM_HEADERS,
        )
    found = await asking.predict(parts, caller, planned, request)
    return prediction_answers.as_answer(planned, found)

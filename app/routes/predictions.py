"""``/predict``: ask adapters and plain base models, mixed in one call."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from app.dependencies import GuardedRoute, PartsDep, Predictor
from app.schemas.errors import error_answers
from app.schemas.predictions import PredictAnswer, PredictRequest
from app.services import prediction_answers, prediction_streams
from app.services import predictions as service
from app.services.callers import Caller
from app.services.parts import Parts
from core.db import Session
from core.errors import ServiceError

_FEW_ROWS = 16
"""So many rows are planned in less time than a thread takes to wake up; more would hold up other
requests."""

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
            "too_large",
            "queue_full",
            "inference_unavailable",
            "invalid_json",
            "unsupported_media_type",
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
    planned = await _plan(parts, caller, body)
    tenant_id = caller.tenant_id
    try:
        if body.options.stream:
            events = await parts.inference.stream(planned.rows, tenant_id=tenant_id)
            return StreamingResponse(
                prediction_streams.as_server_sent(planned, events),
                media_type="text/event-stream",
                headers={"cache-control": "no-store", "x-accel-buffering": "no"},
            )
        asking = parts.inference.predict(planned.rows, tenant_id=tenant_id)
        found = await _until_gone(asking, request)
    except ServiceError as error:
        located = prediction_answers.locate(planned, error)
        raise located from error
    return prediction_answers.as_answer(planned, found)


async def _until_gone(
    asking: Coroutine[Any, Any, dict[str, Any]], request: Request
) -> dict[str, Any]:
    # a client that went away must not keep the model busy: closing our connection drops its rows
    answer = asyncio.ensure_future(asking)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        gone.cancel()
        answer.cancel()
        await asyncio.wait({answer, gone})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _plan(parts: Parts, caller: Caller, body: PredictRequest) -> service.Planned:
    """Plan a call, without a thread and the database where its adapters are known."""
    if len(body.inputs) <= _FEW_ROWS:
        with suppress(service.NeedsDatabase):
            return _plan_with(None, parts, caller, body)
    return await run_in_threadpool(_plan_reading, parts, caller, body)


def _plan_reading(parts: Parts, caller: Caller, body: PredictRequest) -> service.Planned:
    with parts.database.read() as session:
        return _plan_with(session, parts, caller, body)


def _plan_with(
    session: Session | None, parts: Parts, caller: Caller, body: PredictRequest
) -> service.Planned:
    return service.plan_rows(
        session,
        settings=parts.settings,
        known=parts.known_adapters,
        tenant_id=caller.tenant_id,
        request=body,
    )

"""From a planned prediction to its answer, for every route that gives one.

Knows when a client has gone away; knows no shape of an answer.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from app.schemas.predictions import PredictRequest
from app.services import predictions as service
from app.services.callers import Caller
from app.services.parts import Parts
from app.services.prediction_answers import locate
from core.db import Session
from core.errors import ServiceError

_FEW_ROWS = 16
"""So many rows are planned in less time than a thread takes to wake up; more would hold up other
requests."""

STREAM_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""Nothing on the way may keep parts of a stream back."""


async def plan(parts: Parts, caller: Caller, body: PredictRequest) -> service.Planned:
    """Plan a call, without a thread and the database where its adapters are known.

    Args:
        parts: The database and what is known of it.
        caller: Whose adapters may be named.
        body: What is asked.

    Returns:
        What to ask the inference process.
    """
    if len(body.inputs) <= _FEW_ROWS:
        with suppress(service.NeedsDatabase):
            return _plan_with(None, parts, caller, body)
    return await run_in_threadpool(_plan_reading, parts, caller, body)


async def predict(
    parts: Parts, caller: Caller, planned: service.Planned, request: Request
) -> dict[str, Any]:
    """Get the answers of all rows.

    Args:
        parts: Who answers.
        caller: Whose share of the queue the rows take.
        planned: The rows.
        request: When its client goes away, the rows are dropped.

    Returns:
        ``outputs``, ``receipts`` and ``usage``.

    Raises:
        ClientDisconnect: Nobody waits any more. What is wrong with a row is the error of its code.
    """  # noqa: DOC502  raised below
    asking = parts.inference.predict(planned.rows, tenant_id=caller.tenant_id)
    try:
        return await _until_gone(asking, request)
    except ServiceError as error:
        located = locate(planned, error)
        raise located from error


async def stream(
    parts: Parts, caller: Caller, planned: service.Planned
) -> AsyncGenerator[dict[str, Any]]:
    """Get the answers of all rows bit by bit.

    Args:
        parts: Who answers.
        caller: Whose share of the queue the rows take.
        planned: The rows.

    Returns:
        Events of ``InferenceClient.stream``. What is wrong before the first is raised here.
    """
    try:
        return await parts.inference.stream(planned.rows, tenant_id=caller.tenant_id)
    except ServiceError as error:
        located = locate(planned, error)
        raise located from error


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

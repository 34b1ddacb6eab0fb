"""A prediction as server-sent events: text while it is written, then the whole of every row."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from anyio import CancelScope
from fastapi.sse import format_sse_event

from app.schemas.predictions import Receipt
from app.services.prediction_answers import as_receipt, locate
from app.services.predictions import Planned
from core.errors import ServiceError

HEARTBEAT_SECONDS = 10.0
"""Below the idle limits of common proxies."""


async def as_server_sent(
    planned: Planned, events: AsyncGenerator[dict[str, Any]]
) -> AsyncIterator[bytes]:
    """Translate the inference process's events.

    Args:
        planned: What was asked.
        events: From ``InferenceClient.stream``; closed whatever happens here.

    Yields:
        ``text`` events ``{index, choice, text}``, ``output`` events ``{index, output, receipt}``,
        and at the end ``done`` ``{usage}`` or ``error`` ``{error}``. Rows of a comparison carry
        ``compare``, their place in it. Comments keep an idle connection open.
    """
    beats = with_heartbeats(events)
    try:
        async for event in beats:
            if event is None:
                yield format_sse_event(comment="still here")
            elif "usage" in event:
                yield _event("done", {"usage": event["usage"]})
            else:
                yield _event(*_of_row(planned, event))
    except ServiceError as error:
        yield _event("error", {"error": as_told(locate(planned, error))})
    finally:
        # shielded: the framework cancels every wait of a client that went away, again and again
        with CancelScope(shield=True):
            await beats.aclose()  # first: it may be inside the events
            await events.aclose()


async def with_heartbeats(
    events: AsyncGenerator[dict[str, Any]],
) -> AsyncGenerator[dict[str, Any] | None]:
    """Tell that one still waits.

    Args:
        events: Of the inference process; still to be closed by whoever has opened them.

    Yields:
        The events, and None after every ``HEARTBEAT_SECONDS`` without one.
    """
    while True:
        coming = asyncio.ensure_future(anext(events, None))
        try:
            while not coming.done():
                await asyncio.wait({coming}, timeout=HEARTBEAT_SECONDS)
                if not coming.done():
                    yield None
        finally:
            await _end(coming)
        event = coming.result()
        if event is None:
            return
        yield event


async def _end(coming: asyncio.Future[Any]) -> None:
    """Give up waiting; returns when the generator that was waited for may be used again."""
    coming.cancel()
    with CancelScope(shield=True):
        await asyncio.wait({coming})


def _of_row(planned: Planned, event: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    column, index = divmod(int(event["row"]), planned.inputs)
    place: dict[str, Any] = {"index": index} | ({"compare": column - 1} if column else {})
    if "text" in event:
        return "text", place | {"choice": event["choice"], "text": event["text"]}
    receipt: Receipt = as_receipt(event["receipt"], planned.origins[event["row"]])
    return "output", place | {"output": event["output"], "receipt": receipt.model_dump()}


def as_told(error: ServiceError) -> dict[str, Any]:
    """Shape an error that comes after the status has been sent.

    Args:
        error: What went wrong on the way.

    Returns:
        The body of ``error``.
    """
    return {
        "message": error.message,
        "type": error.type,
        "code": error.code,
        "param": error.param,
    }


def _event(name: str, data: dict[str, Any]) -> bytes:
    return format_sse_event(event=name, data_str=json.dumps(data, ensure_ascii=False))

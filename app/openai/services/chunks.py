"""A stream of texts as ``data:`` events: openings, pieces, endings, the usage, ``[DONE]``."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Protocol

from anyio import CancelScope
from fastapi.sse import format_sse_event
from pydantic import BaseModel

from app.openai.services.refusals import as_refusal
from app.openai.services.texts import Asked, Written, as_usage
from app.schemas.predictions import PredictRequest
from app.services.prediction_streams import as_told, with_heartbeats
from core.errors import ServiceError
from core.settings import Settings

END = "[DONE]"


class Form(Protocol):
    """How one route reads requests, and shows what was written, at once or bit by bit."""

    field: str
    """Field of the request that the rows were made of."""
    kind: str
    """What an answer's id begins with."""

    def read(self, settings: Settings, body: Any) -> tuple[PredictRequest, int | None]:
        """Rows for ``/predict``, and the seed in force."""

    def whole(self, asked: Asked, found: dict[str, Any]) -> BaseModel:
        """All that was written."""

    def opening(self, index: int) -> BaseModel | None:
        """What comes before the first text of a choice, if anything does."""

    def piece(self, index: int, text: str) -> BaseModel:
        """New text of a choice."""

    def ending(self, written: Written) -> BaseModel:
        """The end of a choice, whose text has all been sent."""

    def chunk(self, **fields: Any) -> BaseModel:
        """An event around some choices."""


async def as_events(
    asked: Asked, form: Form, events: AsyncGenerator[dict[str, Any]], *, is_list: bool
) -> AsyncIterator[bytes]:
    """Translate the inference process's events.

    Args:
        asked: What was asked.
        form: How it is shown.
        events: From ``InferenceClient.stream``; closed whatever happens here.
        is_list: Whether the request held a list of which each entry is a row.

    Yields:
        Server-sent events. What goes wrong on the way is an event ``{error}`` and the end, without
        ``[DONE]``: the client raises it. Comments keep an idle connection open.
    """
    beats = with_heartbeats(events)
    try:
        openings = [form.opening(index) for index in range(asked.n * asked.planned.inputs)]
        for opening in openings:
            if opening is not None:
                yield _event(_chunk(asked, form, [opening]))
        async for event in beats:
            if event is None:
                yield format_sse_event(comment="ping")
                continue
            for chunk in _of_event(asked, form, event):
                yield _event(chunk)
        yield format_sse_event(data_str=END)
    except ServiceError as error:
        told = as_told(as_refusal(error, field=form.field, is_list=is_list))
        yield format_sse_event(data_str=json.dumps({"error": told}, ensure_ascii=False))
    finally:
        # shielded: the framework cancels every wait of a client that went away, again and again
        with CancelScope(shield=True):
            await beats.aclose()  # first: it may be inside the events
            await events.aclose()


def _of_event(asked: Asked, form: Form, event: dict[str, Any]) -> list[BaseModel]:
    if "usage" in event:
        usage = as_usage(event["usage"])
        return [_chunk(asked, form, [], usage=usage)] if asked.tells_usage else []
    row = int(event["row"])
    if "text" in event:
        index = row * asked.n + int(event["choice"])
        return [_chunk(asked, form, [form.piece(index, event["text"])])]
    origin = asked.origin(event["receipt"])
    return [
        _chunk(asked, form, [form.ending(written)], **origin)
        for written in asked.choices(row, event["output"])
    ]


def _chunk(asked: Asked, form: Form, choices: Sequence[BaseModel], **more: Any) -> BaseModel:
    return form.chunk(**asked.head, choices=choices, **more)


def _event(chunk: BaseModel) -> bytes:
    return format_sse_event(data_str=chunk.model_dump_json())

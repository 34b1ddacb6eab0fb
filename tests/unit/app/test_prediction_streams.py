"""How a stream ends when nobody reads it any more."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import anyio
import pytest

from app.services import prediction_streams
from app.services.prediction_streams import as_server_sent
from app.services.predictions import Planned

PLANNED = Planned(rows=[{}], origins=[None], inputs=1, compare=None)


class Events:
    """A stream that says one thing and then nothing more; notes that it was closed."""

    def __init__(self) -> None:
        self.is_waiting = asyncio.Event()
        self.is_closed = False

    async def tell(self) -> AsyncGenerator[dict[str, Any]]:
        try:
            yield {"row": 0, "choice": 0, "text": "a"}
            self.is_waiting.set()
            await asyncio.Event().wait()
        finally:
            self.is_closed = True


def test_a_client_that_goes_away_between_two_events_ends_them() -> None:
    async def hang_up() -> Events:
        events = Events()

        async def read() -> None:
            async for _ in as_server_sent(PLANNED, events.tell()):
                pass

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await events.is_waiting.wait()
            group.cancel_scope.cancel()
        return events

    assert asyncio.run(hang_up()).is_closed


def test_a_client_that_goes_away_at_a_heartbeat_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_streams, "HEARTBEAT_SECONDS", 0.0)

    async def hang_up() -> Events:
        events = Events()
        stream = as_server_sent(PLANNED, events.tell())
        async for piece in stream:
            if events.is_waiting.is_set():
                assert piece.startswith(b":")
                await stream.aclose()  # type: ignore[attr-defined]
        return events

    assert asyncio.run(hang_up()).is_closed

"""How often a request is asked before its refusal is its answer.

Only 429 and 503 are asked again. Most of these say nothing of the request: the queue is full, a
base is loading, the database is away. They are waited out, for as long as the batch has. The others
may be the request's own doing (an input on which an inference process dies), so they are counted;
and a request that had one is asked only when the service answers again, and while no other such
request is asked, so that one that is deadly does not take the tries of its neighbours.
"""

import asyncio
from collections.abc import Awaitable, Callable

from app.batches.door import Answer, Door
from app.batches.stopping import Stop
from core.errors import ServiceError

AGAIN = frozenset({429, 503})

NOT_ITS_DOING = frozenset(
    {
        "queue_full",
        "rate_limited",
        "base_loading",
        "shutting_down",
        "database_unavailable",
    }
)

TRIES = 5
"""Counted ones. A process that is restarted takes some of those that were under way with it."""

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
LOOK_SECONDS = 2.0


class Tries:
    """Asks for all batches of a process.

    Args:
        slots: How many requests are under way at a time.
        look: Asks the service for a sign of life; raises ``ServiceError`` without one.
    """

    def __init__(self, slots: asyncio.Semaphore, look: Callable[[], Awaitable[object]]) -> None:
        self._slots = slots
        self._look = look
        self._alone = asyncio.Lock()

    async def ask(self, door: Door, body: bytes, stop: Stop) -> Answer | None:
        """Ask until there is an answer.

        Args:
            door: Whom.
            body: The request.
            stop: Ends the waiting; what is under way is waited for.

        Returns:
            The answer, or the last refusal. None when a stop came before.
        """
        counted, pause = 0, FIRST_PAUSE_SECONDS
        answer: Answer | None = None
        while stop.reason is None:
            if counted == 0:
                answer = await self._once(door, body, stop)
            else:
                answer = await self._once_alone(door, body, stop)
            if answer is None or answer.status not in AGAIN:
                return answer
            counted += answer.code not in NOT_ITS_DOING
            if counted == TRIES:
                return answer
            await stop.pause(max(answer.retry_after_seconds or 0, pause))
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        return None

    async def _once(self, door: Door, body: bytes, stop: Stop) -> Answer | None:
        async with self._slots:
            # it may have waited long for its turn
            return None if stop.reason is not None else await door.ask(body)

    async def _once_alone(self, door: Door, body: bytes, stop: Stop) -> Answer | None:
        async with self._alone:
            while stop.reason is None:
                try:
                    await self._look()
                except ServiceError:
                    await stop.pause(LOOK_SECONDS)
                else:
                    return await self._once(door, body, stop)
        return None

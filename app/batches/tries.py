"""How often a request is asked before its refusal is its answer.

Only 429, 503 and 504 are asked again. Most of these say nothing of the request: the queue is full,
a base is loading, the database is away. They are waited out, for as long as the batch has. The
others may be the request's own doing (an input on which an inference process dies), so they are
counted; and a request that had one is asked only when the service answers again, and while no other
such request is asked, so that one that is deadly does not take the tries of its neighbours.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from app.batches.door import Answer, Door
from app.batches.slots import Slots, Turn
from app.batches.stopping import Stop
from core.errors import ServiceError

AGAIN = frozenset({429, 503, 504})

FULL = "queue_full"

LATE = "deadline_exceeded"
"""Begun side by side, large requests may all come too late: fewer at a time then, each sooner."""

NOT_ITS_DOING = frozenset(
    {
        FULL,
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
        slots: Who is under way.
        look: Asks the service for a sign of life; raises ``ServiceError`` without one.
    """

    def __init__(self, slots: Slots, look: Callable[[], Awaitable[object]]) -> None:
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
        turn = self._slots.take_turn(door)
        once = partial(self._once, door, body, stop, turn)
        while stop.reason is None:
            answer = await (once() if counted == 0 else self._ask_alone(once, stop))
            if answer is None or answer.status not in AGAIN:
                return answer
            counted += answer.code not in NOT_ITS_DOING
            if counted == TRIES:
                return answer
            seconds = max(answer.retry_after_seconds or 0, pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
            if answer.code == FULL and self._slots.under_way:
                # the end of one of those makes room; or others' rows have left, which nobody tells
                asyncio.get_running_loop().call_later(seconds, self._slots.probe)
            else:
                await stop.pause(seconds)
        return None

    async def _once(self, door: Door, body: bytes, stop: Stop, turn: Turn) -> Answer | None:
        async with self._slots.place(turn):
            if stop.reason is not None:  # it may have waited long for its turn
                return None
            answer = await door.ask(body)
            if answer.status not in AGAIN:
                self._slots.grow()
            elif answer.code in {FULL, LATE}:
                self._slots.shrink()
            return answer

    async def _ask_alone(
        self, once: Callable[[], Awaitable[Answer | None]], stop: Stop
    ) -> Answer | None:
        async with self._alone:
            while stop.reason is None:
                try:
                    await self._look()
                except ServiceError:
                    await stop.pause(LOOK_SECONDS)
                else:
                    return await once()
        return None

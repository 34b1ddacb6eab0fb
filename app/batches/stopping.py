"""Why a batch goes no further, told to everything that works on it."""

import asyncio
from contextlib import suppress
from typing import Literal

Reason = Literal["cancelled", "expired", "giving_way", "leaving"]
"""``giving_way``: another batch is to have the place. ``leaving``: this process ends, or the batch
is another's by now; nothing is written any more but what is answered already."""


class Stop:
    """Set once; ``leaving`` wins over the others.

    Args:
        grace_seconds: How long what is under way is waited for, unless the batch is left: an answer
            may take ten minutes, which nobody who cancels wants to wait.
    """

    def __init__(self, grace_seconds: float) -> None:
        self._grace_seconds = grace_seconds
        self.reason: Reason | None = None
        self._set = asyncio.Event()
        self._leaving = asyncio.Event()

    @property
    def is_leaving(self) -> bool:
        """Whether the batch is left to another attempt now."""
        return self.reason == "leaving"

    @property
    def is_handed_on(self) -> bool:
        """Whether another attempt is to ask what this one has not asked."""
        return self.reason in {"giving_way", "leaving"}

    def set(self, reason: Reason) -> None:
        """Tell it; the first reason stays, unless it is to leave.

        Args:
            reason: Why.
        """
        if self.reason is None or reason == "leaving":
            self.reason = reason
        self._set.set()
        if reason == "leaving":
            self._leaving.set()

    async def pause(self, seconds: float) -> None:
        """Wait, but not beyond a stop.

        Args:
            seconds: How long.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._set.wait(), seconds)

    async def pause_working(self, seconds: float) -> None:
        """Wait, but not beyond the moment when the batch is to be left.

        Args:
            seconds: How long.
        """
        with suppress(TimeoutError):
            await asyncio.wait_for(self._leaving.wait(), seconds)

    async def wait_overdue(self) -> None:
        """Wait until nothing that is under way is to be waited for any longer."""
        await self._set.wait()
        await self.pause_working(self._grace_seconds)

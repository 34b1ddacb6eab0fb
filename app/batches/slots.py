"""How many requests are under way at a time: as many as may be, and as the service takes.

Batches alternate: a turn of each, then the next one of each, so that one that comes need not wait
for what others have in the line already.

A queue that is full of our own rows has room as soon as one of our answers is there. Whoever is
refused waits for that, in the order of the turns, and for a clock only beside it; the number that
was taken is what is tried next, and one more after each round of answers.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from weakref import WeakKeyDictionary

Turn = tuple[int, int]
"""A round, in which each batch has one turn, and the order of arrival."""


class Slots:
    """Gives places to requests.

    Attributes:
        under_way: Requests that have a place.

    Args:
        most: How many there may be.
    """

    def __init__(self, most: int) -> None:
        self.under_way = 0
        self._most = most
        self._limit = float(most)
        self._round = 0
        self._rounds: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._order = count()
        self._waiting: list[tuple[Turn, asyncio.Future[None]]] = []

    def take_turn(self, batch: object) -> Turn:
        """Give a request its place in the line, which it keeps however often it is asked.

        Args:
            batch: Whatever stands for its batch.

        Returns:
            The turn, in the round after that of the batch's last one, and in none that is over.
        """
        self._rounds[batch] = max(self._rounds.get(batch, 0), self._round) + 1
        return self._rounds[batch], next(self._order)

    @asynccontextmanager
    async def place(self, turn: Turn) -> AsyncIterator[None]:
        """Wait for a place, and leave it at the end.

        Args:
            turn: From ``take_turn``; earlier ones come first.

        Yields:
            Once there is one.
        """
        admitted = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (turn, admitted))
        self._admit()
        try:
            await admitted
            yield
        finally:
            # one that was told to end while it waited stands in the line still
            if not admitted.cancelled():
                self.under_way -= 1
            self._admit()

    def shrink(self) -> None:
        """Note, in a place still, that the service takes no more than the others there are."""
        self._limit = float(max(1, self.under_way - 1))

    def grow(self) -> None:
        """Note that an answer came."""
        self._limit = min(self._most, self._limit + 1 / self._limit)

    def probe(self) -> None:
        """Let one more in, to see whether it is taken by now."""
        self._limit = min(self._most, self._limit + 1)
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self.under_way < int(self._limit):
            turn, admitted = heapq.heappop(self._waiting)
            if not admitted.done():
                self._round = max(self._round, turn[0])
                self.under_way += 1
                admitted.set_result(None)

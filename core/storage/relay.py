"""Bytes that are made in one thread and taken in another."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Semaphore

_AHEAD = 2
"""Pieces that wait to be taken, so that neither side waits for every piece of the other."""


class _BrokenOffError(Exception):
    """There are no more pieces, and those that came are not all."""


def relay(pieces: Iterable[bytes], take: Callable[[Iterator[bytes]], object]) -> None:
    """Make pieces in this thread for somebody who takes them in another.

    obstore asks for pieces from inside its runtime, where none of its own calls can be made: pieces
    that come out of a store themselves would end in a panic there.

    Args:
        pieces: What raises here is raised to the caller, after ``take`` was told so by an exception
            of its iterator.
        take: Takes all of them; what it raises is raised to the caller.
    """
    handed: SimpleQueue[bytes | None] = SimpleQueue()
    room = Semaphore(_AHEAD)
    is_whole = False

    def come() -> Iterator[bytes]:
        while (piece := handed.get()) is not None:
            room.release()
            yield piece
        if not is_whole:
            raise _BrokenOffError

    with ThreadPoolExecutor(1, thread_name_prefix="relay") as thread:
        taking = thread.submit(take, come())
        # who waits for room finds then that nobody takes any more
        taking.add_done_callback(lambda _: room.release())
        try:
            for piece in pieces:
                room.acquire()
                if taking.done():
                    break
                handed.put(piece)
            is_whole = True
        finally:
            handed.put(None)
        taking.result()

"""A database that is away, as a supervisor understands it."""

from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import Unavailable
from worker.heartbeat import Unreachable


@contextmanager
def reachable() -> Iterator[None]:
    """Say of the block that the database could not be reached.

    Yields:
        Nothing.

    Raises:
        Unreachable: It is away; what was asked may be asked again.
    """
    try:
        yield
    except Unavailable as error:
        raise Unreachable(error.message) from error

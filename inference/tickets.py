"""The pieces that travel between the HTTP side and the owner thread: rows, requests, batches.

Their state is changed by the scheduler only, under its lock, but for ``Work.unused``, which belongs
to whoever writes the row.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

Family = Literal["encoder", "generation", "forwarded"]
"""``forwarded``: rows that another server writes; the owner thread leaves them alone."""


@dataclass(frozen=True, slots=True)
class Lane:
    """What all rows of one forward have in common."""

    base: str
    family: Family


@dataclass(eq=False, slots=True)
class Work:
    """One row that waits for its forward.

    Attributes:
        position: Place of the row in its request, from 0.
        lane: What it may share a forward with.
        tokens: Cost of the row in tokens, at least 1.
        payload: What the runner needs; opaque here.
        ticket: The request that it belongs to, once submitted.
        tenant: Whose request.
        unused: Of those tokens, how many have not been computed, while the row is written; what is
            left when it ends is given back to the tenant.
    """

    position: int
    lane: Lane
    tokens: int
    payload: Any
    ticket: "Ticket | None" = None
    tenant: str = ""
    unused: int = 0

    def owner_ticket(self) -> "Ticket":
        """The request that the row belongs to.

        Raises:
            AssertionError: The row was never submitted.
        """
        if self.ticket is None:
            raise AssertionError("a row that was never submitted cannot end")
        return self.ticket


Texts = tuple[str, ...]
"""The text of every continuation of a row so far."""


class Ticket:
    """One request's rows, from submission until the last of them has ended.

    ``answers`` resolves with the results in row order as soon as all rows are answered, or with the
    first error. ``ended`` resolves (with None) when no row of the request waits or runs any more:
    only then may what the rows need be let go. ``texts`` holds what has been written of rows that
    still run; whoever streams it is called whenever it has changed.
    """

    def __init__(
        self,
        works: Sequence[Work],
        *,
        deadline: float,
        submitted: float,
        listen: Callable[[], None] | None = None,
    ) -> None:
        """Begin a request.

        Args:
            works: Its rows.
            deadline: On the scheduler's clock, in seconds.
            submitted: The same.
            listen: Called on the owner thread when ``texts`` or ``results`` have changed; None:
                nobody streams.
        """
        self._listen = listen
        self.texts: dict[int, Texts] = {}
        self.answers: Future[list[Any]] = Future()
        self.ended: Future[None] = Future()
        self.deadline = deadline
        self.submitted = submitted
        self.results: list[Any] = [None] * len(works)
        self.open_rows = len(works)  # neither answered, failed nor dropped yet
        self.over = False  # has its answer or its error: its waiting rows are not run
        # A waiter that gives up must not be able to cancel what the owner thread is going to
        # resolve.
        self.answers.set_running_or_notify_cancel()
        self.ended.set_running_or_notify_cancel()

    def tell(self, position: int, texts: Texts) -> None:
        """Note what has been written of a row, for whoever streams it.

        Args:
            position: The row.
            texts: Its continuations so far.
        """
        if self._listen is not None:
            self.texts[position] = texts
            self._listen()

    def notice(self) -> None:
        """Tell whoever streams that a row has its result."""
        if self._listen is not None:
            self._listen()


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one lane for one forward, in the order in which they were taken."""

    lane: Lane
    works: Sequence[Work]

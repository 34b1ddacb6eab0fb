"""Which waiting rows go into the next forward.

Requests bring rows; rows wait in one queue per lane (a base model and a task family, the things
that a forward cannot mix). A micro-batch takes rows of one lane in turn from every waiting request,
so that a request of 256 rows cannot hold up a request of one, and lanes take turns in the same way.
Rows that are written token by token are taken one by one, whenever a decoding batch has room.
Rows of different deltas and of the plain base share a batch.

Knows no torch, no HTTP and no delta: a row is an opaque payload with a cost in tokens.
All methods may be called from any thread.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from core.errors import ServiceError, TooMany, Unavailable
from inference.tickets import Batch, Family, Lane, Ticket, Work


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Bounds of one micro-batch; ``tokens`` counts padding (rows times the longest row)."""

    rows: int
    tokens: int


# On a CPU, forwards beyond about a thousand tokens are slower per token than two smaller ones.
DEFAULT_LIMITS: Mapping[Family, LaneLimits] = MappingProxyType(
    {"encoder": LaneLimits(rows=32, tokens=1024)}
)

# Rows per second are averaged over about this many batches for Retry-After.
_RATE_MEMORY_BATCHES = 8
MAX_RETRY_AFTER_SECONDS = 120


@dataclass(slots=True)
class _Line:
    """The rows of one request that wait in one lane."""

    ticket: Ticket
    works: deque[Work] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class QueueState:
    """Counts for /metrics."""

    rows_in_flight: int
    rows_waiting: int
    rows_done: int
    rows_expired: int
    batches: int
    queue_seconds: float
    rejected: int


class Admission:
    """A request's share of the bounded queue; give it back exactly once with ``close``."""

    def __init__(self, scheduler: "Scheduler", rows: int) -> None:
        self._scheduler = scheduler
        self._rows = rows

    def close(self) -> None:
        """Give the share back; further calls do nothing."""
        rows, self._rows = self._rows, 0
        self._scheduler._leave(rows)


class Scheduler:
    """Bounded queues between the HTTP side and the owner thread."""

    def __init__(
        self,
        *,
        max_rows: int,
        limits: Mapping[Family, LaneLimits] = DEFAULT_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an empty scheduler.

        Args:
            max_rows: Rows of all requests between admission and answer; more are refused.
            limits: Bounds of one micro-batch for each task family.
            clock: Monotonic seconds; deadlines are on this clock.
        """
        self._max_rows = max_rows
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._lanes: dict[Lane, deque[_Line]] = {}  # in the order of their next turn
        self._wake: Callable[[], None] = lambda: None
        self._closed: ServiceError | None = None
        self._in_flight = 0
        self._waiting = 0
        self._done = 0
        self._expired = 0
        self._batches = 0
        self._queue_seconds = 0.0
        self._rejected = 0
        self._seconds_per_row = 0.0

    # ---- HTTP side ----

    def admit(self, rows: int) -> Admission:
        """Reserve room for a request before anything is loaded for it.

        Args:
            rows: Rows of the request, at least 1.

        Returns:
            The reservation; the caller closes it when the request is over.

        Raises:
            TooMany: The queue is full (code ``queue_full``). A process that is shutting down
                refuses with the error that ``close`` was given.
        """
        with self._lock:
            if self._closed is not None:
                raise self._closed
            # A request larger than the whole queue may still enter an idle process.
            if self._in_flight and self._in_flight + rows > self._max_rows:
                self._rejected += 1
                wait = self._retry_after()
                raise TooMany(
                    f"the queue holds {self._in_flight} of {self._max_rows} rows and {rows} more "
                    f"do not fit; try again in {wait} s",
                    code="queue_full",
                    retry_after_seconds=wait,
                )
            self._in_flight += rows
        return Admission(self, rows)

    def submit(
        self,
        works: Sequence[Work],
        *,
        deadline: float,
        listen: Callable[[], None] | None = None,
    ) -> Ticket:
        """Put all rows of a request in their lanes.

        Args:
            works: The rows, ``position`` 0 … n-1, at least one.
            deadline: On the scheduler's clock; rows not begun by then are not run.
            listen: See ``Ticket``.

        Returns:
            The ticket to wait on.
        """
        ticket = Ticket(works, deadline=deadline, submitted=self._clock(), listen=listen)
        with self._lock:
            closed = self._closed
            if closed is None:
                lines: dict[Lane, _Line] = {}
                for work in works:
                    work.ticket = ticket
                    lines.setdefault(work.lane, _Line(ticket)).works.append(work)
                for lane, line in lines.items():
                    self._lanes.setdefault(lane, deque()).append(line)
                self._waiting += len(works)
        if closed is not None:
            self._close_ticket(ticket, closed, rows=len(works))
        else:
            self._wake()
        return ticket

    def cancel(self, ticket: Ticket, error: ServiceError) -> None:
        """End a request early; its waiting rows are dropped, running ones end with their forward.

        Args:
            ticket: The request; one that is already over is left as it is.
            error: What ``ticket.answers`` raises.
        """
        with self._lock:
            dropped = self._drop({ticket})
        self._close_ticket(ticket, error, rows=dropped)

    def close(self, error: ServiceError) -> None:
        """Refuse new requests and end all waiting ones.

        Args:
            error: What everybody is told.
        """
        with self._lock:
            self._closed = error
            tickets: dict[Ticket, int] = {}
            for lines in self._lanes.values():
                for line in lines:
                    tickets[line.ticket] = tickets.get(line.ticket, 0) + len(line.works)
            self._lanes.clear()
            self._waiting = 0
        for ticket, rows in tickets.items():
            self._close_ticket(ticket, error, rows=rows)
        self._wake()

    def state(self) -> QueueState:
        """Counts as of now."""
        with self._lock:
            return QueueState(
                rows_in_flight=self._in_flight,
                rows_waiting=self._waiting,
                rows_done=self._done,
                rows_expired=self._expired,
                batches=self._batches,
                queue_seconds=self._queue_seconds,
                rejected=self._rejected,
            )

    # ---- owner thread ----

    def on_work(self, wake: Callable[[], None]) -> None:
        """Set what is called whenever there may be something to take."""
        self._wake = wake

    def has_work(self) -> bool:
        """True when ``take`` may return a batch."""
        with self._lock:
            return bool(self._waiting)

    def take(self) -> Batch | None:
        """Form the next micro-batch of the lanes that have bounds.

        Returns:
            Rows of one lane within its bounds, or None when nothing waits. A row that is larger
            than the bound on its own is a batch of one.
        """
        now = self._clock()
        batch: Batch | None = None
        with self._lock:
            expired = self._take_expired(now)
            for lane in [lane for lane in self._lanes if lane.family in self._limits]:
                lines = self._lanes.pop(lane)
                works = self._fill(lines, self._limits[lane.family])
                if lines:
                    self._lanes[lane] = lines  # at the end: the other lanes come first
                if works:
                    self._waiting -= len(works)
                    self._batches += 1
                    batch = Batch(lane, works)
                    break
        for ticket, rows in expired:
            self._close_ticket(ticket, _too_late(), rows=rows)
        return batch

    def take_row(self, family: Family, fits: Callable[[Work], bool]) -> Work | None:
        """Take the next row of a family that is written row by row.

        Args:
            family: The family.
            fits: Whether there is room for a row now. A row without room keeps its place: nobody
                of its lane overtakes it.

        Returns:
            The row, or None when none waits or fits.
        """
        now = self._clock()
        found: Work | None = None
        with self._lock:
            expired = self._take_expired(now)
            for lane in [lane for lane in self._lanes if lane.family == family]:
                lines = self._lanes[lane]
                if not fits(lines[0].works[0]):
                    continue
                del self._lanes[lane]
                line = lines.popleft()
                found = line.works.popleft()
                if line.works:
                    lines.append(line)
                if lines:
                    self._lanes[lane] = lines  # at the end: the other lanes come first
                self._waiting -= 1
                self._queue_seconds += max(now - line.ticket.submitted, 0.0)
                break
        for ticket, rows in expired:
            self._close_ticket(ticket, _too_late(), rows=rows)
        return found

    def finished(self, rows: int, seconds: float) -> None:
        """Note how long rows took, for the estimate in Retry-After.

        Args:
            rows: How many, at least 1.
            seconds: Time in which they were answered.
        """
        with self._lock:
            self._done += rows
            per_row = seconds / rows
            share = 1 / _RATE_MEMORY_BATCHES if self._seconds_per_row else 1.0
            self._seconds_per_row += share * (per_row - self._seconds_per_row)

    def answer(self, work: Work, result: Any) -> None:
        """Give a row its result; the request resolves with its last row."""
        ticket = work.owner_ticket()
        with self._lock:
            ticket.results[work.position] = result
            ticket.open_rows -= 1
            last = ticket.open_rows == 0
            resolves = last and not ticket.over
            ticket.over = ticket.over or last
        if resolves:
            ticket.answers.set_result(ticket.results)
        if last:
            ticket.ended.set_result(None)
        ticket.notice()

    def fail(self, work: Work, error: Exception) -> None:
        """Give a row its error; the request is over and its waiting rows are dropped."""
        ticket = work.owner_ticket()
        with self._lock:
            dropped = self._drop({ticket})
        self._close_ticket(ticket, error, rows=dropped + 1)

    # ---- inside (``_lock`` held unless said otherwise) ----

    def _leave(self, rows: int) -> None:
        with self._lock:
            self._in_flight -= rows

    def _retry_after(self) -> int:
        seconds = math.ceil(self._in_flight * self._seconds_per_row)
        return min(max(seconds, 1), MAX_RETRY_AFTER_SECONDS)

    def _fill(self, lines: deque[_Line], limits: LaneLimits) -> list[Work]:
        """Take rows in turn from the lines of one lane until a bound is met.

        A line whose next row does not fit keeps its place in front, so that it begins the next
        batch.
        """
        taken: list[Work] = []
        passed: list[_Line] = []
        longest = 0
        now = self._clock()
        while lines and len(taken) < limits.rows:
            line = lines.popleft()
            work = line.works[0]
            widest = max(longest, work.tokens)
            if taken and widest * (len(taken) + 1) > limits.tokens:
                passed.append(line)
                continue
            taken.append(line.works.popleft())
            longest = widest
            self._queue_seconds += max(now - line.ticket.submitted, 0.0)
            if line.works:
                lines.append(line)
        lines.extendleft(reversed(passed))
        return taken

    def _take_expired(self, now: float) -> list[tuple[Ticket, int]]:
        late: dict[Ticket, int] = {}
        for lines in self._lanes.values():
            for line in lines:
                if line.ticket.deadline <= now:
                    late[line.ticket] = 0
        for ticket in late:
            late[ticket] = self._drop({ticket})
            self._expired += late[ticket]
        return list(late.items())

    def _drop(self, chosen: Collection[Ticket]) -> int:
        """Take the waiting rows of chosen requests out of all lanes; returns how many."""
        dropped = 0
        for lane, lines in list(self._lanes.items()):
            gone = [line for line in lines if line.ticket in chosen]
            if gone:
                dropped += sum(len(line.works) for line in gone)
                kept = deque(line for line in lines if line.ticket not in chosen)
                if kept:
                    self._lanes[lane] = kept
                else:
                    del self._lanes[lane]
        self._waiting -= dropped
        return dropped

    def _close_ticket(self, ticket: Ticket, error: Exception, *, rows: int) -> None:
        """End ``rows`` rows of a request with an error (called without the lock)."""
        with self._lock:
            ticket.open_rows -= rows
            resolves = not ticket.over
            ticket.over = True
            ended = ticket.open_rows == 0 and rows > 0
        if resolves:
            ticket.answers.set_exception(error)
        if ended:
            ticket.ended.set_result(None)
        ticket.notice()


def _too_late() -> ServiceError:
    return Unavailable(
        "the request waited until its deadline without being started; try again later",
        code="deadline_exceeded",
        retry_after_seconds=1,
    )

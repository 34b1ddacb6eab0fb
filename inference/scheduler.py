"""Which waiting rows go into the next forward.

Requests bring rows; rows wait in one queue per lane (a base model and a task family, the things
that a forward cannot mix), and lanes take turns. Within a lane the tenant comes next that has had
the fewest tokens (``shares``), and the requests of one tenant take turns, so that a request of 256
rows holds up neither another tenant nor another request of its own.
Rows that are written token by token are taken one by one, whenever a decoding batch has room.
Rows of different deltas and of the plain base share a batch.

Knows no torch, no HTTP and no delta: a row is an opaque payload with a cost in tokens.
All methods may be called from any thread.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from core.errors import ServiceError, TooMany, TooSlow, Unavailable
from inference.limits import DEFAULT_LIMITS, LaneLimits
from inference.lines import Line, Lines
from inference.shares import Shares, is_background
from inference.tickets import Batch, Family, Lane, Ticket, Work

# After so long without people a batch has large forwards, which are a fifth quicker on a CPU.
_PEOPLE_STAY_SECONDS = 60.0

# Rows per second are averaged over about this many batches for Retry-After.
_RATE_MEMORY_BATCHES = 8
MAX_RETRY_AFTER_SECONDS = 120


def _is_awaited(work: Work) -> bool:
    return not is_background(work.tenant)


def _anything(_: Work) -> bool:
    return True


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

    def __init__(self, scheduler: "Scheduler", tenant: str, rows: int) -> None:
        self._scheduler = scheduler
        self._tenant = tenant
        self._rows = rows

    def close(self) -> None:
        """Give the share back; further calls do nothing."""
        rows, self._rows = self._rows, 0
        self._scheduler._leave(self._tenant, rows)


class Scheduler:
    """Bounded queues between the HTTP side and the owner thread."""

    def __init__(
        self,
        *,
        max_rows: int,
        max_tenant_rows: int | None = None,
        weights: Mapping[str, float] = MappingProxyType({}),
        limits: Mapping[Family, LaneLimits] = DEFAULT_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make an empty scheduler.

        Args:
            max_rows: Rows of all requests between admission and answer; more are refused.
            max_tenant_rows: The same of one tenant; None: no bound of its own.
            weights: Share of a tenant relative to the others' 1.
            limits: Bounds of one micro-batch for each task family.
            clock: Monotonic seconds; deadlines are on this clock.
        """
        self._max_rows = max_rows
        self._max_tenant_rows = max_rows if max_tenant_rows is None else max_tenant_rows
        self._shares = Shares(weights)
        self._tenant_rows: Counter[str] = Counter()
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._lanes: dict[Lane, Lines] = {}  # in the order of their next turn
        self._written: set[Work] = set()  # taken one by one and not ended
        self._wakers: list[Callable[[], None]] = []
        self._closed: ServiceError | None = None
        self._awaited_at = -math.inf  # when rows came last that somebody waits for
        self._in_flight = 0
        self._waiting = 0
        self._done = 0
        self._expired = 0
        self._batches = 0
        self._queue_seconds = 0.0
        self._rejected = 0
        self._seconds_per_row = 0.0

    # ---- HTTP side ----

    def admit(self, rows: int, *, tenant: str = "") -> Admission:
        """Reserve room for a request before anything is loaded for it.

        Args:
            rows: Rows of the request, at least 1.
            tenant: Whose request.

        Returns:
            The reservation; the caller closes it when the request is over.

        Raises:
            TooMany: The queue, or the tenant's part of it, is full (code ``queue_full``). A process
                that is shutting down refuses with the error that ``close`` was given.
        """  # noqa: DOC502  made below
        with self._lock:
            if self._closed is not None:
                raise self._closed
            own = self._tenant_rows[tenant]
            # A request larger than a bound may still enter when nothing else counts against it.
            if own and own + rows > self._max_tenant_rows:
                raise self._full(f"your requests hold {own} of {self._max_tenant_rows} rows", rows)
            if self._in_flight and self._in_flight + rows > self._max_rows:
                held = f"the queue holds {self._in_flight} of {self._max_rows} rows"
                raise self._full(held, rows)
            self._in_flight += rows
            self._tenant_rows[tenant] += rows
        return Admission(self, tenant, rows)

    def submit(
        self,
        works: Sequence[Work],
        *,
        deadline: float,
        tenant: str = "",
        listen: Callable[[], None] | None = None,
    ) -> Ticket:
        """Put all rows of a request in their lanes.

        Args:
            works: The rows, ``position`` 0 … n-1, at least one.
            tenant: Whose request.
            deadline: On the scheduler's clock; rows not begun by then are not run.
            listen: See ``Ticket``.

        Returns:
            The ticket to wait on.
        """
        ticket = Ticket(works, deadline=deadline, submitted=self._clock(), listen=listen)
        with self._lock:
            closed = self._closed
            if closed is None:
                if not is_background(tenant):
                    self._awaited_at = ticket.submitted
                self._greet(tenant)
                lines: dict[Lane, Line] = {}
                for work in works:
                    work.ticket, work.tenant = ticket, tenant
                    lines.setdefault(work.lane, Line(ticket)).works.append(work)
                for lane, line in lines.items():
                    self._lanes.setdefault(lane, Lines()).add(tenant, line)
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

    def postpone(self, ticket: Ticket, seconds: float) -> None:
        """Give the rows of a request that wait more time, since others of it go on.

        Args:
            ticket: The request.
            seconds: From now on.
        """
        with self._lock:
            ticket.deadline = self._clock() + seconds

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
        """Add what is called whenever there may be something to take."""
        self._wakers.append(wake)

    def has_work(self) -> bool:
        """True when the owner thread may find something to take."""
        with self._lock:
            return any(lane.family != "forwarded" for lane in self._lanes)

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

    def take_row(
        self,
        family: Family,
        fits: Callable[[Work], bool],
        *,
        may_begin: Callable[[Work], bool] = _anything,
    ) -> Work | None:
        """Take the next row of a family that is written row by row.

        Args:
            family: The family.
            fits: Whether there is room for a row now. A row without room keeps its place: nobody
                of its lane overtakes it.
            may_begin: Whether a row has a claim to room now; without one others overtake it.

        Returns:
            The row, or None when none waits or fits.
        """
        now = self._clock()
        found: Work | None = None
        with self._lock:
            expired = self._take_expired(now)
            for lane in [lane for lane in self._lanes if lane.family == family]:
                lines = self._lanes[lane]
                turn = self._turn(lines, may_begin=may_begin)
                if turn is None:
                    continue
                tenant, line = turn
                if not fits(line.works[0]):
                    continue
                del self._lanes[lane]
                found = self._take_from(lines, tenant, line, now)
                self._written.add(found)
                if lines:
                    self._lanes[lane] = lines  # at the end: the other lanes come first
                self._waiting -= 1
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
            self._settle(work)
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
            self._settle(work)
            dropped = self._drop({ticket})
        self._close_ticket(ticket, error, rows=dropped + 1)

    def hand_over(self, work: Work, family: Family) -> None:
        """Let a row that was taken wait for another taker of its base.

        Args:
            work: The row; it must not have begun.
            family: Who writes it now.
        """
        ticket = work.owner_ticket()
        with self._lock:
            work.unused = work.tokens
            self._settle(work)
            error = _gone() if ticket.over else self._closed
            if error is None:
                self._greet(work.tenant)
                work.lane = Lane(work.lane.base, family)
                line = Line(ticket, deque([work]))
                self._lanes.setdefault(work.lane, Lines()).add(work.tenant, line)
                self._waiting += 1
        if error is None:
            self._wake()
        else:
            self.fail(work, error)

    # ---- inside (``_lock`` held unless said otherwise) ----

    def _wake(self) -> None:
        """Tell those who take rows (called without the lock)."""
        for wake in self._wakers:
            wake()

    def _leave(self, tenant: str, rows: int) -> None:
        with self._lock:
            self._in_flight -= rows
            self._tenant_rows[tenant] -= rows
            if not self._tenant_rows[tenant]:
                del self._tenant_rows[tenant]

    def _full(self, held: str, rows: int) -> TooMany:
        self._rejected += 1
        wait = self._retry_after()
        return TooMany(
            f"{held} and {rows} more do not fit; try again in {wait} s",
            code="queue_full",
            retry_after_seconds=wait,
        )

    def _retry_after(self) -> int:
        seconds = math.ceil(self._in_flight * self._seconds_per_row)
        return min(max(seconds, 1), MAX_RETRY_AFTER_SECONDS)

    def _greet(self, tenant: str) -> None:
        waiting = {own for lines in self._lanes.values() for own in lines.tenants}
        if tenant not in waiting:
            unused: Counter[str] = Counter()
            for work in self._written:
                unused[work.tenant] += work.unused
            self._shares.arrive(tenant, waiting, unused=unused)

    def _take_from(self, lines: Lines, tenant: str, line: Line, now: float) -> Work:
        work = lines.take(tenant, line)
        self._shares.charge(tenant, work.tokens)
        self._queue_seconds += max(now - line.ticket.submitted, 0.0)
        return work

    def _settle(self, work: Work) -> None:
        """Give a tenant back what its row was charged and has not taken."""
        self._written.discard(work)
        self._shares.charge(work.tenant, -work.unused)
        work.unused = 0

    def _fill(self, lines: Lines, limits: LaneLimits) -> list[Work]:
        """Take rows of one lane, that of the tenant who has had least first, until a bound is met.

        A request whose next row does not fit is left out of this batch and keeps its place, so that
        it begins the next one. A batch that begins with a row that somebody waits for has no others
        in it: their share is in the batches that they begin.
        """
        taken: list[Work] = []
        passed: list[Line] = []
        longest = 0
        now = self._clock()
        while len(taken) < limits.rows:
            awaited = bool(taken) and not is_background(taken[0].tenant)
            turn = self._turn(lines, passed, may_begin=_is_awaited if awaited else _anything)
            if turn is None:
                break
            tenant, line = turn
            if not taken and is_background(tenant) and self._has_people(now):
                limits = limits.for_background()
            widest = max(longest, line.works[0].tokens)
            if taken and widest * (len(taken) + 1) > limits.tokens:
                passed.append(line)
                continue
            taken.append(self._take_from(lines, tenant, line, now))
            longest = widest
        return taken

    def _turn(
        self, lines: Lines, passed: Collection[Line] = (), *, may_begin: Callable[[Work], bool]
    ) -> tuple[str, Line] | None:
        for tenant in self._shares.in_turn(lines.tenants):
            line = lines.next(tenant, passed)
            if line is not None and may_begin(line.works[0]):
                return tenant, line
        return None

    def _has_people(self, now: float) -> bool:
        return now - self._awaited_at < _PEOPLE_STAY_SECONDS

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
            dropped += lines.drop(chosen)
            if not lines:
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


def _gone() -> ServiceError:
    return Unavailable("nobody waits for this row any more", code="request_cancelled")


def _too_late() -> ServiceError:
    return TooSlow("the request waited until its deadline without being started; try again later")

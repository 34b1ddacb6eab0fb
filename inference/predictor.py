"""One ``/predict`` from its rows to its answers: admit, load, check, queue, wait.

Everything here waits without a thread of its own; what costs time runs elsewhere (deltas in the
bank's loaders, tokenising in a small pool, forwards on the owner thread). Cancelling
the coroutine (the client went away, the process stops) drops the rows that have not begun.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from core.errors import BadInput, ServiceError, TooSlow, Unavailable
from core.settings import Settings
from inference.bank import Bank, DeltaRef, Lease, NoRoom, release_later
from inference.bases import Bases, HeldBase
from inference.failures import at_row, of_forward
from inference.runner import Answered, Asked
from inference.scheduler import Admission, Scheduler
from inference.schemas import PredictOut, RowIn, Usage
from inference.story import Story
from inference.tickets import Family, Lane, Ticket, Work
from inference.uses import Uses
from peft_engine.errors import EngineError
from peft_engine.serving import Engine, PreparedRow, Row

_PREPARE_THREADS = 2

Takes = Callable[[Engine, PreparedRow], bool]
"""Whether another server writes a row."""


def takes_none(_engine: Engine, _row: PreparedRow) -> bool:
    """No other server stands behind this process."""
    return False


class _Holds:
    """What a request keeps from others until its last row has ended."""

    def __init__(self, admission: Admission, uses: Uses, rows: Sequence[RowIn]) -> None:
        self._admission = admission
        self._uses = uses
        self._adapter_ids = {row.delta.adapter_id for row in rows if row.delta}
        self._leases: list[Future[Lease]] = []
        self._bases: list[HeldBase] = []
        uses.begin(self._adapter_ids)

    def add(self, leases: Sequence[Future[Lease]]) -> None:
        self._leases += leases

    def add_base(self, base: HeldBase) -> None:
        self._bases.append(base)

    def unpin(self) -> None:
        leases, self._leases = self._leases, []
        for lease in leases:
            release_later(lease)

    def let_go(self, _: object = None) -> None:
        self.unpin()
        bases, self._bases = self._bases, []
        for base in bases:
            base.release()
        adapter_ids, self._adapter_ids = self._adapter_ids, set()
        self._uses.end(adapter_ids)
        self._admission.close()


class Predictor:
    """Answers requests; one for the process, used on the event loop.

    Attributes:
        uses: Which adapters have requests in flight.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        bases: Bases,
        bank: Bank,
        scheduler: Scheduler,
        forwards: Takes = takes_none,
    ) -> None:
        """Wire the parts.

        Args:
            settings: Limits of one request.
            bases: Base models of the process.
            bank: Cache of deltas.
            scheduler: Queue in front of the owner thread.
            forwards: Which rows another server writes; asked while rows are prepared.
        """
        self._max_rows = settings.max_predict_rows
        self._max_chars = settings.max_predict_chars
        self._timeout_seconds = settings.predict_timeout_seconds
        self._bases = bases
        self._bank = bank
        self._scheduler = scheduler
        self._forwards = forwards
        self.uses = Uses()
        self._room_turn = asyncio.Lock()
        self._preparers = ThreadPoolExecutor(_PREPARE_THREADS, thread_name_prefix="row-preparer")

    def close(self) -> None:
        """Prepare no more rows."""
        self._preparers.shutdown(wait=False, cancel_futures=True)

    async def predict(
        self, rows: Sequence[RowIn], *, tenant: str = "", timeout_seconds: float | None = None
    ) -> PredictOut:
        """Answer the rows of one request, all or none.

        Args:
            rows: At least one row.
            tenant: Whose share of the queue they take.
            timeout_seconds: After so long the request is given up.

        Returns:
            Outputs and receipts in the order of the rows.

        Raises:
            CancelledError: The caller gave up; rows that have not begun are dropped.
            TooSlow: Not answered in time. All else that can be wrong is a ``ServiceError`` as
                well, with ``param`` ``rows.<index>…`` where a row is at fault.
        """  # noqa: DOC501, DOC502  made below
        self._check_size(rows)
        seconds = timeout_seconds or self._timeout_seconds
        holds = _Holds(self._scheduler.admit(len(rows), tenant=tenant), self.uses, rows)
        try:
            async with asyncio.timeout(seconds):
                ticket = await self._queue(rows, holds, seconds, tenant)
                try:
                    results: list[Answered] = await asyncio.wrap_future(ticket.answers)
                except asyncio.CancelledError:
                    self._scheduler.cancel(ticket, _gone())
                    raise
        except TimeoutError as error:
            raise _too_slow(seconds) from error
        return _collect(results)

    async def stream(
        self, rows: Sequence[RowIn], *, tenant: str = "", timeout_seconds: float | None = None
    ) -> AsyncGenerator[dict[str, Any]]:
        """Answer the rows of one request bit by bit.

        Args:
            rows: At least one row.
            tenant: Whose share of the queue they take.
            timeout_seconds: After so long without any progress the request is given up.

        Returns:
            Events as they come: ``{"row", "choice", "text"}`` for new text, ``{"row", "output",
            "receipt"}`` for a row that is over, and ``{"usage"}`` at the end. Iterating raises what
            went wrong after the start; closing it early drops the rows.

        Raises:
            Unavailable: Not queued in time. All else that is wrong before the first row begins is
                raised here too, as by ``predict``.
        """  # noqa: DOC501, DOC502  made below
        self._check_size(rows)
        seconds = timeout_seconds or self._timeout_seconds
        holds = _Holds(self._scheduler.admit(len(rows), tenant=tenant), self.uses, rows)
        changed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def listen() -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody streams any more
                loop.call_soon_threadsafe(changed.set)

        try:
            async with asyncio.timeout(seconds):
                ticket = await self._queue(rows, holds, seconds, tenant, listen)
        except TimeoutError as error:
            raise _too_slow(seconds) from error
        return self._events(ticket, changed, seconds)

    async def _events(
        self, ticket: Ticket, changed: asyncio.Event, seconds: float
    ) -> AsyncGenerator[dict[str, Any]]:
        story = Story(ticket)
        try:
            while True:
                over = ticket.answers.done()
                for event in story.news():
                    yield event
                if over:
                    break
                changed.clear()
                if not ticket.answers.done():
                    async with asyncio.timeout(seconds):
                        await changed.wait()
                    self._scheduler.postpone(ticket, seconds)
        except TimeoutError as error:
            raise _too_slow(seconds) from error
        finally:
            self._scheduler.cancel(ticket, _gone())
        yield {"usage": _collect(ticket.answers.result()).usage.model_dump()}

    def _check_size(self, rows: Sequence[RowIn]) -> None:
        if len(rows) > self._max_rows:
            raise BadInput(
                f"{len(rows)} rows in one call, the limit is {self._max_rows}; split the call",
                code="too_many_rows",
                param="rows",
            )
        chars = sum(len(text) for row in rows for text in _texts_in(row.input))
        if chars > self._max_chars:
            raise BadInput(
                f"{chars} characters in one call, the limit is {self._max_chars}; split the call",
                code="too_long",
                param="rows",
            )

    async def _queue(
        self,
        rows: Sequence[RowIn],
        holds: _Holds,
        seconds: float,
        tenant: str,
        listen: Callable[[], None] | None = None,
    ) -> Ticket:
        """Make everything that the rows need ready and put them in the queue."""
        deadline = time.monotonic() + seconds
        try:
            found = await self._find_bases(rows, holds)
            leases = await self._load_deltas(rows, holds)
            loop = asyncio.get_running_loop()
            works = await loop.run_in_executor(
                self._preparers, _prepare_rows, rows, found, leases, self._forwards
            )
        except BaseException:  # cancelled too: nothing may stay pinned
            holds.let_go()
            raise
        ticket = self._scheduler.submit(works, deadline=deadline, tenant=tenant, listen=listen)
        ticket.ended.add_done_callback(holds.let_go)
        return ticket

    async def _find_bases(self, rows: Sequence[RowIn], holds: _Holds) -> Mapping[str, Engine]:
        found: dict[str, Engine] = {}
        for index, row in enumerate(rows):
            if row.base_model not in found:
                try:
                    base = await self._bases.hold(row.base_model)
                except ServiceError as error:
                    raise at_row(error, index, field="base_model") from error
                holds.add_base(base)
                found[row.base_model] = base.engine
        return found

    async def _load_deltas(self, rows: Sequence[RowIn], holds: _Holds) -> Mapping[DeltaRef, Lease]:
        first: dict[DeltaRef, int] = {}  # the row in whose name an error is told
        for index, row in enumerate(rows):
            ref = _ref_of(row)
            if ref is not None:
                first.setdefault(ref, index)
        if not first:
            return {}
        try:
            return await self._gather(first, holds, patient=False)
        except NoRoom:
            holds.unpin()  # nobody may wait for what this request holds while it waits itself
        async with self._room_turn:
            return await self._gather(first, holds, patient=True)

    async def _gather(
        self, first: Mapping[DeltaRef, int], holds: _Holds, *, patient: bool
    ) -> Mapping[DeltaRef, Lease]:
        futures = self._bank.acquire_all(list(first), patient=patient)
        holds.add(futures)
        coming: dict[DeltaRef, asyncio.Future[Lease]] = {}
        for ref, future in zip(first, futures, strict=True):
            coming[ref] = asyncio.wrap_future(future)
            coming[ref].add_done_callback(_notice)
        await asyncio.wait(coming.values(), return_when=asyncio.FIRST_EXCEPTION)
        for ref, arrived in coming.items():
            error = arrived.exception() if arrived.done() else None
            if isinstance(error, ServiceError):
                raise at_row(error, first[ref], field="adapter_id") from error
        return {ref: arrived.result() for ref, arrived in coming.items()}


def _prepare_rows(
    rows: Sequence[RowIn],
    engines: Mapping[str, Engine],
    leases: Mapping[DeltaRef, Lease],
    forwards: Takes,
) -> list[Work]:
    """Check and tokenise every row before any is queued: a bad one costs no forward."""
    works: list[Work] = []
    for index, asked in enumerate(rows):
        ref = _ref_of(asked)
        lease = leases[ref] if ref else None
        try:
            works.append(_prepare_one(index, asked, engines[asked.base_model], lease, forwards))
        except (EngineError, UnicodeError) as error:
            told = at_row(of_forward(error), index)
            raise told from error
    return works


def _prepare_one(
    index: int, asked: RowIn, engine: Engine, lease: Lease | None, forwards: Takes
) -> Work:
    for text in _texts_in(asked.input, asked.options):
        text.encode()  # refuses half of a surrogate pair, which no tokenizer takes
    delta = lease.resident.delta if lease else None
    row = engine.prepare(Row(asked.task, asked.input, delta, asked.options))
    adapter_id = asked.delta.adapter_id if asked.delta else None
    family: Family = "generation" if row.kind == "generate" else "encoder"
    if forwards(engine, row):
        family = "forwarded"
    lane = Lane(engine.base.name, family)
    return Work(index, lane, row.cost_tokens, Asked(row, engine, lease, adapter_id))


def _ref_of(row: RowIn) -> DeltaRef | None:
    if row.delta is None:
        return None
    return DeltaRef(row.delta.digest, row.delta.key, row.base_model, row.delta.adapter_id)


def _collect(results: Sequence[Answered]) -> PredictOut:
    return PredictOut(
        outputs=[result.answer.output for result in results],
        receipts=[result.receipt for result in results],
        usage=Usage(
            input_tokens=sum(result.answer.input_tokens for result in results),
            output_tokens=sum(result.answer.output_tokens for result in results),
        ),
    )


def _texts_in(*values: Any) -> Iterator[str]:
    """Every text inside JSON values, however deep they are."""
    left = list(values)
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, Mapping):
            left.extend(item.values())
        elif isinstance(item, list):
            left.extend(item)


def _notice(future: "asyncio.Future[Lease]") -> None:
    """Look at an error that nobody may ask for, or asyncio reports it as forgotten."""
    if not future.cancelled():
        future.exception()


def _too_slow(seconds: float) -> ServiceError:
    return TooSlow(
        f"not answered within {seconds:g} s; stream the answer, or send fewer rows or ask for "
        "fewer tokens"
    )


def _gone() -> ServiceError:
    return Unavailable("nobody waits for this request any more", code="request_cancelled")

"""What the owner thread does with a micro-batch: one forward, then a receipt for every row.

A row that makes the forward fail must not take its neighbours down: the batch is then answered row
by row, and only the rows that fail alone get an error. A row of many windows or choices is answered
in several forwards, between which others have their turns.
"""

import logging
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from core.errors import ServiceError, Unavailable
from inference.bank import Bank, Lease
from inference.failures import at_row, of_forward, unwanted
from inference.receipts import write_receipt
from inference.scheduler import Scheduler
from inference.schemas import Receipt
from inference.tickets import Batch, Work
from peft_engine.errors import EngineError
from peft_engine.serving import Answer, Engine, PreparedRow

_log = logging.getLogger(__name__)

_LARGE_AT_ONCE = 2
"""Large rows that take turns, so that one need not wait for the end of a very large one; each keeps
its hidden states meanwhile, which may be hundreds of megabytes."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """Payload of a row: what the engine gets, and the delta that is pinned for it."""

    row: PreparedRow
    engine: Engine
    lease: Lease | None
    adapter_id: str | None


@dataclass(frozen=True, slots=True)
class Answered:
    """Result of a row."""

    answer: Answer
    receipt: Receipt


class Settler:
    """Gives rows their answers, each with a receipt read from the weights that gave it."""

    def __init__(self, scheduler: Scheduler, bank: Bank) -> None:
        """Wire the settler.

        Args:
            scheduler: Takes the results.
            bank: Forgets deltas that can no longer be trusted.
        """
        self._scheduler = scheduler
        self._bank = bank

    def settle(self, work: Work, answer: Answer, *, engine: str | None = None) -> None:
        """Answer a row; refused when the weights of its delta were changed in memory.

        Args:
            work: The row; its payload is an ``Asked``.
            answer: What the engine gave.
            engine: Which other program gave it; None: this one.
        """
        asked: Asked = work.payload
        resident = asked.lease.resident if asked.lease else None
        try:
            receipt = write_receipt(
                asked.engine.base,
                resident=resident,
                adapter_id=asked.adapter_id,
                engine=engine,
            )
        except Unavailable as error:
            if resident is not None:
                self._bank.discard(resident)
            self._scheduler.fail(work, at_row(error, work.position))
        else:
            self._scheduler.answer(work, Answered(answer, receipt))

    def fail(self, work: Work, error: Exception) -> None:
        """Refuse a row.

        Args:
            work: The row.
            error: What went wrong; the inside of it stays inside.
        """
        if not isinstance(error, EngineError | ServiceError):
            _log.error("a row failed in the model", exc_info=error)
        self._scheduler.fail(work, at_row(of_forward(error), work.position))


@dataclass(slots=True)
class _Large:
    """A row that takes several forwards.

    Attributes:
        work: The row.
        forwards: Makes one at each step, and returns the answer.
        seconds: What they have taken.
    """

    work: Work
    forwards: Generator[None, None, Answer]
    seconds: float = 0.0


class Runner:
    """Answers batches; called on the owner thread only."""

    def __init__(
        self, scheduler: Scheduler, settler: Settler, *, most_tokens: int | None = None
    ) -> None:
        """Wire the runner.

        Args:
            scheduler: Is told how long batches take.
            settler: Takes the results.
            most_tokens: A row of more tokens is answered in forwards of at most so many; None:
                every row in one.
        """
        self._scheduler = scheduler
        self._settler = settler
        self._most_tokens = most_tokens
        self._large: deque[_Large] = deque()

    def run(self, batch: Batch) -> None:
        """Answer every row of a batch, but for a large one; never raises.

        Args:
            batch: Rows of one base and task family.
        """
        work, most = batch.works[0], self._most_tokens
        if len(batch.works) == 1 and most is not None and work.tokens > most:
            asked: Asked = work.payload
            forwards = asked.engine.predict_in_parts(asked.row, most_tokens=most)
            self._large.append(_Large(work, forwards))
            return
        begun = time.monotonic()
        self._answer(batch.works)
        self._scheduler.finished(len(batch.works), time.monotonic() - begun)

    def go_on(self) -> bool:
        """Make one forward of a large row, so that batches and texts come in between; never raises.

        Returns:
            Whether large rows are left.
        """
        if self._large:
            self._step(self._large.popleft())
        return bool(self._large)

    def abandon(self, error: ServiceError) -> None:
        """End the large rows, because the thread ends.

        Args:
            error: What everybody is told.
        """
        for large in self._large:
            self._settler.fail(large.work, error)
        self._large.clear()

    def _step(self, large: _Large) -> None:
        if large.work.owner_ticket().over:
            self._scheduler.fail(large.work, unwanted())
            return
        begun = time.monotonic()
        try:
            next(large.forwards)
        except StopIteration as ended:
            self._settler.settle(large.work, ended.value)
            self._scheduler.finished(1, large.seconds + time.monotonic() - begun)
        except Exception as error:  # noqa: BLE001 - edge of the owner thread, which must go on
            self._settler.fail(large.work, error)
        else:
            large.seconds += time.monotonic() - begun
            self._large.insert(_LARGE_AT_ONCE - 1, large)

    def _answer(self, works: Sequence[Work]) -> None:
        try:
            engine: Engine = works[0].payload.engine
            answers = engine.predict([work.payload.row for work in works])
            pairs = list(zip(works, answers, strict=True))
        except Exception as error:  # noqa: BLE001 - edge of the owner thread, which must go on
            self._answer_apart(works, error)
            return
        for work, answer in pairs:
            self._settler.settle(work, answer)

    def _answer_apart(self, works: Sequence[Work], error: Exception) -> None:
        if len(works) > 1:
            _log.warning("a batch of %d rows failed, trying each alone: %r", len(works), error)
            for work in works:
                self._answer([work])
            return
        self._settler.fail(works[0], error)

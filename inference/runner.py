"""What the owner thread does with a micro-batch: one forward, then a receipt for every row.

A row that makes the forward fail must not take its neighbours down: the batch is then answered row
by row, and only the rows that fail alone get an error.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import ServiceError, Unavailable
from inference.bank import Bank, Lease
from inference.failures import at_row, of_forward
from inference.receipts import write_receipt
from inference.scheduler import Scheduler
from inference.schemas import Receipt
from inference.tickets import Batch, Work
from peft_engine.errors import EngineError
from peft_engine.serving import Answer, Engine, PreparedRow

_log = logging.getLogger(__name__)


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


class Runner:
    """Answers batches; called on the owner thread only."""

    def __init__(self, scheduler: Scheduler, settler: Settler) -> None:
        """Wire the runner.

        Args:
            scheduler: Is told how long batches take.
            settler: Takes the results.
        """
        self._scheduler = scheduler
        self._settler = settler

    def run(self, batch: Batch) -> None:
        """Answer every row of a batch; never raises.

        Args:
            batch: Rows of one base and task family.
        """
        begun = time.monotonic()
        self._answer(batch.works)
        self._scheduler.finished(len(batch.works), time.monotonic() - begun)

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

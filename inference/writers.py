"""Rows that are written token by token: who begins, who goes on, who has ended.

One step gives every running row of one base a token, so that encoder batches, loads and the rows of
other bases come in between. A row that makes a step fail is found by trying the rows one by one.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence

from core.errors import ServiceError
from inference.failures import unwanted
from inference.runner import Asked, Settler
from inference.scheduler import Scheduler
from inference.shares import BACKGROUND_WEIGHT, is_background
from inference.tickets import Work
from peft_engine.serving import Engine, Writing

_log = logging.getLogger(__name__)

_STEPS_OF_ALL = round(1 / BACKGROUND_WEIGHT)
"""While rows are written that somebody waits for, the others take part in every tenth step."""


class Writers:
    """The decoding batches of all bases; used on the owner thread only.

    Args:
        scheduler: Where rows come from.
        settler: Where answers go.
        engines: The engines that are loaded now.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        settler: Settler,
        engines: Callable[[], list[Engine]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._settler = settler
        self._engines = engines
        self._clock = clock
        self._ended_at = clock()
        self._waited = 0
        self.tokens = 0
        self.steps = 0
        self.rows = 0

    def step(self) -> bool:
        """Let rows begin and give every running one a token; never raises.

        Returns:
            Whether rows are running.
        """
        for engine in self._engines():
            self._let_go(engine)
        if not any(True for _ in self._open()):
            self._ended_at = self._clock()
        self._take_in()
        for engine in self._engines():
            if engine.writer.open:
                self._settle(engine, self._advance(engine))
        self.rows = sum(engine.writer.rows for engine in self._engines())
        return any(True for _ in self._open())

    def abandon(self, error: ServiceError) -> None:
        """End all rows, because the thread ends.

        Args:
            error: What everybody is told.
        """
        for _, writing in self._open():
            self._settler.fail(writing.payload, error)

    def _open(self) -> Iterator[tuple[Engine, Writing]]:
        for engine in self._engines():
            for writing in engine.writer.open:
                yield engine, writing

    def _let_go(self, engine: Engine) -> None:
        """Rows that nobody waits for any more end here."""
        for writing in engine.writer.open:
            work: Work = writing.payload
            if work.owner_ticket().over:
                engine.writer.cancel(writing)
                self._scheduler.fail(work, unwanted())

    def _take_in(self) -> None:
        while True:
            work = self._scheduler.take_row("generation", _has_room, may_begin=_may_begin)
            if work is None:
                return
            asked: Asked = work.payload
            writer = asked.engine.writer
            writing = writer.prepare(asked.row, work)
            work.unused = writing.unwritten_tokens
            writer.begin(writing)

    def _advance(self, engine: Engine) -> list[Writing]:
        """One step of one base.

        Returns:
            Rows that moved.
        """
        try:
            moved = engine.writer.step(self._taking_part(engine))
        except Exception as error:  # noqa: BLE001 - edge of the owner thread, which must go on
            return self._advance_apart(engine, error)
        self.steps += 1
        return moved

    def _taking_part(self, engine: Engine) -> Sequence[Writing] | None:
        """Rows that somebody waits for, where there are others too; None: all have a step."""
        rows = engine.writer.open
        awaited = [writing for writing in rows if not _is_background(writing)]
        if not 0 < len(awaited) < len(rows):
            return None
        self._waited = (self._waited + 1) % _STEPS_OF_ALL
        return awaited if self._waited else None

    def _advance_apart(self, engine: Engine, error: Exception) -> list[Writing]:
        rows = engine.writer.open
        if len(rows) > 1:
            _log.warning("a step of %d rows failed, trying each alone: %r", len(rows), error)
        moved: list[Writing] = []
        for writing in rows:
            try:
                moved += engine.writer.step_alone(writing)
            except Exception as own:  # noqa: BLE001 - as above, for one row
                engine.writer.cancel(writing)
                self._settler.fail(writing.payload, own)
        return moved

    def _settle(self, engine: Engine, moved: list[Writing]) -> None:
        ended = 0
        for writing in moved:
            work: Work = writing.payload
            work.unused = writing.unwritten_tokens
            if writing.is_over:
                ended += 1
                self.tokens += writing.output_tokens
                self._settler.settle(work, engine.written(writing))
            else:
                work.owner_ticket().tell(work.position, writing.texts)
        if ended:
            now = self._clock()
            self._scheduler.finished(ended, now - self._ended_at)
            self._ended_at = now


def _has_room(work: Work) -> bool:
    asked: Asked = work.payload
    return asked.engine.writer.has_room(asked.row)


def _may_begin(work: Work) -> bool:
    """Half of the places are kept for rows that somebody waits for."""
    asked: Asked = work.payload
    writer = asked.engine.writer
    begun = sum(map(_is_background, writer.open))
    return not is_background(work.tenant) or begun < max(writer.most_rows // 2, 1)


def _is_background(writing: Writing) -> bool:
    work: Work = writing.payload
    return is_background(work.tenant)

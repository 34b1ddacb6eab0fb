"""Attempts in the trainer child: read, train, publish, and say how each ended.

Jobs on one base may train at the same time; each has its journal, its wishes and its end, and the
others know nothing of them.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from core.db import Database, jobs
from core.db.models import Job
from core.errors import ServiceError
from core.settings import Settings
from core.states import ACTIVE, Phase
from core.storage import ObjectStore
from peft_engine.compression.watch import UNWATCHED, Watch
from peft_engine.configs import JobSpec
from peft_engine.errors import EngineError, TrainingError
from worker.base_cache import BaseCache
from worker.checkpoints import JobCheckpoints
from worker.deltas import store_delta
from worker.engine import (
    Certificate,
    Entry,
    TrainedDelta,
    TrainerEngine,
    TrainingEvent,
    TrainingResult,
)
from worker.failures import explain
from worker.heartbeat import Fenced
from worker.journal import JobKey, Journal
from worker.parents import read_parent
from worker.protocol import OBEYED, Ended, Measure, Outcome, Run, Wish
from worker.publishing import patiently, publish
from worker.records import read_records

_log = logging.getLogger(__name__)

# What is said last (a checkpoint's row before a drain, for one) must be written; a database that
# is away for longer costs no more than steps since the checkpoint before.
_FLUSH_SECONDS = 5.0
# A base may have hundreds of linears; its owner reads of every tenth part.
_TOLD_SHARES = 10


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a trainer child keeps from job to job."""

    settings: Settings
    database: Database
    store: ObjectStore
    engine: TrainerEngine
    bases: BaseCache


class Line(Protocol):
    """The child's end of the talk with its supervisor."""

    def next_beside(self) -> Run | None:
        """The next attempt that was handed over meanwhile, if there is one."""

    def wish_for(self, run: Run | Measure) -> Wish | None:
        """What is wanted of an attempt at the moment."""

    def tick(self) -> None:
        """Give a sign of life."""

    def report(self, ended: Ended) -> None:
        """Say how an attempt ended."""

    def tell_room(self, jobs: int) -> None:
        """Say how many more attempts would do well beside those at work."""


def run_jobs(shop: Workshop, first: Run, line: Line) -> None:
    """Train an attempt, and those that come meanwhile, to their ends.

    Every end is reported. After ``succeeded`` the adapter is published and the job is over; every
    other end is for the supervisor to write.

    Args:
        shop: What the child has.
        first: Which attempt.
        line: The talk with the supervisor.
    """
    base: Any = None
    attempts: list[_Attempt] = []

    def enter(run: Run) -> list[Entry]:
        nonlocal base
        attempt = _Attempt(shop, run, line)
        attempts.append(attempt)
        entry = attempt.open()
        if entry is None:
            return []
        base = attempt.base if base is None else base
        if attempt.base is not base:
            attempt.turn_away()
            return []
        return [entry]

    waiting = enter(first)
    if waiting:

        def arrivals() -> list[Entry]:
            found = waiting[:]
            waiting.clear()
            # What comes once all are over is none of this company: it may be for another base.
            while not all(own.is_over for own in attempts) and (run := line.next_beside()):
                found += enter(run)
            return found

        shop.engine.train_together(
            base,
            arrivals=arrivals,
            on_room=line.tell_room,
            checkpoint_seconds=shop.settings.checkpoint_seconds,
        )
    shop.engine.tidy()


def preload_newest_base(shop: Workshop) -> None:
    """Load the base of the most recent job, most likely the next one's too; a failure is logged.

    Args:
        shop: What the child has.
    """
    try:
        with shop.database.read() as session:
            spec = jobs.newest_spec(session)
        if spec is not None:
            load_base(shop, JobSpec.model_validate(spec))
    except (EngineError, ServiceError, MemoryError, OSError, ValueError) as error:
        _log.warning("no base preloaded: %s", error)


def load_base(shop: Workshop, spec: JobSpec, watch: Watch = UNWATCHED) -> Any:
    """The base of a job, loaded if it must be.

    Args:
        shop: What the child has.
        spec: The job.
        watch: Told of each part of a derivation; may end it by raising.

    Returns:
        The base; the same object until it is put out.
    """
    return shop.bases.get(spec.base_name, spec.training.precision, watch)


class Obeyed(Exception):
    """What is wanted of an attempt ends it before its training has begun."""

    def __init__(self, wish: Wish) -> None:
        """Take the wish."""
        super().__init__(wish.value)
        self.wish = wish


class _Attempt:
    """One attempt; lives from its reading to its end."""

    def __init__(self, shop: Workshop, run: Run, line: Line) -> None:
        self._shop = shop
        self._run = run
        self._line = line
        self._journal: Journal | None = None
        self._splits: Mapping[str, list[dict[str, Any]]] = {}
        self.base: Any = None
        self.is_over = False
        """Whether its end has been reported."""

    def open(self) -> Entry | None:
        """Read everything that training needs; None when that failed, which has been reported."""
        try:
            return self._open()
        except Exception as error:  # noqa: BLE001 the edge of a job: the others go on
            self._report(self._explain(error))
            return None

    def turn_away(self) -> None:
        """Give the job back untouched: it is for a base that is not at work here."""
        self._report(Ended(self._run.job_id, self._run.attempt, Outcome.DRAINED))

    def _open(self) -> Entry:
        job = patiently(self._read_job)
        key = JobKey(job.id, job.tenant_id, self._run.attempt)
        journal = Journal(
            self._shop.database, key, has_first_step=job.first_step_at is not None
        ).__enter__()
        self._journal = journal
        journal.phase(Phase.LOADING)
        asked = JobSpec.model_validate(job.spec)
        self._splits = read_records(
            self._shop.database, self._shop.store, asked, tick=self._line.tick
        )
        spec = self._settle_base(asked, self._splits, journal)
        self.base = load_base(self._shop, spec, self._watching(journal))
        self._line.tick()
        return Entry(
            spec=spec,
            splits=self._splits,
            control=lambda: self._control(journal),
            emit=lambda event: self._emit(journal, event),
            checkpoints=JobCheckpoints(
                self._shop.database, self._shop.store, self._shop.engine, journal, key
            ),
            parent=self._read_parent(spec),
            ended=lambda result: self._end(journal, key, job, spec, result),
        )

    def _end(
        self,
        journal: Journal,
        key: JobKey,
        job: Job,
        spec: JobSpec,
        result: TrainingResult | Exception,
    ) -> None:
        """Publish what came out of training; whatever goes wrong in that is the attempt's end."""
        if isinstance(result, Exception):
            self._report(self._explain(result))
            return
        try:
            ended = self._conclude(journal, key, job, spec, result)
        except Exception as error:  # noqa: BLE001 the edge of a job: the supervisor must hear it
            ended = self._explain(error)
        self._report(ended)

    def _report(self, ended: Ended) -> None:
        if self._journal is not None:
            self._journal.__exit__()
        self.is_over = True
        self._line.report(ended)

    def _explain(self, error: Exception) -> Ended:
        job_id, attempt = self._run.job_id, self._run.attempt
        if isinstance(error, Fenced):
            return Ended(job_id, attempt, Outcome.FENCED)
        if isinstance(error, Obeyed):
            return Ended(job_id, attempt, OBEYED[error.wish])
        if isinstance(error, EngineError):
            _log.info("%s: %s", job_id, error)
        else:
            _log.error("%s attempt %d failed", job_id, attempt, exc_info=error)
        return Ended(job_id, attempt, Outcome.FAILED, explain(error))

    def _conclude(
        self, journal: Journal, key: JobKey, job: Job, spec: JobSpec, result: TrainingResult
    ) -> Ended:
        ended = Ended(self._run.job_id, self._run.attempt, Outcome(result.outcome))
        if ended.outcome is not Outcome.SUCCEEDED or result.delta is None:
            journal.flush(_FLUSH_SECONDS)
            return ended
        about_base = self._report_base(spec, result, journal)
        journal.phase(Phase.CERTIFYING)
        data = self._shop.engine.save_delta(result.delta)
        certificate = self._certify(result.delta, data, journal)
        journal.phase(Phase.PUBLISHING)
        stored_as = store_delta(self._shop.store, result.delta, data)
        # Everything else goes before the last word, and a fenced attempt stops here.
        journal.flush()
        publish(
            self._shop.database,
            self._shop.store,
            key,
            job,
            result,
            data=data,
            stored_as=stored_as,
            certificate=certificate.as_json(),
            environment=self._shop.engine.environment(),
            about_base=about_base,
        )
        return ended

    def _certify(self, delta: TrainedDelta, data: bytes, journal: Journal) -> Certificate:
        """Refuse to publish what would answer otherwise than it was measured.

        Raises:
            TrainingError: It would.
        """
        check = self._checking(journal)
        found = self._shop.engine.certify(self.base, delta, data, self._splits, check=check)
        if not found.passed:
            raise TrainingError(
                f"the adapter was not published, since the serving path answers otherwise than the "
                f"trainer: {found.reason}",
                code="certificate_failed",
            )
        return found

    def _settle_base(
        self, spec: JobSpec, splits: Mapping[str, list[dict[str, Any]]], journal: Journal
    ) -> JobSpec:
        """The job with its base decided, which the rows of its own may have to."""
        pruning = spec.base.pruning
        if pruning is None or not pruning.looks_at_rows or pruning.calibration is not None:
            return spec
        parent = self._shop.bases.get(spec.base_model, spec.training.precision)
        return self._shop.engine.settle_base(parent, spec, splits, watch=self._watching(journal))

    def _report_base(
        self, spec: JobSpec, result: TrainingResult, journal: Journal
    ) -> Mapping[str, Any] | None:
        """What a derived base costs and brings; a report that fails costs no trained adapter."""
        if not spec.base.is_derived:
            return None
        shop, check = self._shop, self._checking(journal)
        try:
            untouched = shop.bases.get(spec.base_model, spec.training.precision)
            return shop.engine.report_base(untouched, self.base, result, self._splits, check=check)
        except MemoryError:
            _log.warning("%s: no memory for the untouched base beside the derived one", spec.base)
            return None

    def _checking(self, journal: Journal) -> Callable[[], None]:
        """Shows life at every forward, and ends the attempt where it is no longer wanted."""

        def check() -> None:
            self._line.tick()
            journal.check()

        return check

    def _watching(self, journal: Journal) -> Watch:
        """For what goes before the training and may take minutes: nothing is lost by ending it."""
        told: dict[str, int] = {}

        def check() -> None:
            self._checking(journal)()
            wish = self._line.wish_for(self._run)
            if wish is not None:
                raise Obeyed(wish)

        def progress(what: str, done: int, of: int) -> None:
            share = _TOLD_SHARES * done // of
            if told.get(what) != share:
                told[what] = share
                journal.log(f"{done} of {of} {what}")

        return Watch(check, progress)

    def _control(self, journal: Journal) -> str | None:
        self._line.tick()
        journal.check()
        wish = self._line.wish_for(self._run)
        return wish.value if wish is not None else None

    def _emit(self, journal: Journal, event: TrainingEvent) -> None:
        self._line.tick()
        journal.emit(event)

    def _read_job(self) -> Job:
        with self._shop.database.read() as session:
            job = jobs.get_for_worker(session, self._run.job_id)
        if job is None or job.attempt != self._run.attempt or job.status not in ACTIVE:
            raise Fenced(self._run.job_id)
        return job

    def _read_parent(self, spec: JobSpec) -> TrainedDelta | None:
        if spec.parent_adapter_id is None:
            return None
        shop = self._shop
        found = read_parent(shop.database, shop.store, shop.engine, spec.parent_adapter_id)
        self._line.tick()
        return found

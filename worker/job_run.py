"""One attempt in the trainer child: read, train, publish, and say how it ended."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from core.db import Database, datasets, jobs
from core.db.models import Dataset, Job
from core.errors import ServiceError, Unavailable
from core.settings import Settings
from core.states import ACTIVE, Phase
from core.storage import ObjectStore
from peft_engine.configs import JobSpec
from peft_engine.errors import EngineError, TrainingError
from worker.base_cache import BaseCache
from worker.checkpoints import JobCheckpoints
from worker.engine import Certificate, TrainedDelta, TrainerEngine, TrainingEvent, TrainingResult
from worker.failures import explain
from worker.heartbeat import Fenced
from worker.journal import JobKey, Journal
from worker.parents import read_parent
from worker.protocol import Ended, Outcome, Run, Wish
from worker.publishing import patiently, publish, store_delta
from worker.splits import read_split

_log = logging.getLogger(__name__)

# What is said last (a checkpoint's row before a drain, for one) must be written; a database that
# is away for longer costs no more than steps since the checkpoint before.
_FLUSH_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a trainer child keeps from job to job."""

    settings: Settings
    database: Database
    store: ObjectStore
    engine: TrainerEngine
    bases: BaseCache


def run_job(
    shop: Workshop, run: Run, wish: Callable[[], Wish | None], tick: Callable[[], None]
) -> Ended:
    """Train one attempt to its end.

    Args:
        shop: What the child has.
        run: Which attempt.
        wish: What is wanted of it at the moment.
        tick: Called at every sign of life.

    Returns:
        How it ended. After ``succeeded`` the adapter is published and the job is over; every other
        end is for the supervisor to write.
    """
    try:
        return Ended(run.job_id, run.attempt, _Attempt(shop, run, wish, tick).train())
    except Fenced:
        return Ended(run.job_id, run.attempt, Outcome.FENCED)
    except EngineError as error:
        _log.info("%s: %s", run.job_id, error)
        return Ended(run.job_id, run.attempt, Outcome.FAILED, explain(error))
    except Exception as error:  # noqa: BLE001 the edge of the process: the supervisor must hear it
        _log.exception("%s attempt %d failed", run.job_id, run.attempt)
        return Ended(run.job_id, run.attempt, Outcome.FAILED, explain(error))
    finally:
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
            _load_base(shop, JobSpec.model_validate(spec))
    except (EngineError, ServiceError, MemoryError, OSError, ValueError) as error:
        _log.warning("no base preloaded: %s", error)


def _load_base(shop: Workshop, spec: JobSpec) -> Any:
    return shop.bases.get(spec.base_name, spec.training.precision)


class _Attempt:
    """One attempt; lives as long as its training."""

    def __init__(
        self,
        shop: Workshop,
        run: Run,
        wish: Callable[[], Wish | None],
        tick: Callable[[], None],
    ) -> None:
        self._shop = shop
        self._run = run
        self._wish = wish
        self._tick = tick

    def train(self) -> Outcome:
        """Train from the newest checkpoint; publish what comes out."""
        job = patiently(self._read_job)
        key = JobKey(job.id, job.tenant_id, self._run.attempt)
        has_first_step = job.first_step_at is not None
        with Journal(self._shop.database, key, has_first_step=has_first_step) as journal:
            journal.phase(Phase.LOADING)
            splits = self._read_splits(job.dataset_id)
            spec = self._settle_base(JobSpec.model_validate(job.spec), splits, journal)
            base = _load_base(self._shop, spec)
            self._tick()
            parent = self._read_parent(spec)
            result = self._shop.engine.train(
                base,
                spec,
                splits,
                control=lambda: self._control(journal),
                emit=lambda event: self._emit(journal, event),
                checkpoints=JobCheckpoints(self._shop.database, self._shop.store, journal, key),
                checkpoint_seconds=self._shop.settings.checkpoint_seconds,
                parent=parent,
            )
            outcome = Outcome(result.outcome)
            if outcome is not Outcome.SUCCEEDED or result.delta is None:
                journal.flush(_FLUSH_SECONDS)
                return outcome
            about_base = self._report_base(base, spec, result, splits, journal)
            journal.phase(Phase.CERTIFYING)
            data = self._shop.engine.save_delta(result.delta)
            certificate = self._certify(base, result.delta, data, splits, journal)
            journal.phase(Phase.PUBLISHING)
            stored_as = store_delta(self._shop.store, result.delta, data)
            # Everything else goes before the last word, and a fenced attempt stops here.
            journal.flush()
            publish(
                self._shop.database,
                key,
                job,
                result,
                delta_bytes=len(data),
                stored_as=stored_as,
                certificate=certificate.as_json(),
                about_base=about_base,
            )
            return outcome

    def _certify(
        self,
        base: Any,
        delta: TrainedDelta,
        data: bytes,
        splits: Mapping[str, list[dict[str, Any]]],
        journal: Journal,
    ) -> Certificate:
        """Refuse to publish what would answer otherwise than it was measured.

        Raises:
            TrainingError: It would.
        """
        check = self._checking(journal)
        found = self._shop.engine.certify(base, delta, data, splits, check=check)
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
        return self._shop.engine.settle_base(parent, spec, splits, check=self._checking(journal))

    def _report_base(
        self,
        base: Any,
        spec: JobSpec,
        result: TrainingResult,
        splits: Mapping[str, list[dict[str, Any]]],
        journal: Journal,
    ) -> Mapping[str, Any] | None:
        """What a derived base costs and brings; a report that fails costs no trained adapter."""
        if not spec.base.is_derived:
            return None
        shop, check = self._shop, self._checking(journal)
        try:
            untouched = shop.bases.get(spec.base_model, spec.training.precision)
            return shop.engine.report_base(untouched, base, result, splits, check=check)
        except MemoryError:
            _log.warning("%s: no memory for the untouched base beside the derived one", spec.base)
            return None

    def _checking(self, journal: Journal) -> Callable[[], None]:
        """Shows life at every forward, and ends the attempt where it is no longer wanted."""

        def check() -> None:
            self._tick()
            journal.check()

        return check

    def _control(self, journal: Journal) -> str | None:
        self._tick()
        journal.check()
        wish = self._wish()
        return wish.value if wish is not None else None

    def _emit(self, journal: Journal, event: TrainingEvent) -> None:
        self._tick()
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
        self._tick()
        return found

    def _read_splits(self, dataset_id: str) -> Mapping[str, list[dict[str, Any]]]:
        def read_row() -> Dataset | None:
            with self._shop.database.read() as session:
                return datasets.get_for_worker(session, dataset_id)

        dataset = patiently(read_row)
        if dataset is None:
            raise Unavailable("The data set's row is missing.", code="storage_unavailable")
        return {
            split: read_split(
                self._shop.store, entry["key"], sha256=entry["sha256"], tick=self._tick
            )
            for split, entry in dataset.splits.items()
        }

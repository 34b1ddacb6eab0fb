"""Going on with a sweep: one look at its rows, one decision, one transaction.

    running ──▶ trials while there is room ──▶ all ended: the best one once more, with the test
    testing ──▶ succeeded          cancelling ──▶ cancelled

Called when a job of the sweep has ended, and by the recovery sweep for one that nobody went on
with. Two at once, or a kill between any two lines, do no harm: what is decided is written in one
transaction, and only if the sweep is still the one that was looked at.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from core.db import Database, Session, draws, jobs, sweeps, trials
from core.db.models import Job, Sweep
from core.db.trials import JOB_PRIORITY, Trial
from core.errors import Conflict
from core.queue import JobQueue
from core.states import SWEEP_ACTIVE, TERMINAL, JobStatus, SweepStatus
from peft_engine.configs import JobSpec, SweepSpec
from peft_engine.configs.search import build_job
from peft_engine.configs.training import LOWER_IS_BETTER
from worker.sweeps.comparing import Candidate, compare
from worker.sweeps.points import next_point

_log = logging.getLogger(__name__)

_TRIES = 20
"""Decisions that somebody else was faster with; the recovery sweep comes after so many."""


@dataclass(frozen=True, slots=True)
class Look:
    """A sweep as it was at one moment.

    Attributes:
        sweep: Its row.
        spec: What was asked.
        trials: By number.
        test: The job that tests the best trial, if there is one yet.
        candidates: Trials with a value, read once all have ended.
    """

    sweep: Sweep
    spec: SweepSpec
    trials: Sequence[Trial]
    test: Job | None = None
    candidates: Sequence[Candidate] = ()

    @property
    def settled(self) -> int:
        """How many of its jobs have ended."""
        ended = sum(trial.ended for trial in self.trials if trial.job_id is not None)
        return ended + (self.test is not None and self.test.status in TERMINAL)


@dataclass(frozen=True, slots=True)
class Step:
    """What follows.

    Attributes:
        values: What becomes of the sweep's row.
        make: Makes jobs in the same transaction, and gives their ids.
        again: Whether to look again afterwards.
    """

    values: dict[str, Any] = field(default_factory=dict)
    make: Callable[[Session], list[str]] = lambda _: []
    again: bool = False


def advance(database: Database, queue: JobQueue, sweep_id: str, *, max_attempts: int) -> None:
    """Go on with a sweep as far as it goes now.

    Args:
        database: Where it is.
        queue: Told of jobs that were made.
        sweep_id: From the message.
        max_attempts: Of each job.
    """
    for _ in range(_TRIES):
        look = _look(database, sweep_id)
        if look is None:
            _log.info("message for %s dropped: it has ended", sweep_id)
            return
        step = decide(look, max_attempts=max_attempts)
        try:
            job_ids = _write(database, look, step)
        except Conflict as error:
            # such as an alias that has taken the adapter's name meanwhile
            _log.warning("%s ends: %s", sweep_id, error)
            job_ids = _write(database, look, _end(SweepStatus.FAILED, error=_told(error)))
        _send(database, queue, job_ids or [])
        if job_ids is not None and not step.again:
            return


def decide(look: Look, *, max_attempts: int) -> Step:
    """Decide what follows.

    Args:
        look: The sweep.
        max_attempts: Of each job that is made.

    Returns:
        What to write.
    """
    if look.sweep.status is SweepStatus.CANCELLING:
        living = [trial for trial in look.trials if not trial.ended]
        if living or (look.test is not None and look.test.status not in TERMINAL):
            return Step()
        return _end(SweepStatus.CANCELLED)
    if look.test is not None:
        return _after_test(look.test)
    living = [trial for trial in look.trials if not trial.ended]
    room = min(look.spec.max_parallel - len(living), look.spec.trials - len(look.trials))
    if room > 0:
        return _make_trials(look, room, max_attempts)
    if living:
        return Step()
    return _choose(look, max_attempts)


def _write(database: Database, look: Look, step: Step) -> list[str] | None:
    """The jobs that were made; None when the sweep has changed since and nothing was written."""
    with database.write() as session:
        # a kill before the next look must not strand it
        settled = sweeps.WAITS if step.again else look.settled
        if not sweeps.take(session, look.sweep, settled=settled, **step.values):
            return None
        return step.make(session)


def _look(database: Database, sweep_id: str) -> Look | None:
    with database.read() as session:
        sweep = sweeps.get_for_worker(session, sweep_id)
        if sweep is None or sweep.status not in SWEEP_ACTIVE:
            return None
        spec = SweepSpec.model_validate(sweep.spec)
        found = trials.list_of(session, sweep.tenant_id, sweep_id)
        test = None
        if sweep.test_job_id is not None:
            test = jobs.get_for_worker(session, sweep.test_job_id)
        is_over = len(found) == spec.trials and all(trial.ended for trial in found)
        candidates = (
            _candidates(session, sweep.tenant_id, found) if is_over and test is None else ()
        )
        return Look(sweep, spec, found, test, candidates)


def _candidates(session: Session, tenant_id: str, ended: Sequence[Trial]) -> list[Candidate]:
    valued = [(trial, trial.value) for trial in ended if trial.value is not None]
    if not valued:
        return []
    job_ids = [trial.job_id for trial, _ in valued if trial.job_id is not None]
    kept = draws.list_validation(session, tenant_id, job_ids, valued[0][0].metric or "")
    found = []
    for trial, value in valued:
        own = kept.get(trial.job_id or "")
        drawn = (None, None, None) if own is None else (draws.values_of(own), own.rows, own.pairing)
        found.append(Candidate(trial.number, trial.params, value, *drawn))
    return found


def _make_trials(look: Look, room: int, max_attempts: int) -> Step:
    first = len(look.trials)
    made: list[tuple[dict[str, Any], JobSpec | ValueError]] = []
    known = list(look.trials)
    for number in range(first, first + room):
        params = next_point(look.spec, known, number)
        known.append(Trial(number, params, None, JobStatus.QUEUED, None, None, None, None, None))
        try:
            made.append((params, build_job(look.spec, params)))
        except ValueError as error:  # pydantic's too
            made.append((params, error))

    def make(session: Session) -> list[str]:
        job_ids = []
        for number, (params, built) in enumerate(made, first):
            if isinstance(built, ValueError):
                error = _explain(built)
                trials.add(
                    session, look.sweep, number=number, params=params, job_id=None, error=error
                )
                continue
            trial = built.model_copy(
                update={
                    "adapter_name": trials.name_adapters(built.adapter_name or ""),
                    "evaluate_test": False,
                }
            )
            job = _make_job(session, look.sweep, trial, max_attempts)
            trials.add(session, look.sweep, number=number, params=params, job_id=job.id)
            job_ids.append(job.id)
        return job_ids

    # values that go together in no job leave room for others
    again = any(isinstance(built, ValueError) for _, built in made)
    return Step(make=make, again=again)


def _choose(look: Look, max_attempts: int) -> Step:
    if not look.candidates:
        return _end(SweepStatus.FAILED, error=_all_failed(look.trials))
    by_number = {trial.number: trial for trial in look.trials}
    # the same of all: what decides is no part of a search
    metric = by_number[look.candidates[0].number].metric or ""
    comparison = compare(look.candidates, metric=metric, lower_is_better=metric in LOWER_IS_BETTER)
    best = by_number[comparison["best"]]
    test = build_job(look.spec, best.params)

    def make(session: Session) -> list[str]:
        job = _make_job(session, look.sweep, test, max_attempts, reproduces_job_id=best.job_id)
        sweeps.note_test(session, look.sweep, job.id)
        return [job.id]

    values = {
        "status": SweepStatus.TESTING,
        "best_job_id": best.job_id,
        "comparison": comparison,
    }
    return Step(values, make)


def _after_test(test: Job) -> Step:
    if test.status is JobStatus.SUCCEEDED:
        return _end(SweepStatus.SUCCEEDED)
    if test.status is JobStatus.FAILED:
        return _end(SweepStatus.FAILED, error=test.error)
    if test.status is JobStatus.CANCELLED:
        return _end(SweepStatus.CANCELLED)
    return Step()


def _end(status: SweepStatus, **values: Any) -> Step:
    return Step({"status": status, **values})


def _make_job(
    session: Session, sweep: Sweep, spec: JobSpec, max_attempts: int, **values: Any
) -> Job:
    return jobs.create(
        session,
        tenant_id=sweep.tenant_id,
        dataset_id=sweep.dataset_id,
        base_model=spec.base_model,
        spec=spec.model_dump(mode="json"),
        max_attempts=max_attempts,
        task=spec.task,
        adapter_name=spec.adapter_name,
        metadata=dict(spec.metadata),
        priority=JOB_PRIORITY,
        sweep_id=sweep.id,
        **values,
    )


def _all_failed(ended: Sequence[Trial]) -> dict[str, Any]:
    first = next((trial.error for trial in ended if trial.error), None)
    reason = f"; the first: {first['message']}" if first else ""
    return {
        "code": "sweep_failed",
        "message": f"none of {len(ended)} trials ended with a metric on validation{reason}",
        "param": None,
    }


def _told(error: Conflict) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "param": error.param}


def _explain(error: ValueError) -> dict[str, Any]:
    message = str(error)
    if isinstance(error, ValidationError):
        found = error.errors(include_url=False, include_context=False)
        message = str(found[0]["msg"]).removeprefix("Value error, ")
    return {"code": "bad_input", "message": message, "param": None}


def _send(database: Database, queue: JobQueue, job_ids: Sequence[str]) -> None:
    unsent = [
        job_id for job_id in job_ids if not queue.send_training(job_id, priority=JOB_PRIORITY)
    ]
    if unsent:
        with database.write() as session:
            jobs.mark_unsent(session, unsent)

"""How sweeps are shown: the table of their trials, the best one, and its test."""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from app.schemas.jobs import JobError
from app.schemas.sweeps import BestTrial, Comparison, SweepAnswer, SweepTest, TrialAnswer
from app.services.reports import leave_details_out
from core.db import Session, trials
from core.db.models import Sweep
from core.db.trials import Tested, Trial
from peft_engine.configs import SweepSpec
from peft_engine.configs.training import LOWER_IS_BETTER


def as_answer(session: Session, sweep: Sweep) -> SweepAnswer:
    """Shape a row for the user.

    Args:
        session: To read its jobs with.
        sweep: The sweep.

    Returns:
        What is shown of it.
    """
    found = trials.list_of(session, sweep.tenant_id, sweep.id)
    test = trials.tests_of(session, sweep.tenant_id, [sweep.id]).get(sweep.id)
    return _shape(sweep, found, test, table=[_as_trial(trial) for trial in found])


def as_answers(session: Session, tenant_id: str, rows: Sequence[Sweep]) -> list[SweepAnswer]:
    """Shape the rows of a list, which leaves the tables of trials out.

    Args:
        session: To read their jobs with, once for all.
        tenant_id: Whose sweeps.
        rows: The sweeps.

    Returns:
        What is shown of them, in their order.
    """
    ids = [sweep.id for sweep in rows]
    found = trials.list_of_all(session, tenant_id, ids)
    tests = trials.tests_of(session, tenant_id, ids)
    return [_shape(sweep, found[sweep.id], tests.get(sweep.id), table=None) for sweep in rows]


def _shape(
    sweep: Sweep, found: Sequence[Trial], test: Tested | None, *, table: list[TrialAnswer] | None
) -> SweepAnswer:
    spec = SweepSpec.model_validate(sweep.spec)
    return SweepAnswer(
        id=sweep.id,
        name=sweep.name,
        status=sweep.status,
        dataset_id=sweep.dataset_id,
        strategy=spec.strategy,
        job=spec.job,
        search={
            path: field.model_dump(mode="json", exclude_defaults=True)
            for path, field in sorted(spec.search.items())
        },
        seed=spec.seed,
        metric=next((trial.metric for trial in found if trial.metric), spec.metric),
        max_jobs=spec.trials,
        max_parallel=spec.max_parallel,
        counts=dict(Counter(trial.status.value for trial in found)),
        best=_best_of(sweep, found),
        comparison=Comparison.model_validate(sweep.comparison) if sweep.comparison else None,
        test=None if test is None else _as_test(test),
        trials=table,
        error=_as_error(sweep.error),
        created_at=sweep.created_at,
        updated_at=sweep.updated_at,
        finished_at=sweep.finished_at,
    )


def _as_trial(trial: Trial) -> TrialAnswer:
    return TrialAnswer(
        number=trial.number,
        params=dict(trial.params),
        job_id=trial.job_id,
        status=trial.status,
        value=trial.value,
        best_step=trial.validation.get("best_step"),
        seconds=_seconds(trial.started_at, trial.finished_at),
        adapter_id=trial.adapter_id,
        error=_as_error(trial.error),
    )


def _seconds(started: datetime | None, finished: datetime | None) -> float | None:
    return None if started is None or finished is None else (finished - started).total_seconds()


def _as_error(error: Any) -> JobError | None:
    return JobError.model_validate(error, extra="ignore") if error else None


def _best_of(sweep: Sweep, found: Sequence[Trial]) -> BestTrial | None:
    """The trial that was chosen, or would be if none were better."""
    valued = [trial for trial in found if trial.value is not None]
    if sweep.best_job_id is not None:
        valued = [trial for trial in valued if trial.job_id == sweep.best_job_id]

    def rank(trial: Trial) -> tuple[float, int]:
        value = trial.value or 0.0
        return (value if trial.metric in LOWER_IS_BETTER else -value, trial.number)

    best = min(valued, key=rank, default=None)
    if best is None or best.value is None or best.job_id is None:
        return None
    return BestTrial(
        number=best.number, job_id=best.job_id, params=dict(best.params), value=best.value
    )


def _as_test(test: Tested) -> SweepTest:
    metrics = leave_details_out({"test": test.report}) or {}
    return SweepTest(
        job_id=test.job_id,
        status=test.status,
        adapter_id=test.adapter_id,
        metrics=metrics["test"],
        same_digest=test.same_digest,
    )

"""Who makes the trials of a sweep: one of many, each trial once. Without a broker or a trainer."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from core.db import Database, datasets, jobs, sweeps, trials
from core.db.draws import put_validation
from core.db.idempotency import digest_request
from core.db.models import Job, Sweep
from core.db.trials import Trial
from core.errors import Conflict, InvalidTransition, NotFound
from core.queue import JobQueue
from core.settings import load_settings
from core.states import JobStatus, SweepStatus
from peft_engine.configs import SweepSpec
from tests.service.core.test_aliases import move, publish
from tests.service.core.world import World, at_once
from worker.sweeps import advancing
from worker.sweeps.advancing import advance

S = JobStatus

SEARCH = {"method.r": [2, 4], "training.seed": [0, 1, 2]}


class Searching:
    """A world with a sweep, gone on with by hand; jobs end as told."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.queue = JobQueue(load_settings())

    def sweep(self, search: dict[str, Any] | None = None, **asked: Any) -> str:
        job = {
            "dataset_id": self.world.dataset_id,
            "base_model": "minilm",
            "adapter_name": "letters",
            "task": "text-classification",
        }
        spec = SweepSpec.model_validate({"job": job, "search": search or SEARCH, **asked})
        with self.world.database.write() as session:
            sweep, is_new = sweeps.create_once(
                session,
                tenant_id=self.world.tenant_id,
                dataset_id=self.world.dataset_id,
                name="letters",
                spec=spec.model_dump(mode="json"),
                idempotency_key=None,
                request_digest=digest_request(spec.model_dump(mode="json")),
            )
        assert is_new
        return sweep.id

    def advance(self, sweep_id: str, database: Database | None = None) -> None:
        advance(database or self.world.database, self.queue, sweep_id, max_attempts=3)

    def read(self, sweep_id: str) -> tuple[Sweep, list[Trial]]:
        with self.world.database.read() as session:
            sweep = sweeps.get(session, self.world.tenant_id, sweep_id)
            return sweep, trials.list_of(session, self.world.tenant_id, sweep_id)

    def end(self, job_id: str | None, value: float | None, *, metric: str = "accuracy") -> None:
        assert job_id is not None
        attempt = self.world.claim(job_id)
        assert attempt is not None
        status, values = JobStatus.FAILED, {"error": {"code": "out_of_memory", "message": "full"}}
        if value is not None:
            report = {"metric": metric, "after": {metric: value}, "best_step": 3}
            status, values = JobStatus.SUCCEEDED, {"metrics": {"validation": report}}
        assert self.world.finish(job_id, attempt, status, **values)

    def due(self) -> list[str]:
        with self.world.database.write() as session:
            return sweeps.find_due(session, resend_after_seconds=20)

    def age(self, sweep_id: str) -> None:
        """Let a minute go by since its last message."""
        moment = datetime.now(UTC) - timedelta(seconds=60)
        with self.world.database.write() as session:
            session.execute(sa.update(Sweep).where(Sweep.id == sweep_id).values(sent_at=moment))


@pytest.fixture
def searching(world: World) -> Searching:
    return Searching(world)


def test_of_many_that_go_on_at_once_each_trial_is_made_by_one(searching: Searching) -> None:
    sweep_id = searching.sweep(max_parallel=4)
    at_once(lambda _: searching.advance(sweep_id), list(range(6)))
    _, found = searching.read(sweep_id)
    assert [trial.number for trial in found] == [0, 1, 2, 3]
    assert len({str(trial.params) for trial in found}) == 4
    for trial in found[:3]:
        searching.end(trial.job_id, 0.5)
    at_once(lambda _: searching.advance(sweep_id), list(range(6)))
    _, found = searching.read(sweep_id)
    assert [trial.number for trial in found] == [0, 1, 2, 3, 4, 5]
    for trial in found[3:]:
        searching.end(trial.job_id, 0.5 + trial.number / 100)
    at_once(lambda _: searching.advance(sweep_id), list(range(6)))
    sweep, _ = searching.read(sweep_id)
    assert (sweep.status, sweep.best_job_id) == (SweepStatus.TESTING, found[5].job_id)
    with searching.world.database.read() as session:
        made = session.scalars(sa.select(Job).where(Job.sweep_id == sweep_id)).all()
    assert len(made) == 7
    (test,) = [job for job in made if job.id == sweep.test_job_id]
    assert (test.adapter_name, test.spec["evaluate_test"]) == ("letters", True)
    assert test.reproduces_job_id == sweep.best_job_id
    assert {job.priority for job in made} == {6}
    searching.end(test.id, 0.9)
    searching.advance(sweep_id)
    sweep, _ = searching.read(sweep_id)
    assert sweep.status is SweepStatus.SUCCEEDED
    assert sweep.finished_at is not None


def test_a_decision_on_what_has_changed_since_is_dropped(searching: Searching) -> None:
    sweep_id = searching.sweep()
    old, _ = searching.read(sweep_id)
    searching.advance(sweep_id)
    with searching.world.database.write() as session:
        assert not sweeps.take(session, old, settled=0, status=SweepStatus.FAILED)
    assert searching.read(sweep_id)[0].status is SweepStatus.RUNNING


def test_one_that_nobody_went_on_with_is_found_by_one(searching: Searching) -> None:
    sweep_id = searching.sweep(max_parallel=2)
    assert searching.due() == []  # its message may be under way
    searching.age(sweep_id)
    found = at_once(lambda _: searching.due(), list(range(4)))
    assert sorted(found) == [[]] * 3 + [[sweep_id]]
    searching.advance(sweep_id)
    searching.age(sweep_id)
    assert searching.due() == []  # its jobs run, there is nothing to do
    searching.end(searching.read(sweep_id)[1][0].job_id, 0.5)
    assert searching.due() == [sweep_id]
    searching.age(sweep_id)
    searching.advance(sweep_id)
    assert searching.due() == []


def test_cancelling_meets_whoever_makes_trials(searching: Searching) -> None:
    world = searching.world

    def cancel(sweep_id: str) -> None:
        with world.database.write() as session:
            sweeps.request_cancel(session, world.tenant_id, sweep_id)

    for number in range(8):
        sweep_id = searching.sweep(seed=number)
        at_once(
            lambda own, sweep_id=sweep_id: own(sweep_id),  # type: ignore[misc]
            [cancel, searching.advance, searching.advance],
        )
        searching.advance(sweep_id)
        sweep, found = searching.read(sweep_id)
        assert sweep.status is SweepStatus.CANCELLED
        assert all(trial.status is JobStatus.CANCELLED for trial in found)


def test_a_running_job_is_waited_for_when_its_sweep_is_cancelled(searching: Searching) -> None:
    world, sweep_id = searching.world, searching.sweep(max_parallel=1)
    searching.advance(sweep_id)
    job_id = searching.read(sweep_id)[1][0].job_id
    assert job_id is not None
    attempt = world.claim(job_id)
    assert attempt is not None
    with world.database.write() as session:
        sweeps.request_cancel(session, world.tenant_id, sweep_id)
    searching.advance(sweep_id)
    assert searching.read(sweep_id)[0].status is SweepStatus.CANCELLING
    assert world.finish(job_id, attempt, JobStatus.CANCELLED)
    searching.advance(sweep_id)
    assert searching.read(sweep_id)[0].status is SweepStatus.CANCELLED
    with world.database.write() as session, pytest.raises(Conflict, match="has ended"):
        sweeps.request_cancel(session, world.tenant_id, sweep_id)


def test_a_trial_that_is_retried_while_its_sweep_is_cancelled_holds_it_up_in_no_order(
    searching: Searching,
) -> None:
    world = searching.world

    def cancel(sweep_id: str, _: Job) -> None:
        with world.database.write() as session:
            sweeps.request_cancel(session, world.tenant_id, sweep_id)

    def retry(_: str, job: Job) -> None:
        with suppress(InvalidTransition), world.database.write() as session:
            sweeps.reopen(session, job)
            jobs.retry(session, world.tenant_id, job.id, attempts=1)

    for number in range(8):
        sweep_id = searching.sweep(seed=number, max_parallel=2)
        searching.advance(sweep_id)
        failed, running = (trial.job_id for trial in searching.read(sweep_id)[1])
        searching.end(failed, None)
        assert failed is not None
        assert running is not None
        attempt = world.claim(running)
        assert attempt is not None
        job = world.get(failed)
        at_once(
            lambda own, sweep_id=sweep_id, job=job: own(sweep_id, job),  # type: ignore[misc]
            [cancel, retry],
        )
        assert world.finish(running, attempt, S.CANCELLED)
        searching.advance(sweep_id)
        assert searching.read(sweep_id)[0].status is SweepStatus.CANCELLED
        assert world.get(failed).status in {S.FAILED, S.CANCELLED}


def test_a_sweep_fails_only_when_every_trial_does(searching: Searching) -> None:
    sweep_id = searching.sweep({"method.r": [2, 4]})
    searching.advance(sweep_id)
    for trial in searching.read(sweep_id)[1]:
        searching.end(trial.job_id, None)
    searching.advance(sweep_id)
    sweep, _ = searching.read(sweep_id)
    assert (sweep.status, sweep.test_job_id) == (SweepStatus.FAILED, None)
    assert sweep.error is not None
    assert (
        sweep.error["message"]
        == "none of 2 trials ended with a metric on validation; the first: full"
    )


def test_values_that_go_together_in_no_job_are_a_trial_without_one(searching: Searching) -> None:
    search = {"method.freeze_a": [True], "method.b_learning_rate_ratio": [16, 1]}
    sweep_id = searching.sweep(search, strategy="random", max_parallel=1)
    searching.advance(sweep_id)
    _, found = searching.read(sweep_id)
    (without,) = [trial for trial in found if trial.job_id is None]
    assert (without.status, without.params["method.b_learning_rate_ratio"]) == (S.FAILED, 16)
    assert without.error is not None
    assert "freeze_a leaves only B to learn" in without.error["message"]
    # it holds nobody up: the other one was made by the same call
    assert len(found) == 2


def test_nothing_but_such_values_strands_no_sweep(
    searching: Searching, monkeypatch: pytest.MonkeyPatch
) -> None:
    # whoever goes on is killed after each decision
    monkeypatch.setattr(advancing, "_TRIES", 1)
    search = {"method.freeze_a": [True], "method.b_learning_rate_ratio": [16, 8]}
    sweep_id = searching.sweep(search, strategy="random", max_parallel=1)
    for made in (1, 2):
        searching.advance(sweep_id)
        assert len(searching.read(sweep_id)[1]) == made
        searching.age(sweep_id)
        assert searching.due() == [sweep_id]
    searching.advance(sweep_id)
    assert searching.read(sweep_id)[0].status is SweepStatus.FAILED


def test_less_is_better_of_a_loss(searching: Searching) -> None:
    sweep_id = searching.sweep({"method.r": [2, 4]})
    searching.advance(sweep_id)
    first, second = searching.read(sweep_id)[1]
    searching.end(first.job_id, 0.2, metric="loss")
    searching.end(second.job_id, 0.3, metric="loss")
    searching.advance(sweep_id)
    sweep, _ = searching.read(sweep_id)
    assert sweep.best_job_id == first.job_id
    assert sweep.comparison is not None
    assert "cannot be resampled" in sweep.comparison["verdict"]


def test_draws_of_the_trials_are_compared(searching: Searching) -> None:
    class Drawn:
        rows, pairing, lower_is_better = 8, "p", False

        def __init__(self, value: float) -> None:
            self.value = value
            self.values = tuple(value + 0.001 * (draw % 3 - 1) for draw in range(1000))

    world, sweep_id = searching.world, searching.sweep({"method.r": [2, 4]})
    searching.advance(sweep_id)
    for trial, value in zip(searching.read(sweep_id)[1], (0.5, 0.75), strict=True):
        searching.end(trial.job_id, value)
        with world.database.write() as session:
            put_validation(session, str(trial.job_id), world.tenant_id, {"accuracy": Drawn(value)})
    searching.advance(sweep_id)
    comparison = searching.read(sweep_id)[0].comparison
    assert comparison is not None
    assert (comparison["rows"], comparison["level"]) == (8, [])
    low, high = comparison["standing"][1]["confidence_interval"]
    assert (low, high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_a_name_that_was_taken_meanwhile_ends_the_sweep(searching: Searching) -> None:
    world, sweep_id = searching.world, searching.sweep({"method.r": [2]})
    searching.advance(sweep_id)
    (trial,) = searching.read(sweep_id)[1]
    searching.end(trial.job_id, 0.5)
    move(world, "letters", publish(world).id)
    searching.advance(sweep_id)
    sweep, _ = searching.read(sweep_id)
    assert sweep.status is SweepStatus.FAILED
    assert sweep.error is not None
    assert sweep.error["code"] == "name_taken"


def test_a_data_set_is_kept_while_a_sweep_needs_it(searching: Searching) -> None:
    world, sweep_id = searching.world, searching.sweep()
    with world.database.write() as session, pytest.raises(Conflict, match=sweep_id):
        datasets.mark_deleted(session, world.tenant_id, world.dataset_id)


def test_another_tenant_sees_no_sweep(searching: Searching) -> None:
    sweep_id = searching.sweep()
    with searching.world.database.write() as session:
        with pytest.raises(NotFound, match="no sweep"):
            sweeps.get(session, "ten_other", sweep_id)
        with pytest.raises(NotFound, match="no sweep"):
            sweeps.request_cancel(session, "ten_other", sweep_id)
        assert sweeps.list_page(session, "ten_other").items == []


def test_jobs_of_a_sweep_wait_behind_others(searching: Searching) -> None:
    world, sweep_id = searching.world, searching.sweep(max_parallel=2)
    searching.advance(sweep_id)
    single = world.job()
    with world.database.read() as session:
        assert jobs.queue_position(session, world.tenant_id, single.id) == 0
    # also when their message was lost
    with world.database.write() as session:
        found = jobs.sweep(session, resend_after_seconds=20)
    assert set(found.values()) == {6}

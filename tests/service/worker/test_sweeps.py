"""A sweep from its message to the test of its best trial, with the real engine on a tiny BERT."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.db import sweeps
from core.db.models import Job
from core.states import JobStatus, SweepStatus
from tests.service.servers.valkey import ValkeyServer
from tests.service.worker.stage import Stage, wait_until
from tests.service.worker.sweep_steps import SECONDS, add_sweep, names_of, read, wait_ended
from tests.service.worker.tiny_stage import tiny_stage

pytestmark = pytest.mark.timeout(1200)

GRID = {"method.r": [2, 4], "training.learning_rate": [0.001, 0.01]}


@pytest.fixture
def tiny(tmp_path: Path, _sqlite_template: Path, valkey_server: ValkeyServer) -> Iterator[Stage]:
    rows = {"train": 48, "validation": 32, "test": 16}
    yield from tiny_stage(tmp_path, _sqlite_template, valkey_server, rows=rows)


def jobs_of(stage: Stage, sweep_id: str) -> list[Job]:
    _, found = read(stage, sweep_id)
    return [stage.job(trial.job_id) for trial in found if trial.job_id is not None]


def test_a_grid_is_tried_and_its_best_trial_tested_once(tiny: Stage) -> None:
    stage = tiny
    stage.start_worker()
    stage.start_worker("housekeeping", concurrency=2)
    sweep_id = add_sweep(stage, GRID, max_parallel=2)
    sweep, found = wait_ended(stage, sweep_id)
    assert (sweep.status, sweep.error) == (SweepStatus.SUCCEEDED, None)
    assert [trial.params for trial in found] == [
        {"method.r": r, "training.learning_rate": rate} for r in (2, 4) for rate in (0.001, 0.01)
    ]
    # no trial has seen the test split
    for job in jobs_of(stage, sweep_id):
        assert job.status is JobStatus.SUCCEEDED
        assert job.metrics is not None
        assert set(job.metrics) == {"train", "validation"}
        assert (job.priority, job.sweep_id) == (6, sweep_id)
        assert job.spec["evaluate_test"] is False
        assert job.certificate is not None
        assert job.certificate["passed"]
    best = max(found, key=lambda trial: (trial.value or 0, -trial.number))
    assert best.value is not None
    assert sweep.best_job_id == best.job_id
    # the best one, once more and alike, with the test
    assert sweep.test_job_id is not None
    assert best.job_id is not None
    test = stage.job(sweep.test_job_id)
    assert test.metrics is not None
    assert test.metrics["test"]["rows"] == 16
    assert test.reproduces_job_id == best.job_id
    assert stage.digest(test.id) == stage.digest(best.job_id)
    names = names_of(stage)
    assert names[test.id] == "letters@1"
    assert {names[trial.job_id or ""].partition("@")[0] for trial in found} == {"letters-trials"}
    comparison = sweep.comparison
    assert comparison is not None
    assert (comparison["best"], comparison["rows"]) == (best.number, 32)
    assert sum(own["best_share"] for own in comparison["standing"]) == pytest.approx(1)
    assert f"Trial {best.number} has the best accuracy" in comparison["verdict"]


def test_a_housekeeping_worker_that_is_killed_loses_and_doubles_no_trial(tiny: Stage) -> None:
    stage = tiny
    stage.start_worker()
    first = stage.start_worker("housekeeping")
    gates = {"hold": "1", "gates": str(stage.folder)}
    sweep_id = add_sweep(stage, GRID, max_parallel=1, metadata=gates)
    wait_until(lambda: read(stage, sweep_id)[1], what="a first trial", seconds=SECONDS)
    first.stop_with(signal.SIGKILL)
    stage.open_gate(1)
    # nobody goes on while nobody is there
    (only,) = jobs_of(stage, sweep_id)
    # its message may have been lost with the worker
    assert stage.wait_end(only.id, seconds=SECONDS).status is JobStatus.SUCCEEDED
    assert len(read(stage, sweep_id)[1]) == 1
    second = stage.start_worker("housekeeping")
    wait_until(lambda: len(read(stage, sweep_id)[1]) > 1, what="a second trial", seconds=SECONDS)
    second.stop_with(signal.SIGKILL)
    stage.start_worker("housekeeping", concurrency=2)
    sweep, found = wait_ended(stage, sweep_id)
    assert sweep.status is SweepStatus.SUCCEEDED
    assert [trial.number for trial in found] == [0, 1, 2, 3]
    assert len({str(trial.params) for trial in found}) == 4
    with stage.database.read() as session:
        made = session.query(Job).where(Job.sweep_id == sweep_id).count()
    assert made == 5  # four trials and the test


def test_a_cancelled_sweep_stops_its_jobs_and_makes_no_more(tiny: Stage) -> None:
    stage = tiny
    stage.start_worker()
    stage.start_worker("housekeeping")
    gates = {"hold": "1", "gates": str(stage.folder)}
    sweep_id = add_sweep(stage, GRID, max_parallel=2, metadata=gates)
    wait_until(
        lambda: any(job.status is JobStatus.RUNNING for job in jobs_of(stage, sweep_id)),
        what="a trial runs",
        seconds=SECONDS,
    )
    with stage.database.write() as session:
        asked = sweeps.request_cancel(session, stage.tenant_id, sweep_id)
    assert asked.status is SweepStatus.CANCELLING
    sweep, found = wait_ended(stage, sweep_id)
    assert sweep.status is SweepStatus.CANCELLED
    assert sweep.finished_at is not None
    assert [trial.status for trial in found] == [JobStatus.CANCELLED] * 2
    assert sweep.test_job_id is None


def test_failed_trials_are_left_out(tiny: Stage) -> None:
    stage = tiny
    stage.start_worker()
    stage.start_worker("housekeeping")
    search = {
        "method": [{"type": "lora", "targets": ["nowhere"]}, "bitfit"],
        "training.seed": [0, 1],
    }
    sweep, found = wait_ended(stage, add_sweep(stage, search))
    assert sweep.status is SweepStatus.SUCCEEDED
    statuses = [trial.status for trial in found]
    assert statuses == [JobStatus.FAILED] * 2 + [JobStatus.SUCCEEDED] * 2
    assert sweep.comparison is not None
    assert {own["number"] for own in sweep.comparison["standing"]} == {2, 3}
    assert sweep.comparison["seed_deviation"] is not None

    hopeless = {
        "method": [{"type": "lora", "targets": ["nowhere"]}, {"type": "lora", "targets": ["x"]}]
    }
    sweep, found = wait_ended(stage, add_sweep(stage, hopeless))
    assert sweep.status is SweepStatus.FAILED
    assert sweep.error is not None
    assert sweep.error["code"] == "sweep_failed"
    assert "nowhere" in sweep.error["message"]

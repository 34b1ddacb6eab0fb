"""Estimates through real workers: between jobs, undisturbed, tried once more, and over."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.db import estimates
from core.states import EstimateStatus, JobStatus
from tests.service.servers.valkey import ValkeyServer
from tests.service.worker.conftest import BOTH
from tests.service.worker.stage import Stage, kill, wait_until
from tests.service.worker.tiny_stage import tiny_stage

E = EstimateStatus


def add_held_estimate(stage: Stage) -> str:
    return stage.add_estimate(hold="1", gates=str(stage.folder), trace=str(stage.trace))


def wait_measuring(stage: Stage, times: int = 1) -> None:
    wait_until(lambda: stage.traced_steps() == [0] * times, what="it is being measured")


@pytest.mark.parametrize("database_url", BOTH, indirect=True)
def test_it_is_measured_and_kept(stage: Stage) -> None:
    stage.start_worker()
    row = stage.wait_estimate(stage.add_estimate(), E.SUCCEEDED, E.FAILED)
    assert (row.status, row.error, row.attempt) == (E.SUCCEEDED, None, 1)
    assert row.result == {"rows": {"train": 8, "validation": 2, "test": 2}, "parent": False}
    assert stage.adapters() == []
    assert stage.checkpoints() == []


def test_it_waits_for_the_job_that_runs_and_the_next_job_for_it(stage: Stage) -> None:
    stage.start_worker()
    running = stage.add_held_job(2, steps=3)
    stage.wait_held(2)
    waiting = add_held_estimate(stage)
    behind = stage.add_job(steps=1, adapter_name="behind")
    stage.open_gate(2)
    stage.wait_status(running, JobStatus.SUCCEEDED)
    stage.forget_steps()
    stage.wait_estimate(waiting, E.RUNNING)
    assert stage.job(behind).status is JobStatus.QUEUED
    stage.open_gate("measured")
    stage.wait_estimate(waiting, E.SUCCEEDED)
    stage.wait_status(behind, JobStatus.SUCCEEDED)
    assert stage.job(running).attempt == stage.job(behind).attempt == 1


def test_a_running_one_is_cancelled_and_the_base_stays_warm(stage: Stage) -> None:
    worker = stage.start_worker()
    name = add_held_estimate(stage)
    wait_measuring(stage)
    trainer = stage.trainer_of(worker)
    with stage.database.write() as session:
        estimates.request_cancel(session, stage.tenant_id, name)
    row = stage.wait_estimate(name, E.CANCELLED)
    assert row.result is None
    assert stage.trainer_of(worker) == trainer


def test_a_killed_trainer_measures_once_more_and_then_fails(stage: Stage) -> None:
    worker = stage.start_worker()
    name = add_held_estimate(stage)
    for attempt in (1, 2):
        wait_measuring(stage, attempt)
        kill(stage.trainer_of(worker))
    row = stage.wait_estimate(name, E.FAILED)
    assert row.error is not None
    assert (row.error["code"], row.attempt) == ("trainer_killed", 2)
    assert "memory" in row.error["message"]
    after = stage.add_job(steps=1)
    stage.wait_status(after, JobStatus.SUCCEEDED)


@pytest.mark.parametrize("database_url", BOTH, indirect=True)
def test_a_killed_worker_is_missed_by_the_sweep(stage: Stage) -> None:
    name = add_held_estimate(stage)
    for attempt in (1, 2):
        worker = stage.start_worker()
        wait_measuring(stage, attempt)
        worker.stop_with(signal.SIGKILL)
        stage.wait_estimate(name, E.QUEUED, E.FAILED, sweeping=True)
    row = stage.estimate(name)
    assert row.status is E.FAILED
    assert row.error is not None
    assert row.error["code"] == "estimate_lost"


def test_a_drained_worker_hands_it_over(stage: Stage) -> None:
    worker = stage.start_worker()
    name = add_held_estimate(stage)
    wait_measuring(stage)
    stage.start_worker()
    assert worker.stop_with(signal.SIGTERM) == 0
    wait_measuring(stage, 2)
    stage.open_gate("measured")
    row = stage.wait_estimate(name, E.SUCCEEDED)
    assert (row.attempt, row.losses) == (2, 0)


def test_errors_reach_the_owner(stage: Stage) -> None:
    stage.start_worker()
    expected = {"engine": ("loss_not_finite", 1), "memory": ("out_of_memory", 2)}
    for kind, (code, attempts) in expected.items():
        row = stage.wait_estimate(stage.add_estimate(raise_at=f"1:{kind}"), E.FAILED)
        assert row.error is not None
        assert (row.error["code"], row.attempt) == (code, attempts)
    unmeasured = stage.add_estimate(training={"devices": 2})
    row = stage.wait_estimate(unmeasured, E.FAILED)
    assert row.error is not None
    assert (row.error["code"], row.error["param"]) == ("estimate_unavailable", "training.devices")


def test_one_without_a_message_is_found_by_the_service_itself(stage: Stage) -> None:
    stage.start_worker()
    stage.start_worker("housekeeping")
    stage.start_beat()
    name = stage.add_estimate(send=False)
    with stage.database.write() as session:
        estimates.mark_unsent(session, [name])
    stage.wait_estimate(name, E.SUCCEEDED)


# ---- the real engine ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_stage(
    tmp_path_factory: pytest.TempPathFactory, _sqlite_template: Path, valkey_server: ValkeyServer
) -> Iterator[Stage]:
    rows = {"train": 64, "validation": 16, "test": 16}
    folder = tmp_path_factory.mktemp("estimates")
    yield from tiny_stage(folder, _sqlite_template, valkey_server, rows=rows, estimate_seconds=0.5)


def test_the_next_job_is_what_it_would_have_been(real_stage: Stage) -> None:
    """On the warm base of one trainer: a job, an estimate of it, the same job once more."""
    stage = real_stage
    worker = stage.start_worker()
    options = {"base_model": "tiny", "steps": 6, "training": {"batch_size": 8}}
    first = stage.add_job(adapter_name="before", **options)
    assert stage.wait_end(first, seconds=120).status is JobStatus.SUCCEEDED
    trainer = stage.trainer_of(worker)
    row = stage.wait_estimate(
        stage.add_estimate(adapter_name="between", **options), E.SUCCEEDED, E.FAILED
    )
    assert (row.status, row.error) == (E.SUCCEEDED, None)
    second = stage.add_job(adapter_name="after", **options)
    assert stage.wait_end(second, seconds=120).status is JobStatus.SUCCEEDED
    assert stage.trainer_of(worker) == trainer
    assert stage.digest(second) == stage.digest(first)
    found, job = row.result, stage.job(second)
    assert found is not None
    assert job.resolved is not None
    assert found["fits"] is True
    assert found["resolved"] == job.resolved
    assert found["trainable_parameters"] == job.trainable_parameters
    assert found["total_steps"] == 6
    assert found["seconds"]["total"]["likely"] > 0
    assert found["device"] == "cpu"

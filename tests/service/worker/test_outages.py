"""Faults of database and storage while a job runs."""

import shutil

import pytest
import sqlalchemy as sa

from core.db import datasets
from core.db.engine import make_engine
from core.states import JobStatus
from tests.service.worker.conftest import BOTH
from tests.service.worker.stage import Stage, is_alive, locked_jobs, wait_until
from worker import recovery


@pytest.mark.parametrize("database_url", BOTH, indirect=True)
def test_a_database_away_for_less_than_the_lease_is_not_noticed(stage: Stage) -> None:
    stage.start_worker()
    # no checkpoint after the fifth step: one waits a second for its row
    job_id = stage.add_held_job(5, steps=9, checkpoint_every="5")
    stage.wait_held(5)
    with locked_jobs(stage):
        stage.open_gate(5)
        wait_until(
            lambda: stage.traced_steps() == list(range(1, 10)), what="steps go on", seconds=1
        )
    job = stage.wait_status(job_id, JobStatus.SUCCEEDED)
    assert job.attempt == 1


@pytest.mark.parametrize("database_url", BOTH, indirect=True)
def test_a_database_away_for_longer_than_the_lease_ends_the_attempt(stage: Stage) -> None:
    worker = stage.start_worker()
    job_id = stage.add_held_job(5)
    stage.wait_held(5)
    trainer = stage.trainer_of(worker)
    with locked_jobs(stage):
        # by its own clock, without asking anybody
        wait_until(lambda: not is_alive(trainer), what="the trainer is killed", seconds=5)
    stage.open_gate(5)
    job = stage.wait_end(job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2)
    assert stage.traced_steps() == list(range(1, 11))


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_lost_connections_are_made_again(stage: Stage) -> None:
    stage.start_worker()
    job_id = stage.add_held_job(5)
    stage.wait_held(5)
    engine = make_engine(stage.settings.database_url)
    with engine.begin() as connection:
        connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    engine.dispose()
    stage.open_gate(5)
    job = stage.wait_end(job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 1)


@pytest.fixture
def without_room(stage: Stage) -> Stage:
    """A stage whose checkpoints cannot be written: a file stands where their folder should be."""
    (stage.folder / "objects" / "checkpoints").write_text("in the way")
    return stage


def test_a_checkpoint_that_cannot_be_kept_does_not_end_the_job(without_room: Stage) -> None:
    stage = without_room
    stage.start_worker()
    job_id = stage.add_job(steps=3)
    assert stage.wait_status(job_id, JobStatus.SUCCEEDED).attempt == 1
    warnings = [event.message for event in stage.events(job_id) if event.level == "warning"]
    assert warnings
    assert all("could not be kept" in message for message in warnings)
    assert str(stage.folder) not in " ".join(warnings)


def test_an_adapter_that_cannot_be_stored_fails_the_job_clearly(stage: Stage) -> None:
    (stage.folder / "objects" / "deltas").write_text("in the way")
    stage.start_worker()
    job_id = stage.add_job(steps=3, max_attempts=1)
    job = stage.wait_status(job_id, JobStatus.FAILED)
    assert job.error is not None
    assert job.error["code"] == "storage_unavailable"
    assert stage.adapters() == []


def test_a_damaged_split_fails_the_job_at_once(stage: Stage) -> None:
    with stage.database.read() as session:
        dataset = datasets.get(session, stage.tenant_id, stage.dataset_id)
    key = dataset.splits["train"]["key"]
    stage.store.put_bytes(key, stage.store.get_bytes(key)[:-9])
    stage.start_worker()
    job = stage.wait_status(stage.add_job(steps=3), JobStatus.FAILED)
    assert job.error is not None
    assert (job.error["code"], job.attempt) == ("dataset_damaged", 1)


def test_a_damaged_checkpoint_is_passed_over(stage: Stage) -> None:
    worker = stage.start_worker()
    job_id = stage.add_held_job(5)
    stage.wait_held(5)
    # Rows are written behind the training: the file of step 5 may be there before its row is.
    wait_until(
        lambda: [row.step for row in stage.checkpoints()][:1] == [5], what="checkpoint of step 5"
    )
    newest = stage.checkpoints()[0]
    stage.store.put_bytes(newest.key, b"torn")
    trainers = worker.children()
    worker.process.kill()
    # The trainer dies with its worker, but a moment later: it must not pass the gate before.
    wait_until(lambda: not any(map(is_alive, trainers)), what="the trainer dies with its worker")
    stage.open_gate(5)
    stage.start_worker()
    job = stage.wait_end(job_id)
    assert (job.status, job.attempt) == (JobStatus.SUCCEEDED, 2)
    assert stage.traced_steps() == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9, 10]


def test_storage_that_is_away_for_a_while_costs_no_steps(stage: Stage) -> None:
    """The next attempts wait for it, and it goes on from the checkpoint."""
    worker = stage.start_worker()
    job_id = stage.add_held_job(5)
    stage.wait_held(5)
    wait_until(
        lambda: [row.step for row in stage.checkpoints()][:1] == [5], what="checkpoint of step 5"
    )
    trainers = worker.children()
    worker.process.kill()
    wait_until(lambda: not any(map(is_alive, trainers)), what="the trainer dies with its worker")
    kept = stage.folder / "objects" / "checkpoints"
    kept.rename(kept.with_name("away"))
    kept.touch()  # a file where a folder is expected
    stage.open_gate(5)
    for _ in range(20):  # copies, as of a job that has waited behind a long one
        assert stage.queue.send_training(job_id)
    stage.start_worker()

    def has_second_attempt() -> bool:
        recovery.sweep(stage.database, stage.queue, stage.settings)
        return stage.job(job_id).attempt == 2

    wait_until(has_second_attempt, what="the second attempt begins")
    assert stage.wait_status(job_id, JobStatus.QUEUED).reason == "storage_unavailable"
    kept.unlink()
    kept.with_name("away").rename(kept)
    job = stage.wait_end(job_id)
    assert job.status is JobStatus.SUCCEEDED
    assert job.attempt in {3, 4}  # one more where this test was slow to bring the folder back
    assert stage.traced_steps() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


def test_a_data_set_that_is_gone_from_storage_fails_the_job_clearly(stage: Stage) -> None:
    shutil.rmtree(stage.folder / "objects" / "datasets")
    stage.start_worker()
    job = stage.wait_status(stage.add_job(), JobStatus.FAILED)
    assert job.error is not None
    assert (job.error["code"], job.attempt) == ("dataset_damaged", 1)

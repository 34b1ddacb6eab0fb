"""Faults of processes: whatever dies, the job ends once, with the delta of an undisturbed run."""

import os
import signal

import pytest

from core.db import jobs
from core.states import JobStatus
from tests.service.worker.conftest import BOTH
from tests.service.worker.stage import LETTERS, Stage, is_alive, kill, wait_until
from tests.service.worker.twin import train_undisturbed
from worker import checkpoints as worker_checkpoints
from worker.checkpoints import delete_abandoned


@pytest.fixture
def undisturbed(stage: Stage) -> str:
    """Digest of a run that nothing disturbs, beside a worker that stands ready to be disturbed."""
    stage.start_worker()
    return train_undisturbed(stage.settings, stage.spec(), LETTERS)


def assert_ended_like(stage: Stage, job_id: str, digest: str, *, attempt: int) -> None:
    job = stage.wait_end(job_id)
    assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
    assert job.attempt == attempt
    assert stage.digest(job_id) == digest
    assert len([each for each in stage.adapters() if each.job_id == job_id]) == 1
    wait_until(
        lambda: not stage.checkpoints() and not list(stage.store.list(f"checkpoints/{job_id}")),
        what="checkpoints are deleted at the end",
    )


@pytest.mark.parametrize("database_url", BOTH, indirect=True)
def test_a_trainer_killed_at_any_step_goes_on_from_its_checkpoint(
    stage: Stage, undisturbed: str
) -> None:
    for step, every, again in ((1, 1, []), (5, 1, []), (6, 4, [5, 6])):
        job_id = stage.add_held_job(step, checkpoint_every=str(every))
        stage.wait_traced(step)
        stage.wait_held(step // every * every)
        kill(stage.trainer_of(stage.workers[0]))
        stage.open_gate(step)
        assert_ended_like(stage, job_id, undisturbed, attempt=2)
        rest = [*again, *range(step + 1, 11)]
        assert stage.traced_steps() == [*range(1, step + 1), *rest]
        stage.forget_steps()


def test_a_killed_trainer_is_replaced_at_once(stage: Stage, undisturbed: str) -> None:
    job_id = stage.add_held_job(5)
    stage.wait_held(5)
    before = stage.trainer_of(stage.workers[0])
    kill(before)
    stage.open_gate(5)
    job = stage.wait_status(job_id, JobStatus.SUCCEEDED)  # no sweep: the supervisor re-sends
    assert job.attempt == 2
    assert stage.trainer_of(stage.workers[0]) != before


@pytest.mark.parametrize("database_url", BOTH, indirect=True)
def test_a_killed_worker_takes_its_trainer_along_and_another_goes_on(
    stage: Stage, undisturbed: str
) -> None:
    job_id = stage.add_held_job(5)
    stage.wait_held(5)
    worker = stage.workers[0]
    trainer = stage.trainer_of(worker)
    assert worker.stop_with(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: not is_alive(trainer), what="the trainer dies with its worker", seconds=2)
    stage.open_gate(5)
    stage.start_worker()
    assert_ended_like(stage, job_id, undisturbed, attempt=2)
    assert stage.traced_steps() == list(range(1, 11))


@pytest.mark.parametrize("database_url", BOTH, indirect=True)
def test_a_drained_worker_hands_its_job_over_at_once(stage: Stage, undisturbed: str) -> None:
    job_id = stage.add_held_job(5, checkpoint_every="100")
    stage.wait_traced(5)
    second = stage.start_worker()
    wait_until(second.children, what="the second worker's trainer")
    assert stage.workers[0].stop_with(signal.SIGTERM, seconds=10) == 0
    stage.open_gate(5)
    job = stage.wait_status(job_id, JobStatus.SUCCEEDED)  # no sweep: the drain re-sends
    assert job.max_attempts == 6  # a deployment costs the job no attempt
    assert_ended_like(stage, job_id, undisturbed, attempt=2)
    assert stage.traced_steps() == list(range(1, 11))


def test_a_running_job_is_cancelled_within_two_seconds(stage: Stage) -> None:
    stage.start_worker()
    job_id = stage.add_held_job(5)
    stage.wait_held(5)
    trainer = stage.trainer_of(stage.workers[0])
    stage.cancel(job_id)
    stage.wait_status(job_id, JobStatus.CANCELLED, seconds=2)
    assert stage.trainer_of(stage.workers[0]) == trainer  # the base stays warm
    assert stage.adapters() == []
    wait_until(lambda: not stage.checkpoints(), what="checkpoints are deleted")


def test_a_paused_job_rests_and_goes_on_where_it_stood(stage: Stage, undisturbed: str) -> None:
    job_id = stage.add_held_job(5, checkpoint_every="100")
    stage.wait_traced(5)
    with stage.database.write() as session:
        jobs.request_pause(session, stage.tenant_id, job_id)
    stage.wait_status(job_id, JobStatus.PAUSED)
    stage.open_gate(5)
    with stage.database.write() as session:
        jobs.resume(session, stage.tenant_id, job_id)
    assert stage.queue.send_training(job_id)
    assert_ended_like(stage, job_id, undisturbed, attempt=2)
    assert stage.traced_steps() == list(range(1, 11))


def test_a_job_that_is_cancelled_while_it_rests_leaves_no_checkpoints(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage.start_worker()
    job_id = stage.add_held_job(5, checkpoint_every="100")
    stage.wait_traced(5)
    with stage.database.write() as session:
        jobs.request_pause(session, stage.tenant_id, job_id)
    stage.wait_status(job_id, JobStatus.PAUSED)
    assert stage.checkpoints()
    delete_abandoned(stage.database, stage.store)
    stage.cancel(job_id)
    delete_abandoned(stage.database, stage.store)
    assert stage.checkpoints(), "its worker may still be about to delete them"
    monkeypatch.setattr(worker_checkpoints, "_ABANDONED_SECONDS", -1.0)
    delete_abandoned(stage.database, stage.store)
    assert not stage.checkpoints()
    assert not list(stage.store.list(f"checkpoints/{job_id}"))


def test_a_cancelled_job_that_does_not_listen_is_killed(stage: Stage) -> None:
    stage.start_worker()
    job_id = stage.add_job(hang_at="3", trace=str(stage.trace))
    wait_until(lambda: stage.traced_steps() == [1, 2], what="step 2")
    stage.cancel(job_id)
    assert stage.wait_status(job_id, JobStatus.CANCELLED).error is None


@pytest.mark.parametrize("database_url", BOTH, indirect=True)
def test_a_worker_stopped_for_longer_than_its_lease_is_fenced(
    stage: Stage, undisturbed: str
) -> None:
    job_id = stage.add_held_job(5)
    stage.wait_held(5)
    stopped = stage.workers[0]
    trainer = stage.trainer_of(stopped)
    for pid in (stopped.pid, trainer):
        os.kill(pid, signal.SIGSTOP)
    stage.start_worker()
    stage.wait_running_sweeping(job_id, attempt=2)
    # the trainer first: a worker that wakes kills it at once
    for pid in (trainer, stopped.pid):
        os.kill(pid, signal.SIGCONT)
    # its trainer hears it from the database or is killed, whichever comes first
    wait_until(lambda: "Outcome.FENCED" in stage.logs(), what="the first attempt is fenced")
    stage.open_gate(5)
    assert_ended_like(stage, job_id, undisturbed, attempt=2)
    assert stage.traced_steps() == list(range(1, 11))
    assert {event.attempt for event in stage.events(job_id)[-3:]} == {2}


def test_a_trainer_that_hangs_is_replaced_and_the_job_goes_on(
    stage: Stage, undisturbed: str
) -> None:
    job_id = stage.add_held_job(5)
    stage.wait_held(5)
    trainer = stage.trainer_of(stage.workers[0])
    os.kill(trainer, signal.SIGSTOP)
    wait_until(lambda: not is_alive(trainer), what="the silent trainer is killed")
    stage.open_gate(5)
    assert_ended_like(stage, job_id, undisturbed, attempt=2)


def test_a_second_message_trains_nothing_twice(stage: Stage, undisturbed: str) -> None:
    stage.start_worker()
    job_id = stage.add_held_job(5)
    stage.wait_held(5)
    for _ in range(3):
        assert stage.queue.send_training(job_id)
    marker = stage.add_job(steps=1, adapter_name="marker")  # behind the copies in the queue
    stage.wait_status(marker, JobStatus.SUCCEEDED)
    stage.open_gate(5)
    assert_ended_like(stage, job_id, undisturbed, attempt=1)
    assert stage.queue.send_training(job_id)
    after = stage.add_job(steps=1, adapter_name="marker")
    stage.wait_status(after, JobStatus.SUCCEEDED)
    assert stage.traced_steps() == list(range(1, 11))
    assert stage.job(job_id).attempt == 1


def test_a_job_that_always_crashes_fails_and_a_retry_goes_on_from_there(stage: Stage) -> None:
    stage.start_worker()
    job_id = stage.add_job(
        crash_at="3", max_attempts=3, trace=str(stage.trace), gates=str(stage.folder)
    )
    job = stage.wait_status(job_id, JobStatus.FAILED)
    assert job.attempt == 3
    assert job.error is not None
    assert job.error["code"] == "trainer_killed"
    assert "memory" in job.error["message"]
    assert stage.traced_steps() == [1, 2]  # from the checkpoint, every time
    other = stage.add_job(steps=2)
    assert stage.wait_end(other).status is JobStatus.SUCCEEDED

    stage.open_gate("mended")
    with stage.database.write() as session:
        jobs.retry(session, stage.tenant_id, job_id, attempts=1)
    assert stage.queue.send_training(job_id)
    job = stage.wait_status(job_id, JobStatus.SUCCEEDED, JobStatus.FAILED)
    assert (job.status, job.error, job.attempt) == (JobStatus.SUCCEEDED, None, 4)
    assert stage.traced_steps() == list(range(1, 11))


def test_a_job_whose_worker_is_lost_every_time_is_given_up(stage: Stage) -> None:
    job_id = stage.add_held_job(2, max_attempts=2)
    for attempt in (1, 2):
        worker = stage.start_worker()
        stage.wait_running_sweeping(job_id, attempt=attempt)
        worker.stop_with(signal.SIGKILL)
    job = stage.wait_end(job_id)
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert job.error["code"] == "too_many_attempts"


def test_errors_of_the_training_reach_the_owner(stage: Stage) -> None:
    stage.start_worker()
    expected = {
        "engine": ("loss_not_finite", 1),
        "memory": ("out_of_memory", 2),
        "bug": ("internal_error", 2),
    }
    for kind, (code, attempts) in expected.items():
        job_id = stage.add_job(raise_at=f"3:{kind}", max_attempts=2)
        job = stage.wait_status(job_id, JobStatus.FAILED)
        assert job.error is not None
        assert (job.error["code"], job.attempt) == (code, attempts)
        story = " ".join(f"{event.message} {event.data}" for event in stage.events(job_id))
        told = f"{job.error} {story}"
        assert "/secret" not in told
        assert "Traceback" not in told
    assert "a fault in /secret/path of ours" in stage.logs()


def test_a_delta_that_would_answer_otherwise_is_not_published(stage: Stage) -> None:
    stage.start_worker()
    job = stage.wait_status(stage.add_job(certify="fails"), JobStatus.FAILED)
    assert job.error is not None
    assert (job.error["code"], job.attempt) == ("certificate_failed", 1)
    assert "row 3 differs" in job.error["message"]
    assert stage.adapters() == []
    sound = stage.wait_end(stage.add_job())
    assert sound.certificate == {"passed": True, "rows": 0}
    assert [adapter.certificate for adapter in stage.adapters()] == [sound.certificate]


def test_jobs_in_a_row_use_one_warm_trainer(stage: Stage) -> None:
    stage.start_worker()
    ids = [stage.add_job(steps=3, trace=str(stage.trace)) for _ in range(3)]
    assert {stage.wait_end(job_id).status for job_id in ids} == {JobStatus.SUCCEEDED}
    pids = {line.split()[0] for line in stage.trace.read_text().splitlines()}
    assert len(pids) == 1
    assert sorted(each.version for each in stage.adapters()) == [1, 2, 3]


def test_a_worker_with_two_slots_trains_two_jobs_at_a_time(stage: Stage) -> None:
    worker = stage.start_worker(concurrency=2)
    ids = [stage.add_held_job(2, adapter_name=name) for name in ("one", "two")]
    wait_until(lambda: sorted(stage.traced_steps()) == [1, 1, 2, 2], what="both are held")
    assert len(worker.children()) == 2
    stage.open_gate(2)
    assert {stage.wait_end(job_id).status for job_id in ids} == {JobStatus.SUCCEEDED}

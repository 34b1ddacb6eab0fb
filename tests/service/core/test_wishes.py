"""What users wish of jobs, in every state."""

import pytest

from core.db import datasets, jobs
from core.errors import Conflict, InvalidTransition, NotFound
from core.states import ACTIVE, TERMINAL, WAITS_FOR_START, DatasetStatus, JobStatus
from tests.service.core.world import World, at_once, make_world

S = JobStatus


def _job_in(world: World, status: JobStatus) -> str:
    """Bring a job into a state on the way that the service would."""
    if status in {S.QUEUED, S.VALIDATING_FILES, S.PAUSED}:
        return world.job(status=status).id
    job_id = world.job().id
    world.claim(job_id)
    if status in {S.CANCELLING, S.CANCELLED}:
        world.cancel(job_id)
    if status is S.PAUSING:
        world.pause(job_id)
    if status in TERMINAL:
        assert world.finish(job_id, 1, status)
    return job_id


CANCELLED_AS = {
    S.VALIDATING_FILES: S.CANCELLED,
    S.QUEUED: S.CANCELLED,
    S.PAUSED: S.CANCELLED,
    S.RUNNING: S.CANCELLING,
    S.PAUSING: S.CANCELLING,
    S.CANCELLING: S.CANCELLING,
}


@pytest.mark.parametrize("status", S)
def test_cancel(world: World, status: JobStatus) -> None:
    job_id = _job_in(world, status)
    if status in TERMINAL:
        with pytest.raises(Conflict, match=f"it is {status}") as caught:
            world.cancel(job_id)
        assert caught.value.code == "job_finished"
        assert world.get(job_id).status is status
        return
    job = world.cancel(job_id)
    assert job.status is CANCELLED_AS[status]
    if job.status is S.CANCELLED:
        assert job.finished_at is not None
        assert world.claim(job_id) is None
        assert world.ends(job_id) == ["complete"]
        return
    beat = world.beat(job_id, 1)
    assert beat == jobs.Beat("cancel", S.CANCELLING)
    assert world.cancel(job_id).status is S.CANCELLING
    assert world.story(job_id).count("cancelling") == 1
    assert world.finish(job_id, 1, S.CANCELLED)
    assert world.get(job_id).control is None


def test_a_job_that_was_over_before_it_read_the_wish_succeeds(world: World) -> None:
    job_id = _job_in(world, S.CANCELLING)
    assert world.finish(job_id, 1, S.SUCCEEDED)
    assert world.get(job_id).status is S.SUCCEEDED


def test_a_cancelled_job_that_is_drained_is_cancelled(world: World) -> None:
    job_id = _job_in(world, S.CANCELLING)
    with world.database.write() as session:
        assert jobs.release(session, job_id, 1, reason="drain")
    assert world.get(job_id).status is S.CANCELLED


def test_a_claim_and_a_cancel_at_once_never_lose_the_wish(world: World) -> None:
    for _ in range(10):
        job_id = world.job().id
        attempt, _job = at_once(lambda act, id=job_id: act(id), [world.claim, world.cancel])
        status = world.get(job_id).status
        assert status is (S.CANCELLED if attempt is None else S.CANCELLING)


@pytest.mark.parametrize("status", S)
def test_pause(world: World, status: JobStatus) -> None:
    job_id = _job_in(world, status)
    if status in TERMINAL | {S.CANCELLING, S.VALIDATING_FILES}:
        with pytest.raises(Conflict):
            world.pause(job_id)
        assert world.get(job_id).status is status
        return
    job = world.pause(job_id)
    assert job.status is (S.PAUSING if status in ACTIVE else S.PAUSED)
    if job.status is S.PAUSING:
        assert world.beat(job_id, 1) == jobs.Beat("pause", S.PAUSING)
        with world.database.read() as session:
            assert jobs.read_wish(session, job_id, 1) == "pause"
            assert jobs.read_wish(session, job_id, 2) is None
        assert world.finish(job_id, 1, S.PAUSED)
    paused = world.get(job_id)
    assert (paused.status, paused.control, paused.finished_at) == (S.PAUSED, None, None)
    assert paused.phase is None
    assert world.claim(job_id) is None


@pytest.mark.parametrize("status", S)
def test_resume(world: World, status: JobStatus) -> None:
    job_id = _job_in(world, status)
    with world.database.write() as session:
        if status in {S.PAUSED, S.QUEUED, S.RUNNING}:
            job = jobs.resume(session, world.tenant_id, job_id)
            assert job.status is (S.RUNNING if status is S.RUNNING else S.QUEUED)
        else:
            with pytest.raises(Conflict):
                jobs.resume(session, world.tenant_id, job_id)


def test_only_a_job_that_was_never_started_is_started(world: World) -> None:
    ended = {job_id: world.get(job_id) for job_id in (_job_in(world, status) for status in S)}
    held = world.job(status=S.PAUSED, reason=WAITS_FOR_START)
    assert world.pause(held.id).reason == WAITS_FOR_START
    assert held.id not in world.sweep(0.0)
    assert world.claim(held.id) is None
    for job_id, before in ended.items():
        with world.database.write() as session:
            if before.status in {S.QUEUED, S.RUNNING}:
                assert jobs.start(session, world.tenant_id, job_id).status is before.status
            else:
                with pytest.raises(Conflict):
                    jobs.start(session, world.tenant_id, job_id)
        assert world.get(job_id).status is before.status
    with world.database.write() as session:
        started = jobs.start(session, world.tenant_id, held.id)
    assert (started.status, started.reason) == (S.QUEUED, None)
    assert world.pause(held.id).reason == "user"
    with world.database.write() as session, pytest.raises(InvalidTransition, match="resume"):
        jobs.start(session, world.tenant_id, held.id)


def test_pausing_and_resuming_costs_no_attempt(world: World) -> None:
    job_id = world.job(max_attempts=1).id
    for attempt in (1, 2, 3):
        assert world.claim(job_id) == attempt
        world.pause(job_id)
        assert world.finish(job_id, attempt, S.PAUSED)
        with world.database.write() as session:
            jobs.resume(session, world.tenant_id, job_id)
    assert world.claim(job_id) == 4


@pytest.mark.parametrize("status", S)
def test_retry(world: World, status: JobStatus) -> None:
    job_id = _job_in(world, status)
    with world.database.write() as session:
        if status is not S.FAILED:
            with pytest.raises(InvalidTransition):
                jobs.retry(session, world.tenant_id, job_id, attempts=2)
            return
        job = jobs.retry(session, world.tenant_id, job_id, attempts=2)
        assert (job.status, job.error, job.finished_at) == (S.QUEUED, None, None)
        assert job.max_attempts == 3
    assert world.claim(job_id) == 2


def test_no_tenant_touches_another_s_job(world: World) -> None:
    other = make_world(world.database)
    job_id = world.job().id
    for act in (other.get, other.cancel, other.pause):
        with pytest.raises(NotFound) as caught:
            act(job_id)
        assert caught.value.code == "job_not_found"
    with world.database.write() as session:
        for act in (jobs.resume, jobs.start, jobs.queue_position):
            with pytest.raises(NotFound):
                act(session, other.tenant_id, job_id)
        with pytest.raises(NotFound):
            jobs.retry(session, other.tenant_id, job_id, attempts=1)
        assert jobs.list_page(session, other.tenant_id).items == []
    assert world.get(job_id).status is S.QUEUED


@pytest.mark.parametrize("outcome", [DatasetStatus.READY, DatasetStatus.INVALID])
def test_jobs_that_wait_for_a_data_set_follow_its_outcome(
    world: World, outcome: DatasetStatus
) -> None:
    with world.database.write() as session:
        dataset = datasets.create(
            session, tenant_id=world.tenant_id, name="x", status=DatasetStatus.VALIDATING
        )
    waiting = {"status": S.VALIDATING_FILES, "dataset_id": dataset.id}
    starts = world.job(**waiting)
    held = world.job(**waiting, spec={"auto_start": False})
    cancelled = world.job(**waiting)
    other = world.job(status=S.VALIDATING_FILES)
    says_it = world.job(**waiting, task="regression", spec={"task": "regression"})
    world.cancel(cancelled.id)
    is_ready = outcome is DatasetStatus.READY
    error = (
        None if is_ready else {"code": "dataset_invalid", "message": "3 problems", "param": None}
    )
    with world.database.write() as session:
        assert datasets.finish_validation(
            session, dataset.id, status=outcome, rows=7, task="text-classification"
        )
        assert not datasets.finish_validation(session, dataset.id, status=DatasetStatus.READY)
        sent = jobs.release_waiting(session, dataset.id, error=error)
    assert sent == ([starts.id, says_it.id] if is_ready else [])
    for job in map(world.get, (starts.id, held.id)):
        assert job.task == job.spec["task"] == "text-classification"
    assert world.get(says_it.id).spec["task"] == "regression"
    assert world.get(starts.id).status is (S.QUEUED if is_ready else S.FAILED)
    assert world.get(held.id).status is (S.PAUSED if is_ready else S.FAILED)
    assert world.get(held.id).reason == (WAITS_FOR_START if is_ready else None)
    assert world.get(cancelled.id).status is S.CANCELLED
    assert world.get(other.id).status is S.VALIDATING_FILES
    assert world.get(starts.id).error == error

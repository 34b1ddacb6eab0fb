"""Who may write to a job: claims, fences, leases."""

from typing import Any

import pytest

from core.db import jobs
from core.states import JobStatus, Phase
from tests.service.core.world import EXPIRED, World, at_once

S = JobStatus


def test_a_claim_makes_a_queued_job_run(world: World) -> None:
    job = world.job()
    assert world.claim(job.id) == 1
    running = world.get(job.id)
    assert (running.status, running.phase, running.attempt) == (S.RUNNING, Phase.LOADING, 1)
    assert running.owner == "worker"
    assert running.started_at is not None
    assert running.lease_until is not None
    assert running.lease_until > running.started_at
    assert world.story(job.id) == ["queued", "running"]


def test_of_many_that_claim_at_once_one_gets_each_job(world: World) -> None:
    ids = [world.job().id for _ in range(12)]
    claims = at_once(lambda _: [world.claim(job_id) for job_id in ids], list(range(8)))
    for column in zip(*claims, strict=True):
        assert sorted(column, key=str) == [1, *[None] * 7]
    assert all(world.get(job_id).attempt == 1 for job_id in ids)
    assert all(world.story(job_id) == ["queued", "running"] for job_id in ids)


def test_a_claim_of_nothing_is_nothing(world: World) -> None:
    assert world.claim("job_unknown") is None


@pytest.mark.parametrize("status", [s for s in S if s is not S.QUEUED])
def test_only_a_queued_job_can_be_claimed(world: World, status: JobStatus) -> None:
    job = world.job()
    world.put(job.id, status=status)
    assert world.claim(job.id) is None
    assert world.get(job.id).status is status


def test_an_expired_lease_can_be_claimed_by_another(world: World) -> None:
    job = world.job()
    assert world.claim(job.id, EXPIRED) == 1
    assert world.claim(job.id) == 2
    assert world.claim(job.id) is None
    first, second = world.beat(job.id, 1), world.beat(job.id, 2)
    assert first is None
    assert second == jobs.Beat(None, S.RUNNING)


def test_of_many_that_claim_an_expired_job_one_gets_it(world: World) -> None:
    job = world.job()
    world.claim(job.id, EXPIRED)
    claims = at_once(lambda _: world.claim(job.id), list(range(8)))
    assert sorted(claims, key=str) == [2, *[None] * 7]


def test_a_heartbeat_keeps_a_lease_alive(world: World) -> None:
    job = world.job()
    world.claim(job.id, EXPIRED)
    assert world.beat(job.id, 1) is not None
    assert world.claim(job.id) is None
    assert world.sweep() == []


def _writes(world: World, job_id: str, attempt: int) -> dict[str, Any]:
    with world.database.write() as session:
        return {
            "hold": jobs.hold(session, job_id, attempt),
            "beat": jobs.beat(session, job_id, attempt, lease_seconds=30) is not None,
            "update": jobs.update_fenced(session, job_id, attempt, progress={"by": attempt}),
            "finish": jobs.finish(session, job_id, attempt, S.FAILED, error={"code": "x"}),
        }


@pytest.mark.parametrize("lost_to", ["another", "queue", "end", "nobody"])
def test_every_write_of_a_lost_attempt_changes_nothing(world: World, lost_to: str) -> None:
    job = world.job()
    world.claim(job.id, EXPIRED)
    attempt = 1
    if lost_to == "another":
        assert world.claim(job.id) == 2
    elif lost_to == "queue":
        assert world.sweep() == [job.id]
    elif lost_to == "end":
        assert world.finish(job.id, 1, S.SUCCEEDED)
    else:
        attempt = 7
    before = world.get(job.id)
    assert not any(_writes(world, job.id, attempt).values())
    with world.database.write() as session:
        assert not jobs.release(session, job.id, attempt, reason="drain")
    after = world.get(job.id)
    assert (after.status, after.attempt, after.progress) == (before.status, before.attempt, None)
    assert after.updated_at == before.updated_at


def test_the_present_attempt_writes(world: World) -> None:
    job = world.job()
    world.claim(job.id)
    assert all(_writes(world, job.id, 1).values())
    assert world.get(job.id).progress == {"by": 1}


def test_the_first_step_is_noted_once(world: World) -> None:
    job = world.job()
    world.claim(job.id)
    for _ in range(2):
        with world.database.write() as session:
            jobs.update_fenced(session, job.id, 1, first_step_at=True, phase=Phase.TRAINING)
    first = world.get(job.id).first_step_at
    assert first is not None
    with world.database.write() as session:
        jobs.update_fenced(session, job.id, 1, first_step_at=True)
    assert world.get(job.id).first_step_at == first


@pytest.mark.parametrize("column", ["status", "attempt", "owner", "lease_until", "control", "nope"])
def test_an_attempt_cannot_write_what_fences_it(world: World, column: str) -> None:
    job = world.job()
    world.claim(job.id)
    with pytest.raises(TypeError, match=column), world.database.write() as session:
        jobs.update_fenced(session, job.id, 1, **{column: "x"})


@pytest.mark.parametrize("end", [S.SUCCEEDED, S.FAILED])
def test_a_running_job_ends_once(world: World, end: JobStatus) -> None:
    job = world.job()
    world.claim(job.id)
    assert world.finish(job.id, 1, end, metrics={"test": {"after": 0.9}})
    assert not world.finish(job.id, 1, end)
    done = world.get(job.id)
    assert (done.status, done.owner, done.lease_until) == (end, None, None)
    assert done.finished_at is not None
    assert done.metrics == {"test": {"after": 0.9}}
    assert world.claim(job.id) is None
    assert world.ends(job.id) == ["error" if end is S.FAILED else "complete"]


@pytest.mark.parametrize("status", [S.CANCELLED, S.PAUSED])
def test_nobody_ends_a_job_as_its_owner_did_not_wish(world: World, status: JobStatus) -> None:
    job = world.job()
    world.claim(job.id)
    assert not world.finish(job.id, 1, status)
    assert world.get(job.id).status is S.RUNNING


@pytest.mark.parametrize(
    "status", [S.QUEUED, S.RUNNING, S.CANCELLING, S.PAUSING, S.VALIDATING_FILES]
)
def test_only_ends_end_an_attempt(world: World, status: JobStatus) -> None:
    job = world.job()
    world.claim(job.id)
    with pytest.raises(ValueError, match="does not end an attempt"):
        world.finish(job.id, 1, status)


@pytest.mark.parametrize("counted", [False, True])
def test_a_drained_job_is_queued_and_only_a_crash_costs_an_attempt(
    world: World, counted: bool
) -> None:
    job = world.job(max_attempts=2)
    for attempt in (1, 2, 3):
        if world.claim(job.id) is None:
            break
        with world.database.write() as session:
            assert jobs.release(session, job.id, attempt, reason="drain", counted=counted)
        assert world.get(job.id).status is S.QUEUED
    end = world.get(job.id)
    if counted:
        assert (end.status, end.attempt) == (S.FAILED, 2)
    else:
        assert (end.status, end.attempt, end.reason) == (S.QUEUED, 3, "drain")


def test_a_job_that_met_an_outage_is_held_back_from_every_copy_of_its_message(
    world: World,
) -> None:
    """Copies are sent while it waits in a long queue, and each would cost an attempt at once."""
    job, other = world.job(), world.job()
    world.claim(job.id)
    with world.database.write() as session:
        assert jobs.release(session, job.id, 1, reason="away", counted=True, wait_seconds=60)
    assert world.claim(job.id) is None
    assert world.sweep(resend_after_seconds=0) == [other.id]
    assert (world.get(job.id).status, world.get(job.id).attempt) == (S.QUEUED, 1)
    world.put(job.id, not_before=world.get(job.id).created_at)
    assert world.sweep() == [job.id]
    assert world.sweep() == []
    assert world.claim(job.id) == 2


def test_a_job_that_is_held_back_and_resumed_by_its_owner_goes_at_once(world: World) -> None:
    job = world.job()
    world.claim(job.id)
    with world.database.write() as session:
        assert jobs.release(session, job.id, 1, reason="away", counted=True, wait_seconds=60)
    world.pause(job.id)
    with world.database.write() as session:
        jobs.resume(session, world.tenant_id, job.id)
    assert world.claim(job.id) == 2


def test_a_job_that_is_held_back_keeps_no_other_from_training_beside(world: World) -> None:
    own, held, free = world.job(), world.job(), world.job()
    world.claim(own.id)
    world.claim(held.id)
    with world.database.write() as session:
        assert jobs.release(session, held.id, 1, reason="away", counted=True, wait_seconds=60)
        assert jobs.find_beside(session, own.id) == free.id


def test_a_job_whose_worker_is_lost_too_often_is_given_up(world: World) -> None:
    job = world.job(max_attempts=3)
    for attempt in (1, 2, 3):
        assert world.claim(job.id, EXPIRED) == attempt
    assert world.claim(job.id) is None
    failed = world.get(job.id)
    assert failed.status is S.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "too_many_attempts"
    assert failed.finished_at is not None
    assert world.story(job.id) == ["queued", "running", "running", "running", "failed"]
    assert world.ends(job.id) == ["error"]


def test_a_claim_that_is_rolled_back_never_was(world: World) -> None:
    job = world.job()

    def claim_and_break() -> None:
        with world.database.write() as session:
            jobs.claim(session, job.id, owner="w", lease_seconds=30)
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        claim_and_break()
    assert (world.get(job.id).status, world.get(job.id).attempt) == (S.QUEUED, 0)
    assert world.story(job.id) == ["queued"]


def test_the_next_of_the_queue_may_join_if_it_fits(world: World) -> None:
    def beside(job_id: str) -> str | None:
        with world.database.read() as session:
            return jobs.find_beside(session, job_id)

    fp32, bf16 = ({"training": {"precision": each}} for each in ("fp32", "bf16"))
    host = world.job(spec=fp32)
    world.claim(host.id)
    assert beside(host.id) is None
    first, second = world.job(spec=fp32), world.job(spec=bf16)
    third, fourth = world.job(spec=fp32), world.job(spec=fp32, base_model="other")
    assert beside(host.id) == first.id
    for taken, following in ((first, None), (second, third.id), (third, None)):
        world.claim(taken.id)
        assert beside(host.id) == following  # nobody of another precision or base is overtaken
    world.claim(fourth.id)
    tried = world.job(spec=fp32)
    world.put(tried.id, attempt=1)
    assert beside(host.id) is None
    assert beside("job_unknown") is None


def test_a_job_of_several_devices_goes_by_itself(world: World) -> None:
    def beside(job_id: str) -> str | None:
        with world.database.read() as session:
            return jobs.find_beside(session, job_id)

    one, two = ({"training": {"devices": each}} for each in (1, 2))
    host, wide = world.job(spec=one), world.job(spec=two)
    world.claim(host.id)
    assert beside(host.id) is None
    world.claim(wide.id)
    another = world.job(spec=one)
    assert (beside(wide.id), beside(host.id)) == (None, another.id)

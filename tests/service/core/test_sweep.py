"""What is lost comes back."""

from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from core.db import datasets, jobs
from core.db.jobs import sweeping
from core.db.jobs.leases import give_up
from core.db.models import Job
from core.states import DatasetStatus, JobStatus
from tests.service.core.world import EXPIRED, World, at_once

S = JobStatus


def _ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def test_a_sweep_of_a_healthy_service_finds_nothing(world: World) -> None:
    world.job()
    running = world.job()
    world.claim(running.id)
    done = world.job()
    world.claim(done.id)
    world.finish(done.id, 1, S.SUCCEEDED)
    assert world.sweep() == []
    assert world.get(running.id).status is S.RUNNING


def test_a_lost_job_is_queued_again_and_given_out_once(world: World) -> None:
    job = world.job()
    world.claim(job.id, EXPIRED)
    sweeps = at_once(lambda _: world.sweep(), list(range(6)))
    assert sorted(sweeps) == [[]] * 5 + [[job.id]]
    queued = world.get(job.id)
    assert (queued.status, queued.reason, queued.owner) == (S.QUEUED, "worker_lost", None)
    assert queued.lease_until is None
    assert world.claim(job.id) == 2
    assert world.story(job.id) == ["queued", "running", "queued", "running"]


def test_many_lost_jobs_are_each_given_to_one_of_many_sweeps(world: World) -> None:
    ids = [world.job().id for _ in range(25)]
    for job_id in ids:
        world.claim(job_id, EXPIRED)
    sweeps = at_once(lambda _: world.sweep(), list(range(4)))
    assert sorted(job_id for found in sweeps for job_id in found) == ids
    assert all(world.story(job_id) == ["queued", "running", "queued"] for job_id in ids)


def test_wishes_of_a_lost_job_are_fulfilled(world: World) -> None:
    cancelling, pausing = world.job(), world.job()
    for job in (cancelling, pausing):
        world.claim(job.id, EXPIRED)
    world.cancel(cancelling.id)
    world.pause(pausing.id)
    assert world.sweep() == []
    assert world.get(cancelling.id).status is S.CANCELLED
    assert world.get(cancelling.id).finished_at is not None
    assert world.get(cancelling.id).control is None
    assert world.get(pausing.id).status is S.PAUSED
    assert world.get(pausing.id).finished_at is None
    assert world.ends(cancelling.id) == ["complete"]


def test_a_job_lost_too_often_fails_in_the_sweep(world: World) -> None:
    job = world.job(max_attempts=1)
    world.claim(job.id, EXPIRED)
    assert world.sweep() == []
    failed = world.get(job.id)
    assert failed.status is S.FAILED
    assert failed.error is not None
    assert failed.error["code"] == "too_many_attempts"


def test_a_last_lease_that_ends_in_the_middle_of_a_sweep_is_not_queued_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = world.job(max_attempts=1)
    world.claim(job.id)

    def give_up_and_let_time_pass(session: Session, *conditions: sa.ColumnElement[bool]) -> None:
        give_up(session, *conditions)
        session.execute(sa.update(Job).values(lease_until=_ago(1)))

    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "give_up", give_up_and_let_time_pass)
        assert world.sweep() == []
    assert world.get(job.id).status is S.RUNNING
    assert world.sweep() == []
    assert world.get(job.id).status is S.FAILED
    assert world.ends(job.id) == ["error"]


@pytest.mark.parametrize(
    ("sends", "seconds", "is_due"),
    [
        # ten seconds beside each limit: on a busy machine the test itself takes a while
        *((1, 10, False), (1, 30, True), (2, 30, False), (2, 50, True), (3, 70, False)),
        *((3, 90, True), (4, 150, False), (4, 170, True), (50, 150, False), (50, 170, True)),
    ],
)
def test_a_forgotten_job_is_sent_again_at_growing_intervals(
    world: World, sends: int, seconds: int, is_due: bool
) -> None:
    job = world.job()
    world.put(job.id, sends=sends, sent_at=_ago(seconds))
    assert world.sweep(resend_after_seconds=20) == ([job.id] if is_due else [])
    assert world.sweep(resend_after_seconds=20) == []
    assert world.get(job.id).sends == sends + is_due


def test_a_forgotten_job_is_given_to_one_of_many_sweeps(world: World) -> None:
    job = world.job()
    world.put(job.id, sent_at=_ago(1000))
    sweeps = at_once(lambda _: world.sweep(), list(range(6)))
    assert sorted(sweeps) == [[]] * 5 + [[job.id]]


def test_a_job_that_could_not_be_sent_is_due_at_once(world: World) -> None:
    job, running = world.job(), world.job()
    world.claim(running.id)
    with world.database.write() as session:
        jobs.mark_unsent(session, [job.id, running.id])
    assert world.sweep() == [job.id]
    assert world.get(running.id).sends == 1


def test_a_job_that_waits_for_something_else_is_not_sent(world: World) -> None:
    for status in (S.PAUSED, S.VALIDATING_FILES):
        world.put(world.job(status=status).id, sent_at=None)
    assert world.sweep() == []


def test_a_forgotten_validation_is_sent_again(world: World) -> None:
    with world.database.write() as session:
        rows = [
            datasets.create(session, tenant_id=world.tenant_id, name=name, status=status)
            for name, status in (
                ("lost", DatasetStatus.VALIDATING),
                ("done", DatasetStatus.READY),
                ("gone", DatasetStatus.VALIDATING),
            )
        ]
        datasets.mark_deleted(session, world.tenant_id, rows[2].id)
    with world.database.write() as session:
        assert datasets.sweep(session, resend_after_seconds=60) == []
        assert datasets.sweep(session, resend_after_seconds=-1) == [rows[0].id]
        datasets.touch(session, rows[0].id)
        assert datasets.sweep(session, resend_after_seconds=60) == []

"""Estimates in the database: given out once, fenced, taken back when lost."""

from typing import Any

import pytest
import sqlalchemy as sa

from core.db import estimates, jobs
from core.db.models import Estimate
from core.db.trials import JOB_PRIORITY
from core.errors import Conflict, NotFound, TooMany
from core.states import WAITS_FOR_START, EstimateStatus, JobStatus
from tests.service.core.world import EXPIRED, LEASE, World, at_once

E = EstimateStatus
SPEC = {"base_model": "minilm", "task": "text-classification"}


def make(world: World, **values: Any) -> str:
    with world.database.write() as session:
        row = estimates.create(
            session,
            tenant_id=world.tenant_id,
            dataset_id=world.dataset_id,
            spec=SPEC,
            **values,
        )
        return row.id


def read(world: World, estimate_id: str) -> Estimate:
    with world.database.read() as session:
        return estimates.get(session, world.tenant_id, estimate_id)


def claim(world: World, estimate_id: str, lease_seconds: float = LEASE) -> int | None:
    with world.database.write() as session:
        found = estimates.claim(session, estimate_id, owner="w", lease_seconds=lease_seconds)
    return None if found is None else found.attempt


def sweep(world: World) -> list[str]:
    with world.database.write() as session:
        return estimates.sweep(session, resend_after_seconds=60)


def finish(world: World, estimate_id: str, attempt: int, status: E, **values: Any) -> bool:
    with world.database.write() as session:
        return estimates.finish(session, estimate_id, attempt, status, **values)


def cancel(world: World, estimate_id: str) -> Estimate:
    with world.database.write() as session:
        return estimates.request_cancel(session, world.tenant_id, estimate_id)


def release(world: World, estimate_id: str, attempt: int) -> bool:
    with world.database.write() as session:
        return estimates.release(session, estimate_id, attempt, reason="drain", is_lost=False)


def test_it_is_claimed_by_one_of_many(world: World) -> None:
    name = make(world)
    claims = at_once(lambda _: claim(world, name), list(range(6)))
    assert sorted(claims, key=str) == [1, None, None, None, None, None]
    row = read(world, name)
    assert (row.status, row.attempt, row.owner) == (E.RUNNING, 1, "w")
    assert row.started_at is not None


def test_one_that_met_an_outage_is_held_back(world: World) -> None:
    name = make(world)
    claim(world, name)
    with world.database.write() as session:
        assert estimates.release(session, name, 1, reason="away", is_lost=True, wait_seconds=60)
    assert claim(world, name) is None
    assert sweep(world) == []
    with world.database.write() as session:
        earlier = sa.update(Estimate).values(not_before=Estimate.created_at)
        session.execute(earlier)
    assert sweep(world) == [name]
    assert claim(world, name) == 2


def test_its_result_is_kept_and_a_later_word_is_not(world: World) -> None:
    name = make(world)
    assert claim(world, name) == 1
    assert finish(world, name, 1, E.SUCCEEDED, result={"fits": True})
    assert not finish(world, name, 1, E.FAILED, error={"code": "late"})
    row = read(world, name)
    assert (row.status, row.result, row.error) == (E.SUCCEEDED, {"fits": True}, None)
    assert row.finished_at is not None
    assert row.lease_until is None
    with pytest.raises(ValueError, match="does not end"):
        finish(world, name, 1, E.QUEUED)


def test_a_lost_one_is_sent_once_more_and_then_fails(world: World) -> None:
    name = make(world)
    claim(world, name, EXPIRED)
    assert sorted(at_once(lambda _: sweep(world), list(range(4)))) == [[], [], [], [name]]
    assert (read(world, name).status, read(world, name).reason) == (E.QUEUED, "worker_lost")
    assert claim(world, name, EXPIRED) == 2
    assert not finish(world, name, 1, E.SUCCEEDED, result={"stale": True})
    assert sweep(world) == []
    row = read(world, name)
    assert row.status is E.FAILED
    assert row.error is not None
    assert row.error["code"] == "estimate_lost"


def test_a_drain_is_no_loss(world: World) -> None:
    name = make(world)
    for attempt in range(1, 4):
        assert claim(world, name) == attempt
        assert release(world, name, attempt)
    assert read(world, name).losses == 0


def test_a_beat_keeps_it_and_hears_the_wish(world: World) -> None:
    name = make(world)
    claim(world, name, EXPIRED)
    with world.database.write() as session:
        assert estimates.beat(session, name, 1, lease_seconds=LEASE)
        assert not estimates.beat(session, name, 2, lease_seconds=LEASE)
    assert sweep(world) == []
    assert cancel(world, name).status is E.RUNNING
    with world.database.read() as session:
        assert estimates.read_wish(session, name, 1) == "cancel"


def test_a_waiting_one_is_cancelled_at_once_and_a_lost_one_by_the_sweep(world: World) -> None:
    waiting, lost, over = make(world), make(world), make(world)
    assert cancel(world, waiting).status is E.CANCELLED
    assert claim(world, waiting) is None
    claim(world, lost, EXPIRED)
    cancel(world, lost)
    assert sweep(world) == []
    assert read(world, lost).status is E.CANCELLED
    claim(world, over)
    finish(world, over, 1, E.SUCCEEDED, result={})
    with pytest.raises(Conflict) as refused:
        cancel(world, over)
    assert refused.value.code == "estimate_finished"
    assert cancel(world, waiting).status is E.CANCELLED


def test_a_wish_to_cancel_survives_whoever_gives_the_estimate_back(world: World) -> None:
    name = make(world)
    claim(world, name)
    assert cancel(world, name).status is E.RUNNING
    # its worker shuts down, and has not heard of it
    assert release(world, name, 1)
    row = read(world, name)
    assert (row.status, row.control, row.reason) == (E.CANCELLED, None, None)
    assert row.lease_until is None
    assert row.finished_at is not None
    assert claim(world, name) is None


def test_a_wish_to_cancel_meets_whoever_gives_the_estimate_back(world: World) -> None:
    for _ in range(12):
        name = make(world)
        claim(world, name)
        at_once(
            lambda own, name=name: own(world, name),  # type: ignore[misc]
            [cancel, lambda own, name: release(own, name, 1)],
        )
        assert read(world, name).status is E.CANCELLED


def test_one_without_a_message_is_sent_by_the_sweep(world: World) -> None:
    name = make(world, is_sent=False)
    assert sweep(world) == [name]
    assert sweep(world) == []
    with world.database.write() as session:
        estimates.mark_unsent(session, [name])
    assert sweep(world) == [name]


def test_a_tenant_has_so_many_and_no_more(world: World) -> None:
    def one(_: int) -> str | None:
        try:
            return make(world)
        except TooMany:
            return None

    made = at_once(one, list(range(estimates.MOST_WAITING + 4)))
    kept = [name for name in made if name is not None]
    assert len(kept) == estimates.MOST_WAITING
    held = world.job(status=JobStatus.PAUSED, reason=WAITS_FOR_START)
    make(world, job_id=held.id)  # it comes with its job and is not counted
    with pytest.raises(TooMany) as refused:
        make(world)
    assert refused.value.code == "too_many_estimates"
    cancel(world, kept[0])
    assert one(0) is not None


def test_what_goes_before_it_is_counted(world: World) -> None:
    world.job()
    world.job(priority=JOB_PRIORITY)  # of a sweep: every estimate goes before it
    first, second = make(world), make(world)
    world.job()
    with world.database.read() as session:
        rows = [read(world, first), read(world, second)]
        assert estimates.queue_positions(session, rows) == {first: 1, second: 2}
    claim(world, first)
    with world.database.read() as session:
        rows = [read(world, first), read(world, second)]
        assert estimates.queue_positions(session, rows) == {second: 1}


def test_that_of_a_job_is_found_and_given_up(world: World) -> None:
    job = world.job(status=JobStatus.PAUSED, reason=WAITS_FOR_START)
    name = make(world, job_id=job.id)
    with world.database.read() as session:
        assert [row.id for row in estimates.find_of_jobs(session, [job.id]).values()] == [name]
        assert estimates.find_of_jobs(session, []) == {}
    with world.database.write() as session:
        estimates.cancel_of_job(session, job.id, reason="its job was started")
    row = read(world, name)
    assert (row.status, row.reason) == (E.CANCELLED, "its job was started")


def test_it_is_its_tenants_alone(world: World) -> None:
    name = make(world)
    with world.database.read() as session, pytest.raises(NotFound):
        estimates.get(session, "ten_other", name)


def test_a_held_job_is_measured_when_its_data_set_is_ready(world: World) -> None:
    job = world.job(
        status=JobStatus.VALIDATING_FILES, spec={**SPEC, "auto_start": False, "training": {}}
    )
    with world.database.write() as session:
        assert jobs.release_waiting(session, world.dataset_id) == []
    with world.database.read() as session:
        row = estimates.find_of_jobs(session, [job.id])[job.id]
    assert row.status is E.QUEUED
    assert sweep(world) == [row.id]

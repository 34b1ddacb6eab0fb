"""Whatever ends a job, its tenant's endpoints are told once, and of nothing else."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from core.db import Database, datasets, jobs, webhooks
from core.db.models import WebhookEndpoint
from core.errors import NotFound
from core.states import DatasetStatus, DeliveryStatus, JobStatus, WebhookEventType
from tests.service.core.hooks import Hooks
from tests.service.core.world import EXPIRED, World, make_world

S = JobStatus
T = WebhookEventType


@pytest.fixture
def hooks(world: World) -> Hooks:
    return Hooks(world.database, world.tenant_id)


def _claimed(world: World, lease_seconds: float = 30.0, **values: int) -> str:
    job_id = world.job(**values).id
    assert world.claim(job_id, lease_seconds) == 1
    return job_id


def _succeeds(world: World) -> str:
    job_id = _claimed(world)
    assert world.finish(job_id, 1, S.SUCCEEDED)
    return job_id


def _fails(world: World) -> str:
    job_id = _claimed(world)
    assert world.finish(job_id, 1, S.FAILED, error={"code": "x"})
    return job_id


def _is_cancelled_by_its_worker(world: World) -> str:
    job_id = _claimed(world)
    world.cancel(job_id)
    assert world.finish(job_id, 1, S.CANCELLED)
    return job_id


def _is_cancelled_while_queued(world: World) -> str:
    job_id = world.job().id
    world.cancel(job_id)
    return job_id


def _is_cancelled_while_paused(world: World) -> str:
    job_id = world.job().id
    world.pause(job_id)
    world.cancel(job_id)
    return job_id


def _is_cancelled_while_validating(world: World) -> str:
    job_id = world.job(status=S.VALIDATING_FILES).id
    world.cancel(job_id)
    return job_id


def _is_cancelled_by_a_drain(world: World) -> str:
    job_id = _claimed(world)
    world.cancel(job_id)
    with world.database.write() as session:
        assert jobs.release(session, job_id, 1, reason="drain")
    return job_id


def _is_cancelled_by_the_sweep(world: World) -> str:
    job_id = _claimed(world, EXPIRED)
    world.cancel(job_id)
    world.sweep()
    return job_id


def _is_given_up_by_the_sweep(world: World) -> str:
    job_id = _claimed(world, EXPIRED, max_attempts=1)
    world.sweep()
    return job_id


def _is_given_up_by_a_claim(world: World) -> str:
    job_id = _claimed(world, EXPIRED, max_attempts=1)
    assert world.claim(job_id) is None
    return job_id


def _has_an_invalid_data_set(world: World) -> str:
    with world.database.write() as session:
        dataset = datasets.create(
            session, tenant_id=world.tenant_id, name="bad", status=DatasetStatus.VALIDATING
        )
    job_id = world.job(status=S.VALIDATING_FILES, dataset_id=dataset.id).id
    with world.database.write() as session:
        assert jobs.release_waiting(session, dataset.id, error={"code": "dataset_invalid"}) == []
    return job_id


@pytest.mark.parametrize(
    ("end", "type"),
    [
        (_succeeds, T.JOB_SUCCEEDED),
        (_fails, T.JOB_FAILED),
        (_is_given_up_by_the_sweep, T.JOB_FAILED),
        (_is_given_up_by_a_claim, T.JOB_FAILED),
        (_has_an_invalid_data_set, T.JOB_FAILED),
        (_is_cancelled_by_its_worker, T.JOB_CANCELLED),
        (_is_cancelled_while_queued, T.JOB_CANCELLED),
        (_is_cancelled_while_paused, T.JOB_CANCELLED),
        (_is_cancelled_while_validating, T.JOB_CANCELLED),
        (_is_cancelled_by_a_drain, T.JOB_CANCELLED),
        (_is_cancelled_by_the_sweep, T.JOB_CANCELLED),
    ],
)
def test_every_end_of_a_job_is_announced_once(
    world: World, hooks: Hooks, end: Callable[[World], str], type: WebhookEventType
) -> None:
    hooks.endpoint()
    job_id = end(world)
    assert world.get(job_id).status.value == type.value.rpartition(".")[2]
    assert hooks.told() == [(type.value, job_id)]
    world.sweep()
    assert world.claim(job_id) is None
    assert hooks.statuses() == [DeliveryStatus.PENDING]


def test_what_does_not_end_a_job_is_not_announced(world: World, hooks: Hooks) -> None:
    hooks.endpoint()
    job_id = _claimed(world, EXPIRED)
    world.sweep()
    world.pause(job_id)
    assert world.get(job_id).status is S.PAUSED
    assert hooks.told() == []


def test_a_retry_that_succeeds_is_told_after_the_failure(world: World, hooks: Hooks) -> None:
    hooks.endpoint()
    job_id = _fails(world)
    with world.database.write() as session:
        jobs.retry(session, world.tenant_id, job_id, attempts=1)
    assert world.claim(job_id) == 2
    assert world.finish(job_id, 2, S.SUCCEEDED)
    assert hooks.told() == [(T.JOB_FAILED, job_id), (T.JOB_SUCCEEDED, job_id)]


def test_an_end_that_is_rolled_back_is_not_told(world: World, hooks: Hooks) -> None:
    hooks.endpoint()
    job_id = _claimed(world)

    def finish_and_break() -> None:
        with world.database.write() as session:
            assert jobs.finish(session, job_id, 1, S.SUCCEEDED)
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        finish_and_break()
    assert hooks.told() == []
    assert world.finish(job_id, 1, S.SUCCEEDED)
    assert hooks.told() == [(T.JOB_SUCCEEDED, job_id)]


def test_only_those_who_want_to_know_are_told(world: World, hooks: Hooks) -> None:
    wanting = [hooks.endpoint(), hooks.endpoint(T.JOB_SUCCEEDED)]
    hooks.endpoint(T.JOB_FAILED)
    disabled, deleted = hooks.endpoint(), hooks.endpoint()
    with world.database.write() as session:
        webhooks.update(session, world.tenant_id, disabled, is_enabled=False)
        webhooks.delete(session, world.tenant_id, deleted)
    stranger = make_world(world.database)
    Hooks(world.database, stranger.tenant_id).endpoint()
    _succeeds(world)
    claims = hooks.claim()
    assert sorted(claim.endpoint_id for claim in claims) == sorted(wanting)
    assert len({claim.event_id for claim in claims}) == 1
    assert len({claim.delivery_id for claim in claims}) == 2


def test_without_endpoints_nothing_is_written(world: World, hooks: Hooks) -> None:
    _succeeds(world)
    hooks.endpoint(T.JOB_FAILED)
    _succeeds(world)
    assert hooks.told() == []


def test_an_endpoint_that_is_deleted_meanwhile_leaves_nothing_that_waits(
    database: Database, world: World, hooks: Hooks
) -> None:
    """Whoever comes second waits for the first, so that no delivery is left behind."""
    endpoint_id = hooks.endpoint()
    announced, may_commit = Event(), Event()

    def announce() -> None:
        with database.write() as session:
            webhooks.announce(
                session, tenant_id=world.tenant_id, type=T.BATCH_FAILED, object_id="batch_1"
            )
            announced.set()
            assert may_commit.wait(30)

    def delete() -> None:
        with database.write() as session:
            webhooks.delete(session, world.tenant_id, endpoint_id)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(announce)
        assert announced.wait(30)
        second = pool.submit(delete)
        with pytest.raises(TimeoutError):
            second.result(0.3)
        may_commit.set()
        first.result(30)
        second.result(30)
    assert hooks.statuses() == [DeliveryStatus.FAILED]
    with pytest.raises(NotFound):
        hooks.get(endpoint_id)
    with database.read() as session:
        row = session.get(WebhookEndpoint, endpoint_id)
    assert row is not None
    assert (row.secret, row.url, row.failed) == ("", "", 1)

"""Tenants, keys, data sets, checkpoints, adapters and inference processes."""

import inspect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.db import (
    Database,
    adapters,
    aliases,
    checkpoints,
    datasets,
    draws,
    events,
    fleet,
    jobs,
    lineage,
    names,
    nodes,
    sweeps,
    tenants,
    trials,
)
from core.db.models import Adapter
from core.db.objects import remove_unneeded
from core.errors import BadInput, Conflict, NotFound
from core.ids import new_id
from core.states import DatasetStatus, JobStatus
from tests.service.core.world import World, at_once, make_world


def test_a_key_is_known_only_by_its_hash(database: Database) -> None:
    world = make_world(database)
    with database.write() as session:
        key = tenants.create_key(
            session, world.tenant_id, name="laptop", scopes=["read", "predict"]
        )
    assert key.secret.startswith("tk_")
    assert len(key.secret) > 40
    assert key.secret.startswith(key.row.prefix)
    assert key.secret not in repr(key)
    assert key.secret not in str(vars(key.row))
    with database.read() as session:
        found = tenants.authenticate(session, key.secret)
        assert found is not None
        assert (found.id, found.tenant_id, found.scopes) == (
            key.row.id,
            world.tenant_id,
            ["read", "predict"],
        )
        for wrong in ("", "tk_", key.secret[:-1], key.secret + "x", key.row.hash, key.row.prefix):
            assert tenants.authenticate(session, wrong) is None


def test_expired_and_revoked_keys_open_nothing_and_can_be_told_apart(database: Database) -> None:
    world = make_world(database)
    now = datetime.now(UTC)
    with database.write() as session:
        make = lambda **values: tenants.create_key(  # noqa: E731
            session, world.tenant_id, name="k", **values
        )
        fresh = make(expires_at=now + timedelta(hours=1))
        expired = make(expires_at=now - timedelta(seconds=1))
        revoked = make()
        first = tenants.revoke_key(session, world.tenant_id, revoked.row.id).revoked_at
        assert first is not None
        assert tenants.revoke_key(session, world.tenant_id, revoked.row.id).revoked_at == first
    with database.read() as session:
        assert tenants.authenticate(session, fresh.secret) is not None
        assert tenants.authenticate(session, expired.secret) is None
        assert tenants.authenticate(session, revoked.secret) is None
        assert tenants.authenticate(session, "tk_unknown") is None
        assert len(tenants.list_keys(session, world.tenant_id).items) == 3


def test_the_use_of_a_key_is_noted_once_a_minute(database: Database) -> None:
    world = make_world(database)
    with database.write() as session:
        key = tenants.create_key(session, world.tenant_id, name="k").row
        tenants.touch_key(session, key.id)
    with database.write() as session:
        first = tenants.list_keys(session, world.tenant_id).items[0].last_used_at
        assert first is not None
        tenants.touch_key(session, key.id)
    with database.read() as session:
        assert tenants.list_keys(session, world.tenant_id).items[0].last_used_at == first


def test_scopes_are_known_and_no_tenant_revokes_another_s_key(database: Database) -> None:
    world, other = make_world(database), make_world(database)
    with database.write() as session:
        with pytest.raises(BadInput, match="root"):
            tenants.create_key(session, world.tenant_id, name="k", scopes=["read", "root"])
        key = tenants.create_key(session, world.tenant_id, name="k")
        assert key.row.scopes == list(tenants.SCOPES)
        with pytest.raises(NotFound):
            tenants.revoke_key(session, other.tenant_id, key.row.id)
        assert tenants.list_keys(session, other.tenant_id).items == []
        assert tenants.authenticate(session, key.secret) is not None


def test_the_first_key_is_made_once_however_many_start_at_once(database: Database) -> None:
    def start(_: int) -> str | None:
        with database.write() as session:
            return tenants.ensure_first_key(session)

    keys = [key for key in at_once(start, list(range(5))) if key is not None]
    assert len(keys) == 1
    with database.write() as session:
        found = tenants.authenticate(session, keys[0])
        assert found is not None
        assert found.tenant_id == tenants.ensure_tenant(session).id


def test_tenants_have_names_of_their_own(database: Database) -> None:
    def make(_: int) -> str:
        try:
            with database.write() as session:
                return tenants.create_tenant(session, name="acme").id
        except Conflict:
            return "conflict"

    made = at_once(make, list(range(5)))
    assert made.count("conflict") == 4
    with database.write() as session:
        assert tenants.ensure_tenant(session, name="acme").id in made


def _publish(world: World, name: str = "intents", **values: Any) -> Adapter:
    with world.database.write() as session:
        return adapters.publish(
            session,
            **{
                "tenant_id": world.tenant_id,
                "name": name,
                "base_model": "minilm",
                "base_fingerprint": "sha256:" + "0" * 64,
                "task": "text-classification",
                "methods": [{"type": "lora", "r": 16}],
                "labels": ["a", "b"],
                "parameters": 1000,
                "bytes": 4000,
                "digest": "sha256:" + "1" * 64,
                "key": "deltas/1.safetensors",
            }
            | values,
        )


def test_versions_count_up_and_are_never_given_twice(world: World) -> None:
    other = make_world(world.database)
    versions = at_once(lambda _: _publish(world).version, list(range(6)))
    assert sorted(versions) == [1, 2, 3, 4, 5, 6]
    assert _publish(world, "other").version == 1
    assert _publish(other).version == 1
    with world.database.write() as session:
        newest = adapters.resolve(session, world.tenant_id, "intents")
        adapters.mark_deleted(session, world.tenant_id, newest.id)
    assert _publish(world).version == 7


def test_an_adapter_is_found_by_id_name_and_version(world: World) -> None:
    first, second = _publish(world), _publish(world)
    other = make_world(world.database)
    references = {
        first.id: first.id,
        second.id: second.id,
        "intents": second.id,
        "intents@1": first.id,
        "intents@2": second.id,
    }
    with world.database.read() as session:
        for reference, adapter_id in references.items():
            assert adapters.resolve(session, world.tenant_id, reference).id == adapter_id
            with pytest.raises(NotFound) as caught:
                adapters.resolve(session, other.tenant_id, reference)
            assert caught.value.code == "adapter_not_found"
        for wrong in ("", "Intents", "intents@", "intents@0", "intents@3", "intents@x", "@1"):
            with pytest.raises(NotFound):
                adapters.resolve(session, world.tenant_id, wrong)


def test_a_deleted_adapter_is_gone_and_its_object_stays_while_another_needs_it(
    world: World,
) -> None:
    other = make_world(world.database)
    first, twin = _publish(world), _publish(other)
    with world.database.write() as session:
        with pytest.raises(NotFound):
            adapters.mark_deleted(session, other.tenant_id, first.id)
        adapters.mark_deleted(session, world.tenant_id, first.id)
        for act in (adapters.get, adapters.resolve, adapters.mark_deleted):
            with pytest.raises(NotFound):
                act(session, world.tenant_id, first.id)
        assert adapters.list_page(session, world.tenant_id).items == []
    removed: list[str] = []
    assert not remove_unneeded(world.database, twin.key, removed.append)
    with world.database.write() as session:
        adapters.mark_deleted(session, other.tenant_id, twin.id)
    assert not remove_unneeded(world.database, twin.key, lambda _: False)
    assert remove_unneeded(world.database, twin.key, removed.append)
    assert removed == [twin.key]


def test_an_adapter_that_a_job_continues_from_stays(world: World) -> None:
    parent = _publish(world)
    job = world.job(spec={"parent_adapter_id": parent.id})
    with world.database.write() as session:
        with pytest.raises(Conflict, match=job.id) as caught:
            adapters.mark_deleted(session, world.tenant_id, parent.id)
        assert caught.value.code == "adapter_in_use"
    world.cancel(job.id)
    with world.database.write() as session:
        adapters.mark_deleted(session, world.tenant_id, parent.id)


def test_a_data_set_that_a_job_needs_stays(world: World) -> None:
    job = world.job()
    with world.database.write() as session:
        with pytest.raises(Conflict, match=job.id) as caught:
            datasets.mark_deleted(session, world.tenant_id, world.dataset_id)
        assert caught.value.code == "dataset_in_use"
    world.cancel(job.id)
    with world.database.write() as session:
        datasets.mark_deleted(session, world.tenant_id, world.dataset_id)
        with pytest.raises(NotFound) as gone:
            datasets.get(session, world.tenant_id, world.dataset_id)
        assert gone.value.code == "dataset_not_found"
        assert datasets.get_for_worker(session, world.dataset_id) is not None


def test_a_validation_writes_its_outcome_once(world: World) -> None:
    with world.database.write() as session:
        row = datasets.create(
            session, tenant_id=world.tenant_id, name="x", status=DatasetStatus.VALIDATING
        )
        with pytest.raises(TypeError, match="tenant_id"):
            datasets.finish_validation(
                session, row.id, status=DatasetStatus.READY, tenant_id="ten_other"
            )
    outcomes = at_once(lambda status: _finish(world, row.id, status), list(DatasetStatus)[1:] * 3)
    assert outcomes.count(True) == 1


def _finish(world: World, dataset_id: str, status: DatasetStatus) -> bool:
    with world.database.write() as session:
        return datasets.finish_validation(session, dataset_id, status=status, rows=3)


def test_checkpoints_are_listed_furthest_first_and_pruned(world: World) -> None:
    job = world.job()
    with world.database.write() as session:
        for attempt, step in [(1, 10), (1, 20), (2, 20), (2, 15), (2, 20)]:
            checkpoints.add(
                session,
                job_id=job.id,
                tenant_id=world.tenant_id,
                attempt=attempt,
                step=step,
                key=f"checkpoints/{job.id}/{attempt}-{step}.safetensors",
                bytes=1,
                sha256="0" * 64,
            )
        rows = checkpoints.list_newest(session, world.tenant_id, job.id)
        assert [(row.step, row.attempt) for row in rows] == [(20, 2), (20, 1), (15, 2), (10, 1)]
        other = make_tenant_id(session)
        assert checkpoints.list_newest(session, other, job.id) == []
        assert checkpoints.prune(session, other, job.id, keep=0) == []
        gone = checkpoints.prune(session, world.tenant_id, job.id, keep=2)
        assert [(row.step, row.attempt) for row in gone] == [(15, 2), (10, 1)]
        assert len(checkpoints.list_newest(session, world.tenant_id, job.id)) == 2


def test_jobs_that_are_over_and_still_have_checkpoints_can_be_found(world: World) -> None:
    failed, running, cancelled = world.job(), world.job(), world.job()
    for job in (failed, running, cancelled):
        world.claim(job.id)
        with world.database.write() as session:
            for step in (1, 2):
                checkpoints.add(
                    session,
                    **{"job_id": job.id, "tenant_id": world.tenant_id, "attempt": 1, "step": step},
                    **{"key": f"checkpoints/{job.id}/1-{step}", "bytes": 1, "sha256": "0"},
                )
    world.finish(failed.id, 1, JobStatus.FAILED)
    world.cancel(cancelled.id)
    assert world.finish(cancelled.id, 1, JobStatus.CANCELLED)
    with world.database.read() as session:
        assert checkpoints.list_abandoned(session, older_than_seconds=60) == []
        found = checkpoints.list_abandoned(session, older_than_seconds=-1)
    assert found == [(world.tenant_id, cancelled.id)]


def make_tenant_id(session: Any) -> str:
    return tenants.create_tenant(session, name="another").id


def test_inference_processes_are_alive_while_they_say_so(database: Database) -> None:
    def announce(node: str, status: str = "ready") -> None:
        with database.write() as session:
            nodes.announce(
                session,
                id=node,
                url=f"http://{node}",
                bases=[{"name": "minilm"}],
                device="cpu",
                precision={"minilm": "fp32"},
                status=status,
            )

    for node in ("b", "a"):
        announce(node, "starting")
    announce("a")
    with database.write() as session:
        live = nodes.list_live(session)
        assert [(row.id, row.status) for row in live] == [("a", "ready"), ("b", "starting")]
        assert live[0].seen_at >= live[0].started_at
        assert nodes.list_live(session, within_seconds=-1) == []
        assert nodes.forget_silent(session, after_seconds=60) == 0
        nodes.remove(session, "b")
        nodes.remove(session, "unknown")
        assert nodes.forget_silent(session, after_seconds=-1) == 1
        assert nodes.list_live(session, within_seconds=3600) == []


def test_lists_are_newest_first_in_stable_pages(world: World) -> None:
    made = [world.job().id for _ in range(5)]
    seen: list[str] = []
    after: str | None = None
    with world.database.read() as session:
        while True:
            page = jobs.list_page(session, world.tenant_id, limit=2, after=after)
            seen += [job.id for job in page.items]
            if not page.has_more:
                break
            after = seen[-1]
    assert seen == made[::-1]
    with world.database.read() as session:
        assert len(jobs.list_page(session, world.tenant_id, limit=0).items) == 1
        assert jobs.list_page(session, world.tenant_id, after=made[0]).items == []
    foreign = make_world(world.database).job().id
    lists = {
        jobs: [foreign, new_id("job"), world.dataset_id],
        datasets: [made[0], new_id("ds")],
        adapters: [made[0], new_id("adp")],
        aliases: [made[0], "als_no-id", "als_" + "l" * 26],
    }
    for resource, wrong in lists.items():
        for cursor in wrong:
            with world.database.read() as session, pytest.raises(BadInput, match="last_id") as told:
                resource.list_page(session, world.tenant_id, after=cursor)
            assert told.value.param == "after"
    with world.database.read() as session:
        # of an alias that was deleted since
        assert aliases.list_page(session, world.tenant_id, after=new_id("als")).items == []
        with pytest.raises(BadInput):
            tenants.list_keys(session, world.tenant_id, after=new_id("key"))


def test_jobs_are_filtered(world: World) -> None:
    blue = world.job(metadata={"team": "blue", "n": "1"}, base_model="smollm2")
    red = world.job(metadata={"team": "red", "n": "1"})
    world.claim(red.id)

    def ids(**filters: Any) -> set[str]:
        with world.database.read() as session:
            return {job.id for job in jobs.list_page(session, world.tenant_id, **filters).items}

    assert ids() == {blue.id, red.id}
    assert ids(metadata={"team": "blue"}) == {blue.id}
    assert ids(metadata={"team": "blue", "n": "2"}) == set()
    assert ids(metadata={"n": "1"}) == {blue.id, red.id}
    assert ids(metadata={"'; DROP TABLE jobs; --": "x"}) == set()
    assert ids(status=JobStatus.RUNNING) == {red.id}
    assert ids(base_model="smollm2") == {blue.id}
    assert ids(dataset_id=world.dataset_id) == {blue.id, red.id}
    assert ids(dataset_id="ds_other") == set()
    with world.database.read() as session:
        counts = fleet.count_jobs(session)
        spec = jobs.newest_spec(session)
    assert (counts[JobStatus.QUEUED], counts[JobStatus.RUNNING], counts[JobStatus.FAILED]) == (
        1,
        1,
        0,
    )
    assert spec == {"training": {"seed": 0}}


def test_data_sets_and_adapters_are_filtered_too(world: World) -> None:
    _publish(world, "a", task="text-generation")
    _publish(world, "b")
    with world.database.write() as session:
        datasets.create(
            session, tenant_id=world.tenant_id, name="x", status=DatasetStatus.INVALID, task="t"
        )
        found = [
            len(adapters.list_page(session, world.tenant_id, **filters).items)
            for filters in ({}, {"name": "a"}, {"task": "text-generation"}, {"base_model": "x"})
        ]
        sets = [
            len(datasets.list_page(session, world.tenant_id, **filters).items)
            for filters in ({}, {"status": DatasetStatus.INVALID}, {"name": "d"}, {"task": "t"})
        ]
    assert found == [2, 1, 1, 0]
    assert sets == [2, 1, 1, 1]


def test_a_queued_job_knows_its_place(world: World) -> None:
    other = make_world(world.database)
    first, second = world.job(), other.job()
    urgent, running = world.job(priority=-1), world.job()
    world.put(running.id, status=JobStatus.RUNNING)

    def place(whose: World, job_id: str) -> int | None:
        with world.database.read() as session:
            return jobs.queue_position(session, whose.tenant_id, job_id)

    assert place(world, urgent.id) == 0
    assert place(world, first.id) == 1
    assert place(other, second.id) == 2
    assert place(world, running.id) is None


# what workers and processes ask knows no tenant: a message carries an id and nothing else
WITHOUT_TENANT = {
    "jobs": "claim find_beside beat hold update_fenced finish release sweep mark_unsent"
    " get_for_worker newest_spec read_wish release_waiting",
    "datasets": "new_dataset_id get_for_worker find_leakage finish_validation sweep touch",
    "adapters": "get_for_worker",
    "aliases": "",
    "names": "",
    "draws": "put values_of",
    "lineage": "",
    "tenants": "create_tenant find_tenant list_tenants ensure_tenant ensure_first_key"
    " authenticate touch_key hash_key",
    "events": "",
    "checkpoints": "list_abandoned",
    "sweeps": "get_for_worker take note_test reopen find_due",
    "trials": "add name_adapters",
}


@pytest.mark.parametrize(
    "module",
    [
        *(jobs, datasets, adapters, aliases, names, draws, lineage, tenants, events, checkpoints),
        *(sweeps, trials),
    ],
    ids=lambda module: module.__name__.rsplit(".", 1)[-1],
)
def test_every_query_names_its_tenant(module: Any) -> None:
    name = module.__name__.rsplit(".", 1)[-1]
    functions: dict[str, Callable[..., Any]] = {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__.startswith(module.__name__)
        and not key.startswith("_")
    }
    free = {
        key
        for key, function in functions.items()
        if "tenant_id" not in inspect.signature(function).parameters
    }
    assert free == set(WITHOUT_TENANT[name].split())

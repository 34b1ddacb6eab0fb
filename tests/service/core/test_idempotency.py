"""One wish, one row."""

from typing import Any

import pytest

from core.db import datasets, jobs
from core.db.idempotency import digest_request
from core.db.models import Dataset, Job
from core.errors import Conflict
from core.states import DatasetStatus, JobStatus
from tests.service.core.world import World, at_once, make_world

S = JobStatus
BODY = digest_request({"dataset_id": "ds", "base_model": "minilm"})


def _post(world: World, key: str | None, digest: str | None = BODY) -> tuple[Job, bool]:
    with world.database.write() as session:
        return jobs.create_once(
            session,
            tenant_id=world.tenant_id,
            idempotency_key=key,
            request_digest=digest,
            dataset_id=world.dataset_id,
            base_model="minilm",
            spec={},
            max_attempts=3,
        )


def _upload(world: World, digest: str, **values: Any) -> tuple[Dataset, bool]:
    with world.database.write() as session:
        return datasets.create_once(
            session,
            tenant_id=world.tenant_id,
            request_digest=digest,
            **{"idempotency_key": None, "name": "d", "status": DatasetStatus.READY} | values,
        )


@pytest.mark.parametrize("key", ["k1", None])
def test_the_same_post_again_is_the_same_job(world: World, key: str | None) -> None:
    first, is_first_new = _post(world, key)
    second, is_second_new = _post(world, key)
    assert (is_first_new, is_second_new) == (True, False)
    assert first.id == second.id
    assert world.story(first.id) == ["queued"]


@pytest.mark.parametrize("key", ["k1", None])
def test_the_same_post_from_many_at_once_is_one_job(world: World, key: str | None) -> None:
    answers = at_once(lambda _: _post(world, key), list(range(8)))
    assert len({job.id for job, _ in answers}) == 1
    assert sum(is_new for _, is_new in answers) == 1
    with world.database.read() as session:
        assert len(jobs.list_page(session, world.tenant_id).items) == 1


def test_a_key_with_another_body_is_a_conflict(world: World) -> None:
    _post(world, "k1")
    with pytest.raises(Conflict) as caught:
        _post(world, "k1", digest_request({"other": 1}))
    assert caught.value.code == "idempotency_mismatch"


def test_other_keys_bodies_and_tenants_are_other_wishes(world: World) -> None:
    other = make_world(world.database)
    made = [
        _post(world, "k1"),
        _post(world, "k2"),
        _post(world, None),
        _post(world, None, digest_request({"other": 1})),
        _post(other, "k1"),
        _post(other, None),
    ]
    assert all(is_new for _, is_new in made)
    assert len({job.id for job, _ in made}) == len(made)


def test_without_key_and_digest_every_post_is_a_new_job(world: World) -> None:
    assert _post(world, None, None)[0].id != _post(world, None, None)[0].id


def test_a_key_holds_for_ever_and_a_bare_body_for_two_minutes(world: World) -> None:
    keyed, _ = _post(world, "k1")
    bare, _ = _post(world, None)
    for job in (keyed, bare):
        old = job.created_at.replace(year=job.created_at.year - 1)
        world.put(job.id, created_at=old)
    assert _post(world, "k1")[1] is False
    assert _post(world, None)[1] is True


@pytest.mark.parametrize(
    ("status", "is_new"),
    [(S.FAILED, True), (S.CANCELLED, True), (S.SUCCEEDED, False), (S.RUNNING, False)],
)
def test_who_asks_again_after_a_failure_wants_another_job(
    world: World, status: JobStatus, is_new: bool
) -> None:
    job, _ = _post(world, None)
    keyed, _ = _post(world, "k1")
    for row in (job, keyed):
        world.put(row.id, status=status)
    assert _post(world, None)[1] is is_new
    # whoever sends a key again asks for that very answer
    assert _post(world, "k1")[0].id == keyed.id


def test_the_same_upload_is_one_data_set_at_any_time(world: World) -> None:
    first, _ = _upload(world, BODY)
    again = at_once(lambda _: _upload(world, BODY), list(range(6)))
    assert {row.id for row, _ in again} == {first.id}
    assert not any(is_new for _, is_new in again)
    with world.database.write() as session:
        found = datasets.find_same(session, world.tenant_id, BODY)
        assert found is not None
        assert found.id == first.id
        datasets.mark_deleted(session, world.tenant_id, first.id)
        assert datasets.find_same(session, world.tenant_id, BODY) is None
    assert _upload(world, BODY)[1] is True


def test_an_invalid_data_set_stands_for_nothing(world: World) -> None:
    _upload(world, BODY, status=DatasetStatus.INVALID)
    assert _upload(world, BODY)[1] is True


def test_a_data_set_s_key_with_another_body_is_a_conflict(world: World) -> None:
    first, _ = _upload(world, BODY, idempotency_key="k")
    assert _upload(world, BODY, idempotency_key="k")[0].id == first.id
    with pytest.raises(Conflict):
        _upload(world, digest_request({}), idempotency_key="k")


def test_a_key_does_not_stand_for_what_was_deleted(world: World) -> None:
    first, _ = _upload(world, BODY, idempotency_key="k")
    with world.database.write() as session:
        datasets.mark_deleted(session, world.tenant_id, first.id)
    with pytest.raises(Conflict, match="was deleted; choose a new one") as told:
        _upload(world, BODY, idempotency_key="k")
    assert told.value.param == "Idempotency-Key"
    assert _upload(world, BODY, idempotency_key="k2")[1] is True

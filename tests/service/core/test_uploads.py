"""Uploads in parts as rows, on both databases."""

from contextlib import suppress

import pytest
import sqlalchemy as sa

from core.db import Database, uploads
from core.db.models import Upload, UploadPart
from core.errors import BadInput, Conflict, NotFound, TooLarge
from core.settings import Settings
from core.states import UploadStatus
from core.storage import open_store, part_key
from tests.service.core.test_orphans import grow_old
from tests.service.core.world import World, at_once
from worker.expired_uploads import end_expired_uploads
from worker.orphans import find_orphans


def begin(world: World, *, bytes: int = 10, most_open: int = 9) -> str:
    with world.database.write() as session:
        return uploads.create(
            session,
            tenant_id=world.tenant_id,
            filename="f.jsonl",
            purpose="fine-tune",
            bytes=bytes,
            most_open=most_open,
        ).id


def add(world: World, upload_id: str, bytes: int = 5) -> str:
    with world.database.write() as session:
        part_id = uploads.new_part_id()
        uploads.add_part(session, world.tenant_id, upload_id, part_id=part_id, bytes=bytes)
    return part_id


def complete(world: World, upload_id: str, *part_ids: str, file_id: str = "ds_1") -> list[str]:
    with world.database.write() as session:
        return uploads.complete(
            session, world.tenant_id, upload_id, file_id=file_id, part_ids=part_ids
        )


def grow_overdue(database: Database, upload_id: str, *, seconds: float) -> None:
    with database.write() as session:
        row = session.get(Upload, upload_id)
        assert row is not None
        row.expires_at = uploads.clock.later(-seconds)


def status_of(world: World, upload_id: str) -> UploadStatus:
    with world.database.read() as session:
        return uploads.get(session, world.tenant_id, upload_id).status


def test_parts_are_chosen_by_their_ids(world: World) -> None:
    upload_id = begin(world)
    first, lost, second = (add(world, upload_id) for _ in range(3))
    wrong: list[tuple[list[str], str]] = [
        ([first], "part_ids"),
        ([first, lost, second], "part_ids"),
        ([first, first], "part_ids.1"),
        ([first, "part_none"], "part_ids.1"),
        ([first, add(world, begin(world))], "part_ids.1"),
    ]
    with world.database.read() as session:
        upload = uploads.get_pending(session, world.tenant_id, upload_id)
        uploads.check_parts(session, upload, [second, first])
        for part_ids, param in wrong:
            with pytest.raises(BadInput) as told:
                uploads.check_parts(session, upload, part_ids)
            assert told.value.param == param
    assert sorted(complete(world, upload_id, second, first)) == sorted([first, lost, second])
    with world.database.read() as session:
        assert uploads.get(session, world.tenant_id, upload_id).part_ids == [second, first]


def test_what_is_kept_of_an_upload_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload_id = begin(world, bytes=10)
    for _ in range(3):
        add(world, upload_id, 10)
    with pytest.raises(TooLarge) as told:
        add(world, upload_id, 1)
    assert told.value.details == [{"limit_bytes": 30}]
    monkeypatch.setattr(uploads, "MAX_PARTS", 3)
    with pytest.raises(TooLarge) as told:
        add(world, upload_id, 1)
    assert told.value.details == [{"limit_parts": 3}]


def test_so_many_may_be_open(world: World) -> None:
    first, second = begin(world), begin(world)
    with pytest.raises(Conflict) as told:
        begin(world, most_open=2)
    assert told.value.code == "too_many_uploads"
    complete(world, first, file_id="ds_1")
    begin(world, most_open=2)
    grow_overdue(world.database, second, seconds=1)
    begin(world, most_open=2)


def test_what_has_ended_takes_no_parts(world: World) -> None:
    completed, cancelled, overdue = (begin(world) for _ in range(3))
    complete(world, completed)
    with world.database.write() as session:
        uploads.cancel(session, world.tenant_id, cancelled)
    grow_overdue(world.database, overdue, seconds=1)
    for upload_id, word in (
        (completed, "completed"),
        (cancelled, "cancelled"),
        (overdue, "expired"),
    ):
        with pytest.raises(Conflict, match=word) as told:
            add(world, upload_id)
        assert told.value.code == "upload_not_pending"
    with pytest.raises(NotFound):
        add(world, "upload_none")


def test_an_end_stays_the_end(world: World) -> None:
    completed, cancelled = begin(world), begin(world)
    first, second = add(world, completed), add(world, completed)
    complete(world, completed, first, second, file_id="ds_1")
    # another request that joined the same parts; others would leave a file that nobody is told of
    assert complete(world, completed, first, second, file_id="ds_1") == []
    for file_id, part_ids in (("ds_2", (first, second)), ("ds_1", (second, first))):
        with pytest.raises(Conflict):
            complete(world, completed, *part_ids, file_id=file_id)
    with world.database.read() as session:
        assert uploads.get(session, world.tenant_id, completed).file_id == "ds_1"
    with world.database.write() as session, pytest.raises(Conflict):
        uploads.cancel(session, world.tenant_id, completed)
    for _ in range(2):
        with world.database.write() as session:
            uploads.cancel(session, world.tenant_id, cancelled)
    with pytest.raises(Conflict):
        complete(world, cancelled)


def test_a_part_and_the_end_of_its_upload_come_one_after_the_other(world: World) -> None:
    """No row of a part is left behind by an upload that ends while parts come."""
    upload_id = begin(world, bytes=1000)

    def act(number: int) -> None:
        with suppress(Conflict):  # it has ended: what this test is about
            if number % 4:
                add(world, upload_id, 1)
                return
            with world.database.write() as session:
                uploads.cancel(session, world.tenant_id, upload_id)

    at_once(act, list(range(12)))
    with world.database.read() as session:
        assert session.scalars(sa.select(UploadPart.id)).all() == []


def test_an_upload_that_is_left_open_expires(world: World, directory_settings: Settings) -> None:
    store = open_store(directory_settings)
    left, completing, pending = (begin(world) for _ in range(3))
    keys = {}
    for upload_id in (left, completing, pending):
        keys[upload_id] = part_key(upload_id, add(world, upload_id))
        store.put_bytes(keys[upload_id], b"x" * 5)
    grow_overdue(world.database, left, seconds=uploads.COMPLETING_SECONDS + 1)
    grow_overdue(world.database, completing, seconds=uploads.COMPLETING_SECONDS - 60)
    for _ in range(2):
        end_expired_uploads(world.database, store)
    assert status_of(world, left) is UploadStatus.EXPIRED
    assert status_of(world, pending) is UploadStatus.PENDING
    assert sorted(store.list("uploads")) == sorted([keys[completing], keys[pending]])
    # it began to be completed in time
    assert complete(world, completing) == [keys[completing].rpartition("/")[2]]


def test_parts_without_a_row_are_orphans(world: World, directory_settings: Settings) -> None:
    store = open_store(directory_settings)
    upload_id = begin(world)
    kept = part_key(upload_id, add(world, upload_id))
    lost = part_key(upload_id, uploads.new_part_id())
    for key in (kept, lost):
        store.put_bytes(key, b"x")
    grow_old(directory_settings)
    assert find_orphans(world.database, store).keys == (lost,)

"""Claims of batches, by both databases: whose turn it is, and who may write."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import sqlalchemy as sa

from core.db import Database, batches, files, tenants
from core.db.batches import Claim, Fenced
from core.db.models import Batch, File
from core.errors import Conflict
from core.states import BatchStatus
from tests.service.core.hooks import Hooks
from tests.service.core.world import at_once

LEASE = 30.0
OVER = -1.0


@dataclass
class Desk:
    """Some tenants with a file each."""

    database: Database
    files: dict[str, str] = field(default_factory=dict)

    def batch(self, tenant: str = "one") -> str:
        """Make a batch; gives its id."""
        with self.database.write() as session:
            tenant_id = tenants.ensure_tenant(session, name=tenant).id
            if tenant not in self.files:
                row = File(
                    id=files.new_file_id(),
                    tenant_id=tenant_id,
                    purpose="batch",
                    filename="a.jsonl",
                    bytes=1,
                    sha256="0" * 64,
                    key=f"files/{tenant}",
                )
                session.add(row)
                session.flush()
                self.files[tenant] = row.id
            made, _ = batches.create_once(
                session,
                tenant_id=tenant_id,
                endpoint="/predict",
                input_file_id=self.files[tenant],
                metadata=None,
                window_seconds=3600,
                idempotency_key=None,
                request_digest=f"sha256:{files.new_file_id()}",
            )
            return made.id

    def claim(self, lease_seconds: float = LEASE) -> Claim | None:
        with self.database.write() as session:
            return batches.claim_next(session, owner="test", lease_seconds=lease_seconds)

    def surely(self, lease_seconds: float = LEASE) -> Claim:
        found = self.claim(lease_seconds)
        assert found is not None
        return found

    def keep(self, claim: Claim, first: int, requests: int, **keys: str) -> None:
        with self.database.write() as session:
            batches.keep_part(
                session,
                claim,
                first=first,
                requests=requests,
                keys=keys,
                completed=requests,
                failed=0,
            )

    def get(self, batch_id: str) -> Batch:
        with self.database.read() as session:
            row = session.get(Batch, batch_id)
            assert row is not None
            return row


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


def test_a_batch_is_given_to_one(desk: Desk) -> None:
    made = {desk.batch() for _ in range(3)}
    claims = at_once(desk.claim, [LEASE] * 6)
    assert {claim.batch_id for claim in claims if claim is not None} == made
    assert sum(claim is None for claim in claims) == 3


def test_a_tenant_with_many_batches_does_not_keep_others_waiting(desk: Desk) -> None:
    many = [desk.batch("many") for _ in range(3)]
    few = [desk.batch("few"), desk.batch("few")]
    taken = [desk.surely().batch_id for _ in range(5)]
    assert taken == [many[0], few[0], many[1], few[1], many[2]]


def test_who_was_let_go_comes_after_who_waited(desk: Desk) -> None:
    made = {name: [desk.batch(name), desk.batch(name)] for name in "abc"}
    taken = []
    running = desk.surely()
    for _ in range(6):
        taken.append(running.batch_id)
        with desk.database.write() as session:
            batches.release(session, running)
        running = desk.surely()
    # tenants alternate, and each one's batches keep their order
    first = [made[name][0] for name in "abc"]
    assert taken == [*first, *first]


def test_who_has_none_running_is_known_to_wait(desk: Desk) -> None:
    def keeps_waiting(seconds: float = 0) -> bool:
        with desk.database.read() as session:
            return batches.keeps_waiting(session, seconds=seconds)

    desk.batch("many")
    assert keeps_waiting()
    desk.surely()
    desk.batch("many")
    assert not keeps_waiting()
    desk.batch("few")
    assert keeps_waiting()
    assert not keeps_waiting(3600)
    assert desk.surely().batch_id
    assert not keeps_waiting()


def test_an_attempt_that_is_fenced_writes_nothing(desk: Desk) -> None:
    batch_id = desk.batch()
    first = desk.surely(OVER)
    second = desk.surely()
    assert (second.attempt, second.losses) == (2, 1)
    calls: list[Callable[[sa.orm.Session], object]] = [
        lambda session: batches.beat(session, first, lease_seconds=LEASE),
        lambda session: batches.move(session, first, BatchStatus.IN_PROGRESS),
        lambda session: batches.release(session, first),
        lambda session: batches.finish(session, first, BatchStatus.FAILED, files={}),
    ]
    for call in calls:
        with pytest.raises(Fenced), desk.database.write() as session:
            call(session)
    with pytest.raises(Fenced):
        desk.keep(first, 0, 5, output="a")
    row = desk.get(batch_id)
    assert (row.status, row.kept, row.attempt) == (BatchStatus.VALIDATING, 0, 2)


def test_a_part_counts_once_however_often_it_is_written(desk: Desk) -> None:
    batch_id = desk.batch()
    claim = desk.surely()
    for _ in range(2):
        desk.keep(claim, 0, 5, output="a")
    desk.keep(claim, 5, 2, error="b", output="c")
    row = desk.get(batch_id)
    assert (row.kept, row.completed) == (7, 7)
    with desk.database.read() as session:
        assert batches.list_parts(session, batch_id) == {"output": ["a", "c"], "error": ["b"]}


def test_losses_are_counted_until_a_part_is_kept(desk: Desk) -> None:
    desk.batch()
    assert [desk.surely(OVER).losses for _ in range(3)] == [0, 1, 2]
    claim = desk.surely(OVER)
    desk.keep(claim, 0, 1, output="a")
    claim = desk.surely()
    assert claim.losses == 1
    with desk.database.write() as session:
        batches.release(session, claim)
    again = desk.surely()
    assert (again.losses, again.kept) == (1, 1)


def test_a_wish_to_cancel_decides_how_a_batch_ends(desk: Desk) -> None:
    batch_id = desk.batch()
    claim = desk.surely()
    with desk.database.write() as session:
        batches.move(session, claim, BatchStatus.IN_PROGRESS, requests=3)
        asked = batches.request_cancel(session, claim.tenant_id, batch_id)
        assert asked.status is BatchStatus.CANCELLING
    with desk.database.write() as session:
        now = batches.move(session, claim, BatchStatus.FINALIZING)
        assert now is BatchStatus.CANCELLING
        batches.finish(session, claim, BatchStatus.COMPLETED, files={})
    row = desk.get(batch_id)
    assert (row.status, row.requests, row.completed_at) == (BatchStatus.CANCELLED, 3, None)
    assert row.cancelled_at is not None
    assert desk.claim() is None


def test_a_batch_does_not_end_out_of_turn(desk: Desk) -> None:
    batch_id = desk.batch()
    claim = desk.surely()
    with pytest.raises(ValueError, match="does not end"), desk.database.write() as session:
        batches.finish(session, claim, BatchStatus.COMPLETED, files={})
    with desk.database.write() as session:
        batches.finish(session, claim, BatchStatus.EXPIRED, files={})
    with pytest.raises(Conflict), desk.database.write() as session:
        batches.request_cancel(session, claim.tenant_id, batch_id)


def test_the_end_gives_the_keys_of_the_parts_back(desk: Desk) -> None:
    batch_id = desk.batch()
    claim = desk.surely()
    desk.keep(claim, 0, 1, output="a", error="b")
    with desk.database.write() as session:
        keys = batches.finish(session, claim, BatchStatus.FAILED, files={}, errors={"data": []})
    assert sorted(keys) == ["a", "b"]
    with desk.database.read() as session:
        assert batches.list_parts(session, batch_id) == {}


@pytest.mark.parametrize("status", [BatchStatus.FAILED, BatchStatus.EXPIRED])
def test_the_end_is_announced_with_it(desk: Desk, status: BatchStatus) -> None:
    batch_id = desk.batch()
    hooks = Hooks(desk.database, _tenant_of(desk, batch_id))
    hooks.endpoint()
    claim = desk.surely()
    with desk.database.write() as session:
        batches.finish(session, claim, status, files={})
    assert hooks.told() == [(f"batch.{status}", batch_id)]


def _tenant_of(desk: Desk, batch_id: str) -> str:
    with desk.database.read() as session:
        return session.scalars(sa.select(Batch.tenant_id).where(Batch.id == batch_id)).one()


def test_a_file_is_held_by_whoever_makes_a_batch_of_it(desk: Desk) -> None:
    desk.batch("one")
    claim = desk.surely()
    file_id = desk.files["one"]
    with pytest.raises(Conflict), desk.database.write() as session:
        files.mark_deleted(session, claim.tenant_id, file_id)
    with desk.database.write() as session:
        batches.finish(session, claim, BatchStatus.FAILED, files={})
    with desk.database.write() as session:
        assert files.mark_deleted(session, claim.tenant_id, file_id).id == file_id

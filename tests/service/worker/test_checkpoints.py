"""Checkpoints of an attempt: two objects and a row, which come and go together."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from core.db import adapters
from core.storage import delta_key
from peft_engine.configs import HeadSpec, Manifest
from peft_engine.configs.methods import LoraConfig
from tests.service.worker.conftest import BOTH
from tests.service.worker.stage import DEADLINE_SECONDS, Stage
from tests.service.worker.twin import TwinDelta, TwinEngine
from worker.attempts import JobAttempts
from worker.checkpoints import JobCheckpoints, delete_checkpoints
from worker.deltas import describe_delta
from worker.journal import JobKey, Journal

pytestmark = pytest.mark.parametrize("database_url", BOTH, indirect=True)


class Keeper:
    """The checkpoints of one attempt, and what lies in storage."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        job_id = stage.add_job(send=False)
        attempts = JobAttempts(
            stage.database, stage.store, owner="test", lease_seconds=30, outage_seconds=20
        )
        job = attempts.claim(job_id)
        assert job is not None
        self.key = JobKey(job_id, job.tenant_id, job.attempt)
        self.journal = Journal(stage.database, self.key, has_first_step=False)
        engine = TwinEngine(stage.settings)
        self.kept = JobCheckpoints(stage.database, stage.store, engine, self.journal, self.key)

    def save(self, step: int, *, learned: str | None = None) -> TwinDelta:
        """Keep a step; what was learned is another thing at each of them, unless it is told."""
        delta = make_delta(learned or f"step {step}")
        self.kept.save(step, f"state {step}".encode(), delta)
        self.settle()
        return delta

    def settle(self) -> None:
        """Wait until everything is written, and what that made superfluous is removed."""
        removed = threading.Event()
        self.journal.add(lambda _: None, after=removed.set)
        assert removed.wait(DEADLINE_SECONDS)

    def steps(self) -> list[int]:
        return [row.step for row in self.stage.checkpoints()]

    def deltas(self) -> set[str]:
        return set(self.stage.store.list("deltas"))

    def assert_deltas(self, *wanted: TwinDelta) -> None:
        assert self.deltas() == {delta_key(delta.digest) for delta in wanted}


def make_delta(learned: str) -> TwinDelta:
    manifest = Manifest(
        methods=(LoraConfig(),),
        task="text-classification",
        base_model="minilm",
        base_fingerprint="f",
        architecture="encoder",
        precision="fp32",
        labels=("a", "b"),
        head=HeadSpec(pooling="mean", normalize=True, scale=1.0),
        template_digest="t",
        max_length=8,
    )
    return TwinDelta(manifest, learned)


@pytest.fixture
def keeper(stage: Stage) -> Iterator[Keeper]:
    made = Keeper(stage)
    with made.journal:
        yield made
    for thread in threading.enumerate():
        if thread.name == "journal":
            thread.join(DEADLINE_SECONDS)  # it may be removing bytes, with a connection of its own


def publish(keeper: Keeper, delta: TwinDelta) -> None:
    """Make an adapter of a delta whose bytes are there."""
    told: dict[str, Any] = describe_delta(
        delta, key=delta_key(delta.digest), size_bytes=len(delta.encode())
    )
    with keeper.stage.database.write() as session:
        adapters.publish(session, tenant_id=keeper.key.tenant_id, name="kept", **told)


def test_the_row_says_what_an_adapter_would(keeper: Keeper) -> None:
    delta = keeper.save(10)
    (row,) = keeper.stage.checkpoints()
    assert row.delta_key == delta_key(delta.digest)
    assert row.delta == describe_delta(
        delta, key=delta_key(delta.digest), size_bytes=len(delta.encode())
    )
    assert keeper.stage.store.get_bytes(row.delta_key) == delta.encode()
    assert (row.bytes, keeper.stage.store.get_bytes(row.key)) == (8, b"state 10")
    assert keeper.kept.latest() == (10, b"state 10", delta)


def test_the_newest_two_stay_with_both_parts(keeper: Keeper) -> None:
    _, second, third = (keeper.save(step) for step in (10, 20, 30))
    assert keeper.steps() == [30, 20]
    keeper.assert_deltas(second, third)
    assert len(list(keeper.stage.store.list("checkpoints"))) == 2


def test_a_delta_goes_with_the_last_that_needs_it(keeper: Keeper) -> None:
    """A step that changes nothing, such as the first of a warm-up, has the delta of the last."""
    same = keeper.save(10, learned="nothing yet")
    keeper.save(20, learned="nothing yet")
    third = keeper.save(30)
    keeper.assert_deltas(same, third)
    fourth = keeper.save(40)
    keeper.assert_deltas(third, fourth)


def test_a_published_delta_outlives_its_checkpoint_and_its_job(keeper: Keeper) -> None:
    first = keeper.save(10)
    publish(keeper, first)
    second, third = keeper.save(20), keeper.save(30)
    keeper.assert_deltas(first, second, third)
    delete_checkpoints(
        keeper.stage.database, keeper.stage.store, keeper.key.tenant_id, keeper.key.job_id
    )
    assert keeper.steps() == []
    assert set(keeper.stage.store.list("")) - set(keeper.stage.store.list("datasets")) == {
        delta_key(first.digest)
    }


@pytest.mark.parametrize("part", ["state", "delta", "no delta"])
def test_a_checkpoint_with_one_damaged_part_does_not_stand_in_the_way(
    keeper: Keeper, part: str
) -> None:
    first, second = keeper.save(80), keeper.save(90)
    row = keeper.stage.checkpoints()[0]
    assert row.delta_key is not None
    if part == "no delta":
        keeper.stage.store.delete(row.delta_key)
    else:
        torn = {"state": row.key, "delta": row.delta_key}[part]
        keeper.stage.store.put_bytes(torn, b"torn")
    assert keeper.kept.latest() == (80, b"state 80", first)
    keeper.settle()
    assert keeper.steps() == [80]
    keeper.assert_deltas(first)
    anew = keeper.save(90)
    assert anew == second
    assert keeper.kept.latest() == (90, b"state 90", second)


def test_another_delta_in_its_place_is_no_checkpoint(keeper: Keeper) -> None:
    first = keeper.save(80)
    keeper.save(90)
    row = keeper.stage.checkpoints()[0]
    assert row.delta_key is not None
    keeper.stage.store.put_bytes(row.delta_key, make_delta("of another").encode())
    assert keeper.kept.latest() == (80, b"state 80", first)


def test_a_delta_that_is_removed_before_its_row_is_written_costs_that_checkpoint_alone(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An equal one may be pruned in the very moment in which this one is put."""
    first, second = keeper.save(10), keeper.save(20)
    store = keeper.stage.store
    put = store.put_new

    def put_and_lose(key: str, data: bytes) -> Any:
        stored = put(key, data)
        store.delete(key)
        return stored

    with monkeypatch.context() as patch:
        patch.setattr(store, "put_new", put_and_lose)
        keeper.save(30)
    assert keeper.steps() == [20, 10]
    keeper.assert_deltas(first, second)
    keeper.save(40)
    assert keeper.steps() == [40, 20]

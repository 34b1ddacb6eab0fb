import threading
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from core.errors import BadInput, NotFound, ServiceError, TooLarge, Unavailable
from core.storage import Aligned
from core.storage.buffers import HEAD_BYTES, make_buffer
from core.storage.store import refuse_large
from inference.bank import Bank, DeltaRef, Lease, NoRoom, Resident, release_later

PATIENCE_SECONDS = 10


class Shelf:
    """A store in memory; a key in ``gates`` answers only when its gate is opened."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.gates: dict[str, threading.Event] = {}
        self.reads: list[str] = []
        self.broken: set[str] = set()

    def get_buffer(self, key: str, *, most_bytes: int, aligned: Aligned) -> memoryview:
        self.reads.append(key)
        if key in self.gates:
            assert self.gates[key].wait(PATIENCE_SECONDS)
        if key in self.broken:
            raise OSError("input/output error")
        if key not in self.objects:
            raise NotFound(f"no object {key}", code="object_not_found")
        data = self.objects[key]
        refuse_large(key, len(data), most_bytes)
        buffer = make_buffer(len(data), aligned=aligned(data[:HEAD_BYTES]))
        buffer[:] = data
        return buffer


def materialize(blob: memoryview, ref: DeltaRef) -> Resident:
    if blob[:1] == b"!":
        raise BadInput("corrupt", code="adapter_corrupt")
    return Resident(ref.digest, len(blob), blob, lambda: True)


@pytest.fixture
def shelf() -> Shelf:
    shelf = Shelf()
    for name in "abcdef":
        shelf.objects[name] = name.encode() * 100
    return shelf


def wait_until(holds: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(PATIENCE_SECONDS * 1000):
        if holds():
            return
        pause.wait(0.001)
    raise AssertionError("the condition never came true")


def make_bank(shelf: Shelf, *, device_bytes: int = 10_000, host_bytes: int = 0) -> Bank:
    return Bank(
        shelf,
        materialize,
        device_bytes=device_bytes,
        host_bytes=host_bytes,
        room_wait_seconds=0.05,
    )


def ref(name: str, *, key: str | None = None, base: str = "minilm") -> DeltaRef:
    return DeltaRef(f"sha256:{name}", key or name, base, f"adp_{name}")


def get(bank: Bank, name: str) -> Lease:
    return bank.acquire(ref(name)).result(PATIENCE_SECONDS)


def error_of(future: Future[Lease]) -> ServiceError:
    error = future.exception(PATIENCE_SECONDS)
    assert isinstance(error, ServiceError)
    return error


def test_the_second_request_finds_the_delta_in_memory(shelf: Shelf) -> None:
    bank = make_bank(shelf)
    first, second = get(bank, "a"), get(bank, "a")
    assert first.resident is second.resident
    assert shelf.reads == ["a"]
    assert (bank.state().hits, bank.state().loads) == (1, 1)


def test_requests_at_the_same_time_share_one_load(shelf: Shelf) -> None:
    bank = make_bank(shelf)
    shelf.gates["a"] = threading.Event()
    futures = [bank.acquire(ref("a")) for _ in range(8)]
    shelf.gates["a"].set()
    leases = [future.result(PATIENCE_SECONDS) for future in futures]
    assert shelf.reads == ["a"]
    assert len({id(lease.resident) for lease in leases}) == 1
    assert bank.state().pinned == 1
    for lease in leases:
        lease.release()
    assert bank.state().pinned == 0


def test_a_slow_object_does_not_hold_up_others(shelf: Shelf) -> None:
    bank = make_bank(shelf)
    shelf.gates["a"] = threading.Event()
    slow = bank.acquire(ref("a"))
    assert get(bank, "b").resident.delta == b"b" * 100
    assert not slow.done()
    shelf.gates["a"].set()
    assert slow.result(PATIENCE_SECONDS).resident.delta == b"a" * 100


def test_room_is_made_by_dropping_what_was_unused_longest(shelf: Shelf) -> None:
    bank = make_bank(shelf, device_bytes=300)
    for name in "abc":
        get(bank, name).release()
    get(bank, "a").release()  # b is now the one unused longest
    get(bank, "d").release()
    shelf.reads.clear()
    for name in "acd":
        get(bank, name).release()
    assert shelf.reads == []
    get(bank, "b").release()
    assert shelf.reads == ["b"]
    state = bank.state()
    assert (state.deltas, state.device_bytes, state.evictions) == (3, 300, 2)


def test_a_pinned_delta_is_never_dropped(shelf: Shelf) -> None:
    bank = make_bank(shelf, device_bytes=200)
    pinned = get(bank, "a")
    for name in "bcde":
        get(bank, name).release()
    assert get(bank, "a").resident is pinned.resident
    assert shelf.reads.count("a") == 1


def test_when_everything_is_pinned_the_request_is_sent_away(shelf: Shelf) -> None:
    bank = make_bank(shelf, device_bytes=200)
    first, _second = get(bank, "a"), get(bank, "b")
    refused = error_of(bank.acquire(ref("c")))
    assert isinstance(refused, Unavailable)
    assert refused.code == "bank_full"
    assert refused.retry_after_seconds == 1
    assert bank.state().device_bytes == 200
    first.release()
    first.release()
    assert get(bank, "c").resident.delta == b"c" * 100
    assert bank.state().device_bytes == 200


def test_what_is_asked_all_the_time_keeps_nobody_out(shelf: Shelf) -> None:
    bank = Bank(
        shelf, materialize, device_bytes=100, host_bytes=0, room_wait_seconds=PATIENCE_SECONDS
    )
    running = [get(bank, "a") for _ in range(4)]
    waiting = bank.acquire(ref("b"))
    wait_until(lambda: bool(bank._room_line))
    behind = [bank.acquire_all([ref("a")], patient=False)[0] for _ in range(40)]
    given_up = behind.pop()
    assert given_up.cancel()
    for lease in running:
        assert not waiting.done()
        assert not any(future.done() for future in behind)
        lease.release()
    lease = waiting.result(PATIENCE_SECONDS)
    assert lease.resident.delta == b"b" * 100
    assert all(isinstance(error_of(future), NoRoom) for future in behind)  # their turn to wait
    lease.release()
    assert get(bank, "a").resident.delta == b"a" * 100


def test_a_request_that_cannot_wait_is_told_at_once(shelf: Shelf) -> None:
    bank = Bank(
        shelf, materialize, device_bytes=200, host_bytes=0, room_wait_seconds=PATIENCE_SECONDS
    )
    first, _ = get(bank, "a"), get(bank, "b")
    futures = bank.acquire_all([ref("a"), ref("c")], patient=False)
    assert isinstance(error_of(futures[1]), NoRoom)
    futures[0].result(PATIENCE_SECONDS).release()
    first.release()
    for future in bank.acquire_all([ref("c"), ref("b")], patient=False):
        future.result(PATIENCE_SECONDS)
    assert bank.state().failures == 0


def test_those_who_cannot_wait_do_not_join_a_wait_for_room(shelf: Shelf) -> None:
    """Each of two holds what the other's end would free, and both want the load that needs it."""
    bank = Bank(
        shelf, materialize, device_bytes=200, host_bytes=0, room_wait_seconds=PATIENCE_SECONDS
    )
    shelf.gates["c"] = threading.Event()
    asked = [bank.acquire_all([ref(own), ref("c")], patient=False) for own in "ab"]
    held = [futures[0].result(PATIENCE_SECONDS) for futures in asked]
    waiting = bank.acquire(ref("c"))
    shelf.gates["c"].set()
    for futures, lease in zip(asked, held, strict=True):
        assert isinstance(error_of(futures[1]), NoRoom)
        lease.release()
    assert waiting.result(PATIENCE_SECONDS).resident.delta == b"c" * 100
    assert shelf.reads.count("c") == 1
    assert bank.state().failures == 0


def test_a_request_for_more_than_the_bank_holds_keeps_nobody_waiting(shelf: Shelf) -> None:
    bank = Bank(shelf, materialize, device_bytes=200, host_bytes=0, room_wait_seconds=3600)
    futures = bank.acquire_all([ref("a"), ref("b"), ref("c")], patient=True)
    errors = [future.exception(PATIENCE_SECONDS) for future in futures]
    (refused,) = (error for error in errors if error)
    assert isinstance(refused, ServiceError)
    assert refused.code == "bank_full"


def test_loads_get_room_in_the_order_in_which_they_came(shelf: Shelf) -> None:
    bank = Bank(
        shelf, materialize, device_bytes=100, host_bytes=0, room_wait_seconds=PATIENCE_SECONDS
    )
    lease = get(bank, "a")
    futures = []
    for place, name in enumerate("bcd", start=1):
        futures.append(bank.acquire(ref(name)))
        wait_until(lambda place=place: len(bank._room_line) == place)  # type: ignore[misc]
    for name, future in zip("bcd", futures, strict=True):
        assert not future.done()
        lease.release()
        lease = future.result(PATIENCE_SECONDS)
        assert lease.resident.delta == name.encode() * 100


def test_a_load_waits_a_moment_for_room(shelf: Shelf) -> None:
    bank = Bank(
        shelf,
        materialize,
        device_bytes=100,
        host_bytes=0,
        room_wait_seconds=PATIENCE_SECONDS,
    )
    pinned = get(bank, "a")
    waiting = bank.acquire(ref("b"))
    pinned.release()
    assert waiting.result(PATIENCE_SECONDS).resident.delta == b"b" * 100


def test_a_delta_larger_than_the_bank_is_refused(shelf: Shelf) -> None:
    bank = make_bank(shelf, device_bytes=99)
    assert isinstance(error_of(bank.acquire(ref("a"))), TooLarge)
    assert bank.state().device_bytes == 0


@pytest.mark.parametrize("fault", ["missing", "corrupt", "unreadable"])
def test_a_bad_object_harms_nobody_else_and_is_read_again(shelf: Shelf, fault: str) -> None:
    bank = make_bank(shelf)
    good = shelf.objects["a"]
    if fault == "missing":
        del shelf.objects["a"]
    elif fault == "corrupt":
        shelf.objects["a"] = b"!"
    else:
        shelf.broken.add("a")
    expected = {
        "missing": "object_not_found",
        "corrupt": "adapter_corrupt",
        "unreadable": "storage_unavailable",
    }
    assert error_of(bank.acquire(ref("a"))).code == expected[fault]
    assert get(bank, "b").resident.delta == b"b" * 100
    shelf.objects["a"] = good
    shelf.broken.clear()
    assert get(bank, "a").resident.delta == good
    assert bank.state().device_bytes == 200


def test_a_wrong_key_does_not_fail_those_who_know_the_right_one(shelf: Shelf) -> None:
    bank = make_bank(shelf)
    shelf.gates["nowhere"] = shelf.gates["a"] = threading.Event()
    wrong = bank.acquire(ref("a", key="nowhere"))
    right = bank.acquire(ref("a"))
    shelf.gates["a"].set()
    assert error_of(wrong).code == "object_not_found"
    assert right.result(PATIENCE_SECONDS).resident.delta == b"a" * 100


def test_a_fault_of_the_loader_is_an_answer_too(shelf: Shelf) -> None:
    def broken(blob: bytes, ref: DeltaRef) -> Resident:
        raise RuntimeError(ref.digest)

    bank = Bank(shelf, broken, device_bytes=1000, host_bytes=0)
    error = error_of(bank.acquire(ref("a")))
    assert error.code == "internal_error"
    assert "sha256" not in error.message
    assert bank.state().device_bytes == 0


def test_a_lease_that_nobody_waits_for_is_given_back(shelf: Shelf) -> None:
    bank = make_bank(shelf)
    shelf.gates["a"] = threading.Event()
    abandoned = bank.acquire(ref("a"))
    stays = bank.acquire(ref("a"))
    cancelled = bank.acquire(ref("a"))
    release_later(abandoned)
    cancelled.cancel()
    shelf.gates["a"].set()
    lease = stays.result(PATIENCE_SECONDS)
    abandoned.result(PATIENCE_SECONDS)
    lease.release()
    assert bank.state().pinned == 0


def test_host_memory_saves_reading_and_is_bounded(shelf: Shelf) -> None:
    bank = make_bank(shelf, device_bytes=100, host_bytes=250)
    for name in "abc":
        get(bank, name).release()
    assert bank.state().host_bytes == 200
    get(bank, "b").release()
    assert shelf.reads == ["a", "b", "c"]
    get(bank, "a").release()
    assert shelf.reads == ["a", "b", "c", "a"]


def test_a_discarded_delta_is_read_from_storage_again(shelf: Shelf) -> None:
    bank = make_bank(shelf, host_bytes=1000)
    old = get(bank, "a")
    bank.discard(old.resident)
    new = get(bank, "a")
    assert new.resident is not old.resident
    assert shelf.reads == ["a", "a"]
    old.release()  # must not take the new one's pin
    assert bank.state().pinned == 1

"""The cache of deltas: storage → host memory → device, by digest, bounded in bytes.

A delta is fetched, checked and copied to the device in a pool of loader threads, never on the owner
thread: a slow disk or a broken file costs only the requests that asked for it. Requests that want
the same delta share one load. A delta in use is pinned; room is made by dropping what was unused
longest.

When all is pinned, a request must not hold some of its deltas and wait for the others: two such
requests would wait for each other. So an impatient one fails at once (``NoRoom``), lets go of what
it has, and asks again, patient this time and one at a time. While a patient one waits, nothing is
pinned for others: they queue behind it, so that a stream of requests for what is resident cannot
keep another adapter out.

Knows no model and no file format: what turns bytes into a delta on the device, and proves that it
is the one that was asked for, is ``materialize``.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from core.errors import Internal, NotFound, ServiceError, TooLarge, Unavailable
from core.storage import Aligned, at_start
from inference.objects import Objects

_log = logging.getLogger(__name__)

# Loads wait for storage most of the time; a few that hang must leave threads for the others.
LOADER_THREADS = 16
# How long a load waits for pinned deltas to be let go before its requests are sent away: about as
# long as texts take that are written meanwhile, well below the deadline of a request.
ROOM_WAIT_SECONDS = 10.0


class DeltaStore(Protocol):
    """The part of the object store that the bank reads."""

    def get_buffer(self, key: str, *, most_bytes: int, aligned: Aligned) -> memoryview:
        """Give the object; a missing one raises ``NotFound``, a larger one ``TooLarge``."""
        ...


@dataclass(frozen=True, slots=True)
class DeltaRef:
    """Which delta, and where storage keeps it.

    Attributes:
        digest: What its tensors and manifest must hash to, ``sha256:…``.
        key: Where it lies.
        base_model: The base that it is to act on.
        adapter_id: The adapter in whose name it is asked for; only for messages and receipts.
    """

    digest: str
    key: str
    base_model: str
    adapter_id: str

    @property
    def flight(self) -> tuple[str, str, str]:
        """Requests that agree in this share one load.

        A request with a wrong key or another base must not fail those who know the right ones.
        """
        return self.digest, self.key, self.base_model


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """A delta on the device.

    Attributes:
        digest: Recomputed from the tensors on the device.
        bytes: Memory that they take there.
        delta: The engine's delta; opaque here.
        is_unchanged: True while nobody has written into the tensors since the digest was computed.
    """

    digest: str
    bytes: int
    delta: Any
    is_unchanged: Callable[[], bool]


Materialize = Callable[[memoryview, DeltaRef], Resident]
"""Turns an object into a delta on the device. On a CPU its tensors may lie in the object's own
memory, which nobody else writes to."""


class NoRoom(Unavailable):
    """Everything else is pinned just now, and the request did not say that it can wait."""

    default_code = "bank_full"
    default_retry_after_seconds = 1


@dataclass(slots=True, eq=False)
class _Gathering:
    """What one request asks for together.

    Attributes:
        is_patient: Whether it waits for room.
        pins: Pins that it holds.
    """

    is_patient: bool
    pins: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Wanted:
    """One delta of a request, and where its lease is waited for."""

    ref: DeltaRef
    future: "Future[Lease]"
    gathering: _Gathering


class Lease:
    """A pin on a resident delta; let go exactly once with ``release``."""

    def __init__(self, bank: "Bank", resident: Resident, gathering: _Gathering) -> None:
        self.resident = resident
        self._gathering = gathering
        self._bank: Bank | None = bank

    def release(self) -> None:
        """Take the pin away; further calls do nothing."""
        bank, self._bank = self._bank, None
        if bank is not None:
            bank._unpin(self.resident, self._gathering)


@dataclass(slots=True)
class BankState:
    """Counts for /metrics."""

    hits: int = 0
    loads: int = 0
    failures: int = 0
    evictions: int = 0
    load_seconds: float = 0.0
    deltas: int = 0
    pinned: int = 0
    device_bytes: int = 0
    host_bytes: int = 0


@dataclass(slots=True, eq=False)
class _Entry:
    resident: Resident
    pins: int = 0


@dataclass(slots=True)
class _Flight:
    """One load and everybody who waits for it."""

    ref: DeltaRef
    waiters: list[_Wanted] = field(default_factory=list)
    reserved: int = 0
    """Bytes of room that the load holds until its delta is resident."""

    @property
    def patient(self) -> _Gathering | None:
        """For whom it waits for room; None: nobody can wait."""
        found = (wanted.gathering for wanted in self.waiters if wanted.gathering.is_patient)
        return next(found, None)


class Bank:
    """Deltas on the device, loaded when asked for."""

    def __init__(
        self,
        store: DeltaStore,
        materialize: Materialize,
        *,
        device_bytes: int,
        host_bytes: int,
        room_wait_seconds: float = ROOM_WAIT_SECONDS,
        aligned: Aligned = at_start,
        on_drop: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Make an empty bank.

        Args:
            store: Where deltas come from.
            materialize: Turns an object into a checked delta on the device; called in loader
                threads.
            device_bytes: Bound of all resident deltas together.
            host_bytes: Bound of the objects kept in host memory; 0 keeps none.
            room_wait_seconds: How long a load waits while everything else is pinned.
            aligned: Which byte of an object is to be aligned in memory.
            on_drop: Told the digest of every delta that leaves, so that nobody keeps its memory;
                must not call the bank.
        """
        self._store = store
        self._materialize = materialize
        self._device_bound = device_bytes
        self._room_wait_seconds = room_wait_seconds
        self._aligned = aligned
        self._on_drop = on_drop
        self._changed = threading.Condition()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # unused longest first
        self._flights: dict[tuple[str, str, str], _Flight] = {}
        self._room_line: deque[_Flight] = deque()  # loads that wait for room, in order of arrival
        self._held_back: list[_Wanted] = []  # they would pin while others wait
        self._pins = 0
        self._host = Objects(host_bytes)
        self._device_used = 0  # residents, and loads that have room but are not resident yet
        self._counts = BankState()
        self._pool = ThreadPoolExecutor(LOADER_THREADS, thread_name_prefix="delta-loader")

    def acquire(self, ref: DeltaRef) -> Future[Lease]:
        """Ask for one delta and wait for room; see ``acquire_all``.

        Args:
            ref: The delta.

        Returns:
            The future lease.
        """
        return self.acquire_all([ref], patient=True)[0]

    def acquire_all(self, refs: Sequence[DeltaRef], *, patient: bool) -> list[Future[Lease]]:
        """Ask for the deltas of one request to be resident and pinned.

        Args:
            refs: Each delta once. One that is resident already is found by its digest alone.
            patient: Wait for room where all is pinned, which only one request at a time should;
                others get ``NoRoom``.

        Returns:
            A future lease each. Errors are ``ServiceError``: ``object_not_found``,
            ``adapter_corrupt``, ``too_large``, ``bank_full``, ``storage_unavailable``. Who no
            longer waits must still release the lease when it comes (``release_later``); cancelling
            the future is allowed.
        """
        gathering = _Gathering(patient)
        wanted = [_Wanted(ref, Future(), gathering) for ref in refs]
        begins: list[_Flight] = []
        with self._changed:
            if self._room_line and not patient:
                self._held_back += wanted
            else:
                begins = self._serve(wanted)
        self._submit(begins)
        return [one.future for one in wanted]

    def discard(self, resident: Resident) -> None:
        """Forget a resident whose tensors cannot be trusted any more; who uses it keeps his own."""
        with self._changed:
            entry = self._entries.get(resident.digest)
            if entry is not None and entry.resident is resident:
                del self._entries[resident.digest]
                self._device_used -= resident.bytes
                self._host.drop(resident.digest)
                self._on_drop(resident.digest)
                self._changed.notify_all()

    def state(self) -> BankState:
        """Counts as of now."""
        with self._changed:
            return replace(
                self._counts,
                deltas=len(self._entries),
                pinned=sum(1 for entry in self._entries.values() if entry.pins),
                device_bytes=self._device_used,
                host_bytes=self._host.bytes,
            )

    def close(self) -> None:
        """Begin no more loads; loads that hang in storage are left behind."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    # ---- loader threads ----

    def _fly(self, flight: _Flight) -> None:
        begun = time.monotonic()
        try:
            resident = self._load(flight)
        except ServiceError as error:
            self._land(flight, None, error)
        except Exception:  # noqa: BLE001 - edge of a thread: its requests must have an answer
            _log.exception("loading delta %s failed", flight.ref.digest)
            self._land(flight, None, Internal("the adapter could not be loaded"))
        else:
            with self._changed:
                self._counts.loads += 1
                self._counts.load_seconds += time.monotonic() - begun
            self._land(flight, resident, None)

    def _load(self, flight: _Flight) -> Resident:
        ref = flight.ref
        with self._changed:
            blob = self._host.get(ref.digest)
        if blob is None:
            blob = self._fetch(ref)
        self._make_room(flight, len(blob))  # a little more than its tensors: the header
        try:
            resident = self._materialize(blob, ref)
        except ServiceError:
            with self._changed:
                self._host.drop(ref.digest)  # the next request finds what storage holds
            raise
        with self._changed:
            self._host.keep(ref.digest, blob)
        return resident

    def _fetch(self, ref: DeltaRef) -> memoryview:
        try:
            return self._store.get_buffer(
                ref.key, most_bytes=self._device_bound, aligned=self._aligned
            )
        except NotFound as error:
            raise NotFound(
                f"storage holds no weights for adapter {ref.adapter_id}", code="object_not_found"
            ) from error
        except TooLarge as error:
            raise TooLarge(
                f"adapter {ref.adapter_id} is larger than the {self._device_bound} bytes "
                "that this process keeps for adapters"
            ) from error
        except OSError as error:
            raise Unavailable(
                f"the stored delta of adapter {ref.adapter_id} cannot be read; try again later",
                code="storage_unavailable",
            ) from error

    def _make_room(self, flight: _Flight, size: int) -> None:
        """Reserve bytes, dropping what is unused longest; wait a little when all is pinned.

        Raises:
            TooLarge: The delta does not fit into an empty bank.
            NoRoom: All else is pinned, and nobody who waits for the delta can wait for room.
        """
        if size > self._device_bound:
            raise TooLarge(
                f"adapter {flight.ref.adapter_id} takes {size} bytes and this process keeps "
                f"{self._device_bound} bytes for all adapters together"
            )
        with self._changed:
            if not self._evict_down_to(self._device_bound - size):
                patient = flight.patient
                if patient is None:
                    raise NoRoom(self._full())
                self._send_away(flight)
                self._room_line.append(flight)
                try:
                    self._wait_for_room(flight, patient, size)
                finally:
                    self._room_line.remove(flight)
                    if not self._room_line:
                        self._serve_held_back()
                    self._changed.notify_all()
            flight.reserved = size
            self._device_used += size

    def _send_away(self, flight: _Flight) -> None:
        """Tell those who cannot wait for room (``_changed`` held).

        They asked while the delta was read, before it was known that there is no room. Left in the
        load they would hold their other deltas, for which it waits.
        """
        impatient = [wanted for wanted in flight.waiters if not wanted.gathering.is_patient]
        flight.waiters = [wanted for wanted in flight.waiters if wanted.gathering.is_patient]
        for wanted in impatient:
            if wanted.future.set_running_or_notify_cancel():
                wanted.future.set_exception(NoRoom(self._full()))

    def _wait_for_room(self, flight: _Flight, patient: _Gathering, size: int) -> None:
        """Wait for this load's turn and for its bytes (``_changed`` held).

        Raises:
            Unavailable: Everything else stayed pinned (code ``bank_full``).
        """

        def has_room() -> bool:
            is_first = self._room_line[0] is flight
            return is_first and self._evict_down_to(self._device_bound - size)

        def is_hopeless() -> bool:
            # nothing but the request's own deltas is pinned, or will be
            arriving = any(other.reserved for other in self._flights.values())
            is_first = self._room_line[0] is flight
            return is_first and self._pins == patient.pins and not arriving

        self._changed.wait_for(lambda: has_room() or is_hopeless(), self._room_wait_seconds)
        if not has_room():
            raise Unavailable(self._full(), code="bank_full", retry_after_seconds=1)

    def _full(self) -> str:
        return (
            f"all {self._device_bound} bytes kept for adapters are in use by running requests; ask "
            "for fewer adapters in one call or try again"
        )

    def _land(self, flight: _Flight, resident: Resident | None, error: ServiceError | None) -> None:
        """Give every waiter his lease or the error."""
        leases: list[tuple[Future[Lease], Lease]] = []
        with self._changed:
            if isinstance(error, NoRoom) and flight.patient is not None:
                self._submit([flight])  # a patient request joined when it was given up already
                return
            del self._flights[flight.ref.flight]
            # from here on nobody can join, and a waiter that is not cancelled now will be answered
            waiters = [w for w in flight.waiters if w.future.set_running_or_notify_cancel()]
            self._device_used -= flight.reserved
            if resident is None:
                self._counts.failures += not isinstance(error, NoRoom)
            else:
                # the same digest may have come in by another flight meanwhile: the first one stays
                entry = self._entries.get(resident.digest)
                if entry is None:
                    entry = self._entries[resident.digest] = _Entry(resident)
                    self._device_used += resident.bytes
                leases = [(w.future, self._pin(entry, w.gathering)) for w in waiters]
                self._evict_down_to(self._device_bound)
            self._changed.notify_all()
        for future, lease in leases:
            future.set_result(lease)
        if error is not None:
            for waiter in waiters:
                waiter.future.set_exception(error)

    # ---- inside, ``_changed`` held ----

    def _submit(self, flights: Sequence[_Flight]) -> None:
        for flight in flights:
            self._pool.submit(self._fly, flight)

    def _serve(self, wanted: Sequence[_Wanted]) -> list[_Flight]:
        """Pin what is resident, join loads; loads that are to begin are returned."""
        begins = []
        for one in wanted:
            entry = self._entries.get(one.ref.digest)
            if entry is not None:
                if one.future.set_running_or_notify_cancel():
                    self._counts.hits += 1
                    one.future.set_result(self._pin(entry, one.gathering))
                continue
            flight = self._flights.get(one.ref.flight)
            if flight is None:
                flight = self._flights[one.ref.flight] = _Flight(one.ref)
                begins.append(flight)
            flight.waiters.append(one)
        return begins

    def _serve_held_back(self) -> None:
        """Serve those who waited for the line to clear."""
        held, self._held_back = self._held_back, []
        self._submit(self._serve(held))

    def _pin(self, entry: _Entry, gathering: _Gathering) -> Lease:
        entry.pins += 1
        gathering.pins += 1
        self._pins += 1
        self._entries.move_to_end(entry.resident.digest)
        return Lease(self, entry.resident, gathering)

    def _evict_down_to(self, bound: int) -> bool:
        """Drop unpinned deltas, unused longest first, until at most ``bound`` bytes are used."""
        while self._device_used > bound:
            # Pinned ones were used last, so the first that is not stands near the front.
            unpinned = (digest for digest, entry in self._entries.items() if not entry.pins)
            digest = next(unpinned, None)
            if digest is None:
                return False
            self._device_used -= self._entries.pop(digest).resident.bytes
            self._counts.evictions += 1
            self._on_drop(digest)
        return True

    def _unpin(self, resident: Resident, gathering: _Gathering) -> None:
        with self._changed:
            gathering.pins -= 1
            self._pins -= 1
            entry = self._entries.get(resident.digest)
            # a discarded resident may have been replaced under the same digest
            if entry is not None and entry.resident is resident:
                entry.pins -= 1
            self._changed.notify_all()


def release_later(future: Future[Lease]) -> None:
    """Release a lease that nobody waits for any more, now or as soon as it comes."""

    def release(done: Future[Lease]) -> None:
        if not done.cancelled() and done.exception() is None:
            done.result().release()

    future.add_done_callback(release)

"""The lease of a running attempt: renewed in the background, judged by this machine's own clock.

The beat runs in a thread of its own, because a query may hang for minutes on a broken network,
and the supervisor must still notice that its lease has passed and stop by itself (self-fencing):
from that moment another worker may own the job. Knows no processes and no training.
"""

import logging
import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

# A user who cancels waits for this and for the rest of a forward; a read by primary key is cheap.
_LISTEN_SECONDS = 0.25

_log = logging.getLogger(__name__)


class LeaseState(StrEnum):
    """What the supervisor may assume about its attempt."""

    HELD = "held"
    # The database says that another attempt owns the job, or that the job is over.
    FENCED = "fenced"
    # The database could not be reached until the lease had passed.
    LAPSED = "lapsed"


class Unreachable(Exception):
    """The database cannot be reached at the moment; what was asked may be asked again."""


class Pulse(Protocol):
    """One renewal of the lease."""

    def __call__(self) -> str | None:
        """Renew the lease and return the owner's wish (``cancel``, ``pause``) or None.

        Raises:
            Fenced: The attempt does not own the job any more.
            Unreachable: The database cannot be reached.
        """


class Listen(Protocol):
    """One look at the wish between two renewals."""

    def __call__(self) -> str | None:
        """Return the owner's wish (``cancel``, ``pause``) or None.

        Raises:
            Unreachable: The database cannot be reached.
        """


class Fenced(Exception):
    """Another attempt owns the job; whoever sees this must write nothing more."""


class Heart:
    """Renews one lease every ``heartbeat_seconds`` until it is stopped, fenced or lapsed."""

    def __init__(
        self,
        pulse: Pulse,
        listen: Listen,
        *,
        claimed_at: float,
        lease_seconds: float,
        heartbeat_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare the heart of a claim; ``start`` makes it beat.

        Args:
            pulse: Renews the lease once.
            listen: Reads the wish, several times between two renewals.
            claimed_at: ``clock()`` from *before* the claim was sent: the lease of the database
                cannot have begun earlier.
            lease_seconds: Length of the lease that a renewal gives.
            heartbeat_seconds: Pause between two renewals.
            clock: Monotonic seconds.
        """
        self._pulse = pulse
        self._listen = listen
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._lock = threading.Lock()
        self._valid_until = claimed_at + lease_seconds
        self._fenced = False
        self._wish: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Beat until ``stop``."""
        self._thread.start()

    def stop(self) -> None:
        """Stop beating. Does not wait: a beat that hangs in the network may take long."""
        self._stop.set()

    @property
    def state(self) -> LeaseState:
        """The lease as of now."""
        with self._lock:
            if self._fenced:
                return LeaseState.FENCED
            if self._clock() >= self._valid_until:
                return LeaseState.LAPSED
            return LeaseState.HELD

    @property
    def wish(self) -> str | None:
        """What the job's owner wants, as of the last beat or look; a wish is never taken back."""
        with self._lock:
            return self._wish

    def persist(self, write: Callable[[], bool]) -> bool:
        """Do a fenced write, again and again while the database is away and the lease holds.

        Args:
            write: One transaction; returns False when it was fenced, raises ``Unreachable``.

        Returns:
            True when it was written; False when the attempt is fenced or its lease has passed.
        """
        pause_seconds = 0.1
        while True:
            try:
                return write()
            except Unreachable:
                if self.state is not LeaseState.HELD or self._stop.wait(pause_seconds):
                    return False
                pause_seconds = min(pause_seconds * 2, self._heartbeat_seconds)

    def _beat(self) -> None:
        while self._listen_until_due():
            sent_at = self._clock()
            try:
                wish = self._pulse()
            except Fenced:
                with self._lock:
                    self._fenced = True
                return
            except Unreachable as error:
                _log.warning("heartbeat failed, lease still runs: %s", error)
                continue
            with self._lock:
                self._valid_until = max(self._valid_until, sent_at + self._lease_seconds)
                self._wish = wish or self._wish

    def _listen_until_due(self) -> bool:
        """Wait for the next beat and look for a wish meanwhile; False: stop beating."""
        due_at = time.monotonic() + self._heartbeat_seconds
        while (left_seconds := due_at - time.monotonic()) > 0:
            if self._stop.wait(min(left_seconds, _LISTEN_SECONDS)):
                return False
            if self.wish is None and left_seconds > _LISTEN_SECONDS:
                self._look()
        return not self._stop.is_set()

    def _look(self) -> None:
        try:
            wish = self._listen()
        except Unreachable:
            return  # the next beat says so
        with self._lock:
            self._wish = wish or self._wish

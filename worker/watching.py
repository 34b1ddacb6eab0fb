"""One attempt in a trainer child, from its handing over to its end.

    wait for a child ─▶ hand over ─▶ look, again and again ─▶ verdict
                          relay cancel, pause, drain ─ kill what does not obey or hangs

Knows processes and the attempt's lease; no rows, and not what is attempted.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from worker.failures import explain_death, explain_hang
from worker.heartbeat import Heart, LeaseState, Unreachable
from worker.protocol import OBEYED, Failure, Outcome, Wish
from worker.trainer_slot import TrainerChild

_log = logging.getLogger(__name__)

Own = TypeVar("Own")

# How often lease, wishes and signs of life are looked at; the end of a job is noticed at once.
LOOK_SECONDS = 0.1
# A killed process is gone within moments; one that sleeps in the kernel may take longer.
_BURIAL_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Patience of a supervisor, all in seconds."""

    lease_seconds: float
    heartbeat_seconds: float
    cancel_grace_seconds: float
    # No message at all from the child: stopped, swapped out or stuck in the kernel.
    silence_seconds: float
    # Messages come, but the training thread makes no step, phase or log line.
    stall_seconds: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an attempt ended."""

    outcome: Outcome
    failure: Failure | None = None


def take(name: str, claim: Callable[[str], Own | None]) -> Own | None:
    """Claim what a message names.

    Args:
        name: Its id.
        claim: One transaction.

    Returns:
        The claim; None when it is not to be had, or when nobody can say.
    """
    try:
        own = claim(name)
    except Unreachable as error:
        _log.warning("%s not claimed, the sweep sends it again: %s", name, error)
        return None
    if own is None:
        _log.info("message for %s dropped: nothing to claim", name)
    return own


@contextmanager
def beating(
    beat: Callable[[], str | None],
    read_wish: Callable[[], str | None],
    *,
    claimed_at: float,
    limits: Limits,
) -> Iterator[Heart]:
    """Hold a lease meanwhile.

    Args:
        beat: Renews it once; returns the owner's wish.
        read_wish: Reads the wish alone.
        claimed_at: Monotonic seconds from *before* the claim was sent: the lease of the database
            cannot have begun earlier.
        limits: Lengths of lease and pauses.

    Yields:
        What holds it.
    """
    heart = Heart(
        beat,
        read_wish,
        claimed_at=claimed_at,
        lease_seconds=limits.lease_seconds,
        heartbeat_seconds=limits.heartbeat_seconds,
    )
    heart.start()
    try:
        yield heart
    finally:
        heart.stop()


class AttemptWatch:
    """Watches one attempt in one child until there is a verdict."""

    def __init__(
        self,
        name: str,
        attempt: int,
        find_child: Callable[[float], TrainerChild | None],
        heart: Heart,
        draining: threading.Event,
        limits: Limits,
    ) -> None:
        """Prepare; nothing is watched.

        Args:
            name: Id of what is attempted: a job or an estimate.
            attempt: Its number.
            find_child: Waits so many seconds for a child that can take it.
            heart: Holds its lease.
            draining: Set once the worker is to shut down.
            limits: Patience.
        """
        self._name, self._attempt = name, attempt
        self._find_child = find_child
        self._heart = heart
        self._draining = draining
        self._limits = limits
        self._asked: Wish | None = None
        self._asked_at = 0.0
        self.child: TrainerChild | None = None

    def run(
        self,
        *,
        hand_over: Callable[[TrainerChild], None] | None = None,
        at_each_look: Callable[[TrainerChild], None] | None = None,
    ) -> Verdict:
        """Wait for the attempt's end in a child, whatever it is.

        Args:
            hand_over: Gives the attempt to the child once there is one; None: it has been given.
            at_each_look: Called at every look.

        Returns:
            The end.
        """
        started_at = time.monotonic()
        while (child := self._find_child(LOOK_SECONDS)) is None:
            verdict = self._without_child(time.monotonic() - started_at)
            if verdict is not None:
                return verdict
        self.child = child
        if hand_over is not None:
            hand_over(child)
        while (verdict := self._look(child)) is None:
            if at_each_look is not None:
                at_each_look(child)
        return verdict

    def _look(self, child: TrainerChild) -> Verdict | None:
        ended = child.wait_ended(self._name, self._attempt, LOOK_SECONDS)
        if ended is not None:
            return Verdict(ended.outcome, ended.failure)
        if child.returncode is not None:
            return self._judge_death(child)
        verdict = self._reason_to_kill(child)
        if verdict is not None:
            child.kill(self._name)
            # It must be gone before it can be had by another: no step is done twice.
            child.wait_dead(_BURIAL_SECONDS)
        return verdict

    def _judge_death(self, child: TrainerChild) -> Verdict:
        """A child that ended because of another costs this one no attempt."""
        if child.killed_for not in (None, self._name):
            return Verdict(Outcome.DRAINED)
        return Verdict(Outcome.FAILED, explain_death(child.returncode))

    def _without_child(self, waited_seconds: float) -> Verdict | None:
        if self._heart.state is not LeaseState.HELD:
            return Verdict(Outcome.FENCED)
        wish = self._wish()
        if wish is not None:
            return Verdict(OBEYED[wish])
        if waited_seconds > self._limits.stall_seconds:
            return Verdict(Outcome.FAILED, explain_death(None))
        return None

    def _reason_to_kill(self, child: TrainerChild) -> Verdict | None:
        if self._heart.state is not LeaseState.HELD:
            _log.warning("%s: lease is %s", self._name, self._heart.state)
            return Verdict(Outcome.FENCED)
        wish = self._wish()
        if wish is not None and wish is not self._asked:
            child.ask(self._name, self._attempt, wish)
            self._asked, self._asked_at = wish, self._asked_at or time.monotonic()
        asked_seconds = time.monotonic() - self._asked_at
        if self._asked is not None and asked_seconds > self._limits.cancel_grace_seconds:
            return Verdict(OBEYED[self._asked])
        if child.silent_seconds() > self._limits.silence_seconds:
            return Verdict(Outcome.FAILED, explain_hang(self._limits.silence_seconds))
        if child.stalled_seconds() > self._limits.stall_seconds:
            return Verdict(Outcome.FAILED, explain_hang(self._limits.stall_seconds))
        return None

    def _wish(self) -> Wish | None:
        # What the owner wants goes before what this worker wants.
        if self._heart.wish is not None:
            return Wish(self._heart.wish)
        return Wish.DRAIN if self._draining.is_set() else None

"""The task that has an estimate measured: claimed, beaten for and watched as a job is.

It holds a whole slot, so that nothing trains in the child meanwhile, and takes one only when no job
has it: what is measured is not disturbed, and disturbs nobody.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from worker.heartbeat import Heart
from worker.protocol import Failure, Outcome, Wish
from worker.trainer_slot import TrainerSlot
from worker.watching import AttemptWatch, Limits, Verdict, beating, take

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ClaimedEstimate:
    """What a supervisor knows of its estimate."""

    estimate_id: str
    attempt: int
    may_retry: bool


class Rows(Protocol):
    """The estimate's row, as its supervisor may change it; each method is one transaction.

    All raise ``Unreachable`` when the database is away; the fenced ones return False, and
    ``beat`` raises ``Fenced``, when the attempt does not own the estimate any more.
    """

    def claim(self, estimate_id: str) -> ClaimedEstimate | None:
        """Take the estimate; None when it is not to be had."""

    def beat(self, own: ClaimedEstimate) -> str | None:
        """Renew the lease; return the owner's wish."""

    def read_wish(self, own: ClaimedEstimate) -> str | None:
        """The owner's wish, cheaper than by a beat; None when the attempt is fenced."""

    def finish_cancelled(self, own: ClaimedEstimate) -> bool:
        """The estimate is over because its owner cancelled it."""

    def finish_failed(self, own: ClaimedEstimate, failure: Failure) -> bool:
        """The estimate is over and has an error."""

    def release_drained(self, own: ClaimedEstimate) -> bool:
        """Back to the queue because this worker shuts down; counts as no loss."""

    def release_failed(self, own: ClaimedEstimate, failure: Failure) -> bool:
        """Back to the queue; nobody claims it for a while when the failure was an outage."""


class Measurer:
    """Runs the estimates of one worker process; ``measure`` may run in several threads."""

    def __init__(
        self,
        *,
        rows: Rows,
        send: Callable[[str], bool],
        slot: Callable[[], AbstractContextManager[TrainerSlot]],
        draining: threading.Event,
        limits: Limits,
    ) -> None:
        """Put a measurer over slots that jobs use as well.

        Args:
            rows: The rows of the estimates.
            send: Sends an estimate's message again.
            slot: Gives a slot that nobody else uses meanwhile.
            draining: Set once the worker is to shut down.
            limits: Patience.
        """
        self._rows = rows
        self._send = send
        self._slot = slot
        self._draining = draining
        self._limits = limits

    def measure(self, estimate_id: str) -> None:
        """Body of the task ``tunery.estimate``.

        Args:
            estimate_id: From the message; everything else comes from the database.
        """
        if self._draining.is_set():
            self._send(estimate_id)
            return
        with self._slot() as slot:
            claimed_at = time.monotonic()
            own = take(estimate_id, self._rows.claim)
            if own is not None:
                self._watch(own, slot, claimed_at)

    def _watch(self, own: ClaimedEstimate, slot: TrainerSlot, claimed_at: float) -> None:
        rows, limits = self._rows, self._limits
        with beating(
            lambda: rows.beat(own),
            lambda: rows.read_wish(own),
            claimed_at=claimed_at,
            limits=limits,
        ) as heart:
            watch = AttemptWatch(
                own.estimate_id, own.attempt, slot.current, heart, self._draining, limits
            )
            verdict = watch.run(hand_over=lambda child: child.measure(own.estimate_id, own.attempt))
            self._conclude(own, heart, verdict)

    def _conclude(self, own: ClaimedEstimate, heart: Heart, verdict: Verdict) -> None:
        _log.info("%s attempt %d: %s", own.estimate_id, own.attempt, verdict)
        outcome, failure = verdict.outcome, verdict.failure
        if outcome is Outcome.FAILED and heart.wish == Wish.CANCEL:
            # It died on the way to what its owner wanted anyway.
            outcome = Outcome.CANCELLED
        if outcome is Outcome.CANCELLED:
            heart.persist(lambda: self._rows.finish_cancelled(own))
        elif outcome is Outcome.DRAINED:
            if heart.persist(lambda: self._rows.release_drained(own)):
                self._send(own.estimate_id)
        elif outcome is Outcome.FAILED and failure is not None:
            self._conclude_failed(own, heart, failure)

    def _conclude_failed(self, own: ClaimedEstimate, heart: Heart, failure: Failure) -> None:
        if not failure.retry or not own.may_retry:
            heart.persist(lambda: self._rows.finish_failed(own, failure))
            return
        released = heart.persist(lambda: self._rows.release_failed(own, failure))
        # What everybody needs is away: the sweep sends it in a while.
        if released and not failure.outage:
            self._send(own.estimate_id)

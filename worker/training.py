"""The supervising task: one claimed job from the first beat to the last write.

    claim ─▶ hand to the trainer child ─▶ watch ─▶ conclude
               beat (own thread) ─ relay cancel, pause, drain ─ kill what does not obey or hangs

While the child says that more jobs on its base would do well, the task takes them from the queue
and watches each in a thread of its own: one claim, one lease, one end for every job.

The task itself computes nothing. Whatever happens to it, the database decides: every write is
fenced by the attempt, and a supervisor that cannot renew its lease kills its child by itself.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

from core.queue import ADVANCE_TASK
from worker.heartbeat import Heart, Unreachable
from worker.protocol import Failure, Outcome, Wish
from worker.trainer_slot import TrainerChild, TrainerSlot
from worker.watching import LOOK_SECONDS, AttemptWatch, Limits, Verdict, beating, take

_log = logging.getLogger(__name__)

# How often the queue is looked at for a job that may train beside those at work.
_INVITE_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """What a supervisor knows of its job."""

    job_id: str
    tenant_id: str
    attempt: int
    max_attempts: int
    priority: int = 0
    sweep_id: str | None = None


class Attempts(Protocol):
    """The job's row, as a supervisor may change it; each method is one transaction.

    All raise ``Unreachable`` when the database is away; the fenced ones return False, and
    ``beat`` raises ``Fenced``, when the attempt does not own the job any more.
    """

    def claim(self, job_id: str) -> ClaimedJob | None:
        """Take the job; None when it is not to be had (a second message, a job that is over)."""

    def claim_beside(self, job: ClaimedJob) -> ClaimedJob | None:
        """Take the next job of the queue if it may train beside this one, else None."""

    def beat(self, job: ClaimedJob) -> str | None:
        """Renew the lease; return the owner's wish."""

    def read_wish(self, job: ClaimedJob) -> str | None:
        """The owner's wish, cheaper than by a beat; None when the attempt is fenced."""

    def finish_cancelled(self, job: ClaimedJob) -> bool:
        """The job is over because its owner cancelled it."""

    def finish_paused(self, job: ClaimedJob) -> bool:
        """The job rests until its owner resumes it."""

    def finish_failed(self, job: ClaimedJob, failure: Failure) -> bool:
        """The job is over and has an error."""

    def release_drained(self, job: ClaimedJob) -> bool:
        """Back to the queue because this worker shuts down; costs the job no attempt."""

    def release_failed(self, job: ClaimedJob, failure: Failure) -> bool:
        """Back to the queue after a failure that another attempt may not meet."""

    def forget_checkpoints(self, job: ClaimedJob) -> None:
        """Delete the checkpoints of a job that is over."""


class Sender(Protocol):
    """Sends messages; False when the broker is down (the recovery sweep sends them later)."""

    def send_training(self, job_id: str, *, priority: int = 0) -> bool:
        """Tell that a job is queued."""

    def send_deliveries(self, object_id: str) -> bool:
        """Tell that something has ended of which webhooks may want to know."""

    def send_housekeeping(self, task: str, id: str) -> bool:
        """Tell of other work."""


class Supervisor:
    """Runs the training tasks of one worker process; ``train`` may run in several threads."""

    def __init__(
        self,
        *,
        attempts: Attempts,
        sender: Sender,
        slots: list[TrainerSlot],
        draining: threading.Event,
        limits: Limits,
        jobs_together: int = 1,
    ) -> None:
        """Put a supervisor over slots whose children are being started.

        Args:
            attempts: The rows of the jobs.
            sender: Sends a job's message again.
            slots: One per task that may run at a time.
            draining: Set once the worker is to shut down.
            limits: Patience.
            jobs_together: Most jobs that one child may train at a time.
        """
        self._jobs_together = jobs_together
        self._attempts = attempts
        self._sender = sender
        self._draining = draining
        self._limits = limits
        self._slots: SimpleQueue[TrainerSlot] = SimpleQueue()
        for slot in slots:
            self._slots.put(slot)

    def train(self, job_id: str) -> None:
        """Body of the task ``tunery.train``.

        Args:
            job_id: From the message; everything else comes from the database.
        """
        if self._draining.is_set():
            self._sender.send_training(job_id)
            return
        claimed_at = time.monotonic()
        job = take(job_id, self._attempts.claim)
        if job is None:
            return
        with self._beating(job, claimed_at) as heart, self.slot() as slot:
            guests = _Guests()
            watch = self._watch(job, slot.current, heart)
            verdict = watch.run(
                hand_over=lambda child: child.run(job.job_id, job.attempt),
                at_each_look=lambda child: self._invite(job, child, guests),
            )
            self._conclude(job, heart, verdict)
            heart.stop()
            # The child is free only when those that joined have ended too.
            while guests.wait(LOOK_SECONDS):
                if watch.child is not None:
                    self._invite(job, watch.child, guests)

    @contextmanager
    def slot(self) -> Iterator[TrainerSlot]:
        """A slot that nobody else uses meanwhile.

        Yields:
            The slot, once there is one.
        """
        slot = self._slots.get()
        try:
            yield slot
        finally:
            self._slots.put(slot)

    def _watch(
        self,
        job: ClaimedJob,
        find_child: Callable[[float], TrainerChild | None],
        heart: Heart,
    ) -> AttemptWatch:
        return AttemptWatch(
            job.job_id, job.attempt, find_child, heart, self._draining, self._limits
        )

    def _beating(self, job: ClaimedJob, claimed_at: float) -> AbstractContextManager[Heart]:
        attempts = self._attempts
        return beating(
            lambda: attempts.beat(job),
            lambda: attempts.read_wish(job),
            claimed_at=claimed_at,
            limits=self._limits,
        )

    def _invite(self, host: ClaimedJob, child: TrainerChild, guests: "_Guests") -> None:
        """Take one more job for a child, if there is room, time and one that fits."""
        is_full = len(guests) + 1 >= self._jobs_together
        if is_full or child.room < 1 or self._draining.is_set() or not guests.is_time():
            return
        if host.attempt > 1:
            return  # it may be why its last trainer was lost: nobody else is put at risk
        claimed_at = time.monotonic()
        try:
            job = self._attempts.claim_beside(host)
        except Unreachable:
            return
        if job is not None:
            child.run(job.job_id, job.attempt)
            guests.add(lambda: self._watch_guest(job, child, claimed_at))

    def _watch_guest(self, job: ClaimedJob, child: TrainerChild, claimed_at: float) -> None:
        with self._beating(job, claimed_at) as heart:
            self._conclude(job, heart, self._watch(job, lambda _: child, heart).run())

    def _conclude(self, job: ClaimedJob, heart: Heart, verdict: Verdict) -> None:
        self._write_end(job, heart, verdict)
        if job.sweep_id is not None:
            self._sender.send_housekeeping(ADVANCE_TASK, job.sweep_id)

    def _write_end(self, job: ClaimedJob, heart: Heart, verdict: Verdict) -> None:
        _log.info("%s attempt %d: %s", job.job_id, job.attempt, verdict)
        outcome, failure = verdict.outcome, verdict.failure
        if outcome is Outcome.FAILED and heart.wish == Wish.CANCEL:
            # It died on the way to what its owner wanted anyway.
            outcome = Outcome.CANCELLED
        attempts = self._attempts
        if outcome is Outcome.PAUSED and not heart.persist(lambda: attempts.finish_paused(job)):
            # Its owner wished to cancel it while it was being paused.
            outcome = Outcome.CANCELLED
        if outcome is Outcome.CANCELLED:
            if heart.persist(lambda: attempts.finish_cancelled(job)):
                self._sender.send_deliveries(job.job_id)
                attempts.forget_checkpoints(job)
        elif outcome is Outcome.DRAINED:
            if heart.persist(lambda: attempts.release_drained(job)):
                self._sender.send_training(job.job_id, priority=job.priority)
        elif outcome is Outcome.FAILED and failure is not None:
            self._conclude_failed(job, heart, failure)
        elif outcome is Outcome.SUCCEEDED:
            # The child has published: adapter and final state stand in one transaction.
            self._sender.send_deliveries(job.job_id)
            attempts.forget_checkpoints(job)

    def _conclude_failed(self, job: ClaimedJob, heart: Heart, failure: Failure) -> None:
        attempts = self._attempts
        if failure.retry and job.attempt < job.max_attempts:
            released = heart.persist(lambda: attempts.release_failed(job, failure))
            # After an outage nobody may claim it for a while: the sweep sends it then.
            if released and not failure.outage:
                self._sender.send_training(job.job_id, priority=job.priority)
        else:
            # Its checkpoints stay: when the cause is mended, a retry goes on from there.
            if heart.persist(lambda: attempts.finish_failed(job, failure)):
                self._sender.send_deliveries(job.job_id)


class _Guests:
    """Threads that watch the jobs which joined a child; used by the thread of its first job."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        self._looked_at = -_INVITE_SECONDS

    def __len__(self) -> int:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        return len(self._threads)

    def is_time(self) -> bool:
        """Whether the queue may be looked at again; if so, the time runs anew."""
        now = time.monotonic()
        if now - self._looked_at < _INVITE_SECONDS:
            return False
        self._looked_at = now
        return True

    def add(self, watch: Callable[[], None]) -> None:
        """Watch one more."""
        thread = threading.Thread(target=watch, name="guest", daemon=True)
        self._threads.append(thread)
        thread.start()

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for an end; False when nobody is left."""
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout_seconds)
                return True
        return False

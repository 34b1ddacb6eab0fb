"""The supervisor's end of one trainer child: start, talk, watch, kill, replace.

A slot is a place for jobs on one device. Its child outlives the jobs (the base model stays
warm) and is replaced when it dies. Knows processes and pipes; no database, no broker, no torch.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from worker.protocol import (
    Alive,
    Control,
    Ended,
    Measure,
    Message,
    Ready,
    Room,
    Run,
    Wish,
    decode,
    encode,
)

_log = logging.getLogger(__name__)

TRAINER_COMMAND = (sys.executable, "-m", "worker.trainer")

# A child that dies sooner than this after its start (seconds) is started again with a pause, so
# that a broken installation does not spin.
_YOUNG_SECONDS = 10.0
_LONGEST_PAUSE_SECONDS = 10.0


class TrainerChild:
    """One incarnation of the child; every method may be called from any thread."""

    def __init__(self, process: subprocess.Popen[bytes], control: BinaryIO) -> None:
        """Wrap a process that was just started.

        Args:
            process: The child.
            control: The writing end of its control pipe.
        """
        self._process = process
        self._control = control
        self._changed = threading.Condition()
        self._ready = False
        self._ended: dict[tuple[str, int], Ended] = {}
        self._room = 0
        self._killed_for: str | None = None
        self._returncode: int | None = None
        self._ticks = -1
        now = time.monotonic()
        self._spoke_at = now
        self._ticked_at = now

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status (negative: the signal), or None while the child lives."""
        with self._changed:
            return self._returncode

    def wait_ready(self, timeout_seconds: float) -> bool:
        """Wait until the child can take a job; False when it cannot yet or has died."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._ready or self._returncode is not None, timeout_seconds
            )
            return self._ready and self._returncode is None

    @property
    def room(self) -> int:
        """How many more jobs on its base would do well beside those that run."""
        with self._changed:
            return self._room

    @property
    def killed_for(self) -> str | None:
        """The job for whose sake the child was killed, if it was."""
        with self._changed:
            return self._killed_for

    def run(self, job_id: str, attempt: int) -> None:
        """Hand a job over; its end comes through ``wait_ended``."""
        self._hand_over(Run(job_id=job_id, attempt=attempt))

    def measure(self, estimate_id: str, attempt: int) -> None:
        """Hand an estimate over to a child without a job; its end comes as a job's does."""
        self._hand_over(Measure(estimate_id=estimate_id, attempt=attempt))

    def _hand_over(self, work: Run | Measure) -> None:
        with self._changed:
            self._room = max(0, self._room - 1)
            self._ticked_at = self._spoke_at = time.monotonic()
        self._send(work)

    def ask(self, job_id: str, attempt: int, wish: Wish) -> None:
        """Pass a wish on; the training loop obeys at its next step."""
        self._send(Control(job_id=job_id, attempt=attempt, wish=wish))

    def wait_ended(self, job_id: str, attempt: int, timeout_seconds: float) -> Ended | None:
        """Wait for the end of a running job.

        Args:
            job_id: The job.
            attempt: Its attempt.
            timeout_seconds: Longest wait.

        Returns:
            The end that the child reported, or None when it has reported none: it is still at
            work, or it died (see ``returncode``).
        """
        key = (job_id, attempt)
        with self._changed:
            self._changed.wait_for(
                lambda: key in self._ended or self._returncode is not None, timeout_seconds
            )
            return self._ended.pop(key, None)

    def wait_dead(self, timeout_seconds: float) -> bool:
        """Wait until the process is gone; False when it is not within the time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._returncode is not None, timeout_seconds)

    def silent_seconds(self) -> float:
        """Seconds since the last message of any kind."""
        with self._changed:
            return time.monotonic() - self._spoke_at

    def stalled_seconds(self) -> float:
        """Seconds since the training thread last gave a sign of life."""
        with self._changed:
            return time.monotonic() - self._ticked_at

    def kill(self, job_id: str | None = None) -> None:
        """SIGKILL: works on a stopped process too. Nothing to do when it is dead already.

        Args:
            job_id: The job for whose sake; what becomes of the others is not their fault.
        """
        with self._changed:
            if self._returncode is None:
                self._killed_for = self._killed_for or job_id
        self._process.kill()

    def hang_up(self) -> None:
        """Close the control pipe; an idle or running child exits at once."""
        with self._changed:
            self._control.close()

    def accept(self, message: Message) -> None:
        """Take a message of the child (called by the slot's keeper thread)."""
        with self._changed:
            now = time.monotonic()
            self._spoke_at = now
            if isinstance(message, Ready):
                self._ready = True
                self._ticked_at = now
            elif isinstance(message, Ended):
                self._ended[message.job_id, message.attempt] = message
                if message.failure is not None and message.failure.fresh_process:
                    # It is about to exit: the next job must wait for its successor.
                    self._ready = False
                    self._room = 0
                    self._killed_for = message.job_id
            elif isinstance(message, Room):
                self._room = message.jobs
            elif isinstance(message, Alive) and message.ticks != self._ticks:
                self._ticks = message.ticks
                self._ticked_at = now
            self._changed.notify_all()

    def bury(self, returncode: int) -> None:
        """Note that the process has ended (called by the slot's keeper thread)."""
        with self._changed:
            self._returncode = returncode
            self._control.close()
            self._changed.notify_all()

    def _send(self, message: Message) -> None:
        with self._changed:
            if self._control.closed:
                return
            try:
                self._control.write(encode(message))
                self._control.flush()
            except BrokenPipeError:
                # It died a moment ago: the keeper reads the end of its reports and says so.
                _log.info("trainer %s is gone; %s not delivered", self.pid, type(message).__name__)


class TrainerSlot:
    """Keeps one trainer child alive on one device.

    The thread that starts a child must live as long as the child: PR_SET_PDEATHSIG fires when the
    *thread* that forked ends, not the process. So one keeper thread starts, reads and buries it.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> None:
        """Prepare a slot; ``start`` starts the child.

        Args:
            name: For logs.
            command: Program and arguments of the child; the pipe descriptors are appended.
            environment: Whole environment of the child; None is the worker's own.
        """
        self.name = name
        self._command = tuple(command)
        self._environment = environment
        self._changed = threading.Condition()
        self._child: TrainerChild | None = None
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name=f"keeper-{name}", daemon=True)

    def start(self) -> None:
        """Start the keeper, and with it the first child."""
        self._keeper.start()

    def current(self, timeout_seconds: float) -> TrainerChild | None:
        """Return a child that can take a job, or None when there is none within the time."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            self._changed.wait_for(self._has_living_child, timeout_seconds)
            child = self._child
        if child is None or not child.wait_ready(max(0.0, deadline - time.monotonic())):
            return None
        return child

    def close(self, grace_seconds: float = 5.0) -> None:
        """End the child and the keeper; safe to call twice.

        Args:
            grace_seconds: Time that the child has before it is killed.
        """
        self._closing.set()
        child = self._child
        if child is not None:
            child.hang_up()
        self._keeper.join(grace_seconds)
        if child is not None and self._keeper.is_alive():
            child.kill()
            self._keeper.join(grace_seconds)

    def _has_living_child(self) -> bool:
        return self._child is not None and self._child.returncode is None

    def _keep(self) -> None:
        pause_seconds = 0.0
        while not self._closing.wait(pause_seconds):
            started_at = time.monotonic()
            try:
                returncode: int | None = self._serve_one_child()
            except OSError as error:
                # No memory, processes or descriptors for a fork just now: try again later.
                _log.error("slot %s cannot start a trainer: %s", self.name, error)
                returncode = None
            young = time.monotonic() - started_at < _YOUNG_SECONDS
            pause_seconds = min(max(0.25, pause_seconds * 2), _LONGEST_PAUSE_SECONDS)
            pause_seconds = pause_seconds if young else 0.0
            if not self._closing.is_set():
                _log.warning("trainer of slot %s ended with %s; replaced", self.name, returncode)

    def _serve_one_child(self) -> int:
        control_read, control_write = os.pipe()
        report_read, report_write = os.pipe()
        arguments = (
            *("--parent", str(os.getpid())),
            *("--control", str(control_read)),
            *("--report", str(report_write)),
        )
        with os.fdopen(report_read, "rb") as reports:
            try:
                process = subprocess.Popen(  # noqa: S603 our own program, from an argument list
                    [*self._command, *arguments],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(control_read, report_write),
                    # Ctrl-C in a terminal must reach the supervisor only.
                    start_new_session=True,
                    env=self._environment,
                )
            except OSError:
                os.close(control_write)  # tried again for as long as it fails
                raise
            finally:
                os.close(control_read)
                os.close(report_write)
            child = TrainerChild(process, os.fdopen(control_write, "wb"))
            with self._changed:
                self._child = child
                self._changed.notify_all()
            if self._closing.is_set():
                child.hang_up()
            for line in reports:
                child.accept(decode(line))
            returncode = process.wait()
            child.bury(returncode)
            return returncode


def device_environments(
    inherited: Mapping[str, str], slots: int, threads: int | None, *, per_job: int = 1
) -> list[dict[str, str]]:
    """Return the environment of each slot's child: devices of its own, a bounded thread count.

    Args:
        inherited: The worker's own environment.
        slots: Number of slots (jobs at a time).
        threads: OpenMP threads per child, or None to leave the library's choice.
        per_job: Devices of one slot.

    Returns:
        One environment per slot. Several slots see so many devices each, in order; a single slot
        sees what the worker sees. Harmless on a machine without CUDA.
    """
    visible = inherited.get("CUDA_VISIBLE_DEVICES")
    devices = visible.split(",") if visible else [str(index) for index in range(slots * per_job)]
    groups = [devices[first : first + per_job] for first in range(0, len(devices), per_job)]
    environments = []
    for index in range(slots):
        environment = dict(inherited)
        if slots > 1:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(groups[index % len(groups)])
        if threads is not None:
            environment["OMP_NUM_THREADS"] = str(threads)
        environments.append(environment)
    return environments

"""The trainer child: ``python -m worker.trainer``, the process of the worker that loads torch.

Long-lived: it waits for a job, trains and publishes it, perhaps with others that come meanwhile,
says how each ended, and waits for the next, with the base model still warm. It is started by
``worker.trainer_slot`` and dies with its parent, however the parent dies. Three threads: the main
one trains, one listens, one says ``alive``. For a job of several devices it starts the others
(``worker.followers``).
"""

import argparse
import importlib
import logging
import os
import threading
from queue import Empty, SimpleQueue
from typing import BinaryIO, cast

from core.db import open_database
from core.logs import configure_logging
from core.settings import Settings, load_settings
from core.storage import open_store
from worker.base_cache import BaseCache
from worker.child import become_child_of
from worker.engine import TrainerEngine
from worker.estimate_run import run_estimate
from worker.job_run import Workshop, preload_newest_base, run_jobs
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

DEFAULT_ENGINE = "worker.trainer_engine:PeftEngine"

_ALIVE_SECONDS = 0.5


class Wire:
    """Writes reports to the supervisor; safe from any thread."""

    def __init__(self, pipe: BinaryIO) -> None:
        """Take the writing end of the report pipe."""
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Send one message; a supervisor that is gone takes this process with it."""
        with self._lock:
            try:
                self._pipe.write(encode(message))
                self._pipe.flush()
            except BrokenPipeError:
                os._exit(1)


class Inbox:
    """Reads what the supervisor says, in a thread of its own."""

    def __init__(self, pipe: BinaryIO) -> None:
        """Take the reading end of the control pipe."""
        self._pipe = pipe
        self._work: SimpleQueue[Run | Measure] = SimpleQueue()
        self._lock = threading.Lock()
        self._wishes: dict[tuple[str, int], Wish] = {}

    def listen(self) -> None:
        """Read until the supervisor hangs up, then end the process, whatever it is doing.

        What a training step had in hand is lost; its newest checkpoint is not.
        """
        for line in self._pipe:
            message = decode(line)
            if isinstance(message, Run | Measure):
                self._work.put(message)
            elif isinstance(message, Control):
                with self._lock:
                    self._wishes[message.job_id, message.attempt] = message.wish
        os._exit(0)

    def next_work(self) -> Run | Measure:
        """Wait for a job or an estimate."""
        return self._work.get()

    def next_beside(self) -> Run | None:
        """Return a job that has come meanwhile, if one has."""
        try:
            found = self._work.get_nowait()
        except Empty:
            return None
        if isinstance(found, Run):
            return found
        self._work.put(found)  # an estimate is for a child without a job: it waits
        return None

    def wish_for(self, name: str, attempt: int) -> Wish | None:
        """Return what is wanted of a running attempt; a wish for an older one means nothing."""
        with self._lock:
            return self._wishes.get((name, attempt))

    def forget(self, ended: Ended) -> None:
        """Drop the wish for an attempt that is over."""
        with self._lock:
            self._wishes.pop((ended.job_id, ended.attempt), None)


class Pulse:
    """Counts signs of life of the training thread and reports the count."""

    def __init__(self, wire: Wire) -> None:
        """Start at zero."""
        self._wire = wire
        self._ticks = 0

    def tick(self) -> None:
        """Note a sign of life (called by the training thread only)."""
        self._ticks += 1

    def report(self) -> None:
        """Say ``alive`` until the process ends."""
        pause = threading.Event()
        while not pause.wait(_ALIVE_SECONDS):
            self._wire.send(Alive(ticks=self._ticks))


class TrainerLine:
    """The talk about the attempts at work; fills ``worker.job_run.Line``."""

    def __init__(self, wire: Wire, inbox: Inbox, pulse: Pulse) -> None:
        """Take both directions.

        Args:
            wire: To the supervisor.
            inbox: From the supervisor.
            pulse: Counts signs of life.
        """
        self._wire = wire
        self._inbox = inbox
        self._pulse = pulse
        self.is_damaged = False
        """Whether an attempt ended in a way after which this process should not go on."""

    def next_beside(self) -> Run | None:
        """Return a job that shall join; a process that should not go on takes none."""
        return None if self.is_damaged else self._inbox.next_beside()

    def wish_for(self, run: Run | Measure) -> Wish | None:
        """Return the owner's wish; without one, a process that should not go on is left."""
        name = run.job_id if isinstance(run, Run) else run.estimate_id
        return self._inbox.wish_for(name, run.attempt) or (Wish.DRAIN if self.is_damaged else None)

    def tick(self) -> None:
        """Note a sign of life."""
        self._pulse.tick()

    def report(self, ended: Ended) -> None:
        """Say how an attempt ended."""
        self._inbox.forget(ended)
        if ended.failure is not None and ended.failure.fresh_process:
            self.is_damaged = True
        self._wire.send(ended)

    def tell_room(self, jobs: int) -> None:
        """Say how many more attempts would do well here."""
        self._wire.send(Room(jobs=jobs))


def main(arguments: list[str] | None = None) -> None:
    """Serve jobs until the supervisor hangs up.

    Args:
        arguments: Command line without the program; None reads ``sys.argv``.
    """
    parser = argparse.ArgumentParser(prog="worker.trainer")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--control", type=int, required=True)
    parser.add_argument("--report", type=int, required=True)
    parser.add_argument("--engine", default=DEFAULT_ENGINE, help="module:class of the engine")
    options = parser.parse_args(arguments)
    become_child_of(options.parent)
    settings = load_settings()
    configure_logging(settings)

    wire = Wire(os.fdopen(options.report, "wb"))
    inbox = Inbox(os.fdopen(options.control, "rb"))
    pulse = Pulse(wire)
    threading.Thread(target=inbox.listen, name="inbox", daemon=True).start()
    threading.Thread(target=pulse.report, name="pulse", daemon=True).start()
    shop = _open_workshop(settings, options.engine)
    wire.send(Ready(pid=os.getpid()))
    preload_newest_base(shop)
    line = TrainerLine(wire, inbox, pulse)
    while not line.is_damaged:
        work = inbox.next_work()
        if isinstance(work, Measure):
            run_estimate(shop, work, line)
        else:
            run_jobs(shop, work, line)
    # Memory or CUDA may be damaged; the slot starts another child.


def _open_workshop(settings: Settings, engine_path: str) -> Workshop:
    module, _, name = engine_path.partition(":")
    make_engine = getattr(importlib.import_module(module), name)
    engine = cast(TrainerEngine, make_engine(settings))
    return Workshop(
        settings=settings,
        database=open_database(settings),
        store=open_store(settings),
        engine=engine,
        bases=BaseCache(engine),
    )


if __name__ == "__main__":
    main()

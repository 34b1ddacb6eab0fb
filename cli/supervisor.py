"""Keeps programs running: starts them in order, restarts what dies, stops all in reverse order.

Knows nothing of what the programs do. Three rules hold it together:

- Every program leads its own session, so that Ctrl-C in a terminal reaches only this process,
  which then stops the others in order; and every program wears a leash (`leash.py`), so that none
  survives a SIGKILL of this one.
- Programs are started from the main thread alone: the kernel ties the leash to the *thread* that
  started them.
- A program that keeps failing stops everything, with the last lines of its log as the reason.
"""

import contextlib
import logging
import logging.handlers
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, Any

LEASH = Path(__file__).with_name("leash.py")
TICK_SECONDS = 0.1
# A program that ran this long has recovered: its failures are forgotten.
HEALTHY_SECONDS = 30.0
MAX_FAILURES = 5
MAX_BACKOFF_SECONDS = 8.0
LOG_BYTES = 10 * 1024 * 1024
LOG_FILES = 3
LAST_LINES = 15


@dataclass(frozen=True)
class Program:
    """One program to keep running.

    Attributes:
        name: Short, unique; prefix of its lines and name of its log.
        argv: What to run.
        ready: Called until it is true before the next program starts; None starts the next at once.
        ready_seconds: How long `ready` may take.
        stop_seconds: How long it gets after SIGTERM before it is killed.
        alive: Asked with its process id; a program for which it is false hangs and is killed.
    """

    name: str
    argv: Sequence[str]
    ready: Callable[[], bool] | None = None
    ready_seconds: float = 30.0
    stop_seconds: float = 10.0
    alive: Callable[[int], bool] | None = None


class ProgramFailedError(Exception):
    """A program did not become ready or kept dying; the message says why."""


@dataclass
class _Running:
    program: Program
    process: subprocess.Popen[str]
    started: float
    failures: int = 0
    restart_at: float | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))


class Supervisor:
    """Starts, watches and stops programs; used as a context manager from the main thread.

    Args:
        environment: The environment of every program.
        log_dir: Where `{name}.log` is written, rotated at 10 MiB.
        say: Receives one line of news for the person watching.
        echo: Receives every line of every program as `name | line`; None: the logs alone have it.
    """

    def __init__(
        self,
        *,
        environment: Mapping[str, str],
        log_dir: Path,
        say: Callable[[str], None],
        echo: Callable[[str], None] | None = None,
    ) -> None:
        self._environment = dict(environment)
        self._log_dir = log_dir
        self._say = say
        self._echo = echo
        self._running: list[_Running] = []
        # Handlers of signals only append to it: a lock, as in an event or a stream, may be held by
        # the very code that they interrupt, and would never be given back.
        self._signals: list[signal.Signals] = []
        self._signals_told = 0
        self._pause = threading.Event()  # never set
        self._log_refused = False
        self._handlers: dict[signal.Signals, Any] = {}
        log_dir.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> "Supervisor":
        """Takes over SIGINT, SIGTERM and SIGHUP.

        Returns:
            This supervisor.
        """
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        """Stops every program in reverse order and gives the signals back."""
        self.stop_all()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def stopping(self) -> bool:
        """True once a signal asked to stop."""
        return bool(self._signals)

    def start(self, program: Program) -> None:
        """Starts a program and waits until it is ready, or until a signal asks to stop.

        After such a signal nothing is started any more.

        Args:
            program: The program. `ProgramFailedError` when it keeps dying or is not ready in time.
        """
        if self.stopping:
            return
        running = _Running(program, self._spawn(program), time.monotonic())
        self._running.append(running)
        self._pump(running)
        if program.ready is not None:
            self.wait_until(program.ready, what=program.name, seconds=program.ready_seconds)

    def wait_until(self, ready: Callable[[], bool], *, what: str, seconds: float) -> None:
        """Watches the programs until a condition holds or a signal asks to stop.

        Args:
            ready: The condition.
            what: Its name in the error.
            seconds: How long it may take.

        Raises:
            ProgramFailedError: It did not hold in time, or a program kept dying.
        """
        until = time.monotonic() + seconds
        while not self.stopping and not ready():
            if time.monotonic() > until:
                late = f"{what} was not ready after {seconds:.0f} s; see {self._log_dir}"
                raise ProgramFailedError(late)
            self._watch()
            self._pause.wait(TICK_SECONDS)

    def watch(self) -> None:
        """Keeps the programs running until a signal asks to stop or one of them keeps dying."""
        while not self.stopping:
            self._watch()
            self._pause.wait(TICK_SECONDS)

    def stop_all(self) -> None:
        """Stops every program, last started first; a second signal kills what is left at once."""
        self._tell_signals()
        for running in reversed(self._running):
            if running.process.poll() is None and len(self._signals) < 2:
                running.process.terminate()
                self._wait_for_end(running)
        self._tell_signals()
        for running in self._running:
            self._kill(running)
        self._running.clear()

    def _wait_for_end(self, running: _Running) -> None:
        until = time.monotonic() + running.program.stop_seconds
        while len(self._signals) < 2 and time.monotonic() < until:
            self._tell_signals()
            try:
                running.process.wait(TICK_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            return

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self._signals.append(signal.Signals(number))

    def _tell_signals(self) -> None:
        for number in self._signals[self._signals_told :]:
            self._signals_told += 1
            first = f"{number.name}: stopping. Again: kill at once."
            self._say(first if self._signals_told == 1 else "Killing everything now.")

    def _spawn(self, program: Program) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), *program.argv],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )

    def _pump(self, running: _Running) -> None:
        """Copies the lines of a program to its log, in a thread that ends with the program."""
        stream = running.process.stdout
        if stream is not None:
            thread = threading.Thread(target=self._copy, args=(running, stream), daemon=True)
            thread.start()

    def _copy(self, running: _Running, stream: IO[str]) -> None:
        name = running.program.name
        path = self._log_dir / f"{name}.log"
        log = _LogFile(path, refused=self._tell_of_refused_log)
        with stream:
            for line in stream:
                text = line.rstrip("\n")
                running.tail.append(text)
                log.emit(logging.LogRecord(name, logging.INFO, "", 0, text, None, None))
                if self._echo is not None:
                    self._echo(f"{name:>12} | {text}")
        log.close()

    def _tell_of_refused_log(self, path: Path, error: BaseException | None) -> None:
        if not self._log_refused:
            self._log_refused = True
            reason = getattr(error, "strerror", None) or str(error)
            self._say(f"Cannot write {path}: {reason}. Lines of logs are lost until this is mended")

    def _watch(self) -> None:
        """Notes who died and starts again whose pause is over."""
        now = time.monotonic()
        for running in self._running:
            if running.restart_at is not None:
                if now >= running.restart_at:
                    running.restart_at, running.started = None, now
                    running.process = self._spawn(running.program)
                    self._pump(running)
            elif (code := running.process.poll()) is not None:
                self._died(running, code, now)
            elif running.program.alive and not running.program.alive(running.process.pid):
                self._say(f"{running.program.name} hangs; killing it")
                self._kill(running)

    def _died(self, running: _Running, code: int, now: float) -> None:
        self._kill(running)
        running.failures = 1 if now - running.started > HEALTHY_SECONDS else running.failures + 1
        why = f"{running.program.name} {_describe(code)}"
        if running.failures > MAX_FAILURES:
            head = f"{why}, {running.failures} times in a row. Its last lines:"
            raise ProgramFailedError("\n".join([head, *running.tail]))
        pause = min(MAX_BACKOFF_SECONDS, 0.25 * 2 ** (running.failures - 1))
        running.restart_at = now + pause
        last = f" Last line: {running.tail[-1]}" if code > 0 and running.tail else ""
        self._say(f"{why}; starting it again in {pause:g} s.{last}")

    def _kill(self, running: _Running) -> None:
        """Kills what is left of a program and of what it started in its session."""
        # Gone already: no such group, or on macOS EPERM for a group of zombies.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()


class _LogFile(logging.handlers.RotatingFileHandler):
    """A log that tells of a disk which refuses it; the one of logging prints every traceback."""

    def __init__(
        self, path: Path, *, refused: Callable[[Path, BaseException | None], None]
    ) -> None:
        super().__init__(
            path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8", delay=True
        )
        self._path = path
        self._refused = refused

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: ARG002 as logging calls it
        """Passes on why a line was not written; called where the error is being handled."""
        self._refused(self._path, sys.exception())

    def close(self) -> None:
        """Closes the file; what a full disk still refuses then is lost."""
        with contextlib.suppress(OSError):
            super().close()


def _describe(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"

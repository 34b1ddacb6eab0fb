"""The one thread of the process that touches base models.

A model is not safe for two threads (which delta acts on which row belongs to the forward that
runs), so every load of a base and every forward happens here, one after the other. Everybody else
waits on futures.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from core.errors import ServiceError, Unavailable
from inference.scheduler import Scheduler
from inference.tickets import Batch

_log = logging.getLogger(__name__)

T = TypeVar("T")

SWITCH_SECONDS = 0.0005
"""How long a thread that runs Python keeps others waiting for the interpreter's lock, for
``sys.setswitchinterval`` of a process with an owner thread. With Python's own 5 ms the owner, which
lets the lock go in each of hundreds of products of a step, may wait so long each time that a loader
has taken it. No cost was seen while rows are written."""


class Owner:
    """Runs calls and micro-batches in turn until it is stopped."""

    def __init__(
        self,
        scheduler: Scheduler,
        run: Callable[[Batch], None],
        *,
        go_on: Callable[[], bool] = lambda: False,
        abandon: Callable[[ServiceError], None] = lambda _: None,
    ) -> None:
        """Prepare the thread without starting it.

        Args:
            scheduler: Where micro-batches come from.
            run: Answers every row of a batch through the scheduler; it must not raise.
            go_on: Makes one step of the rows that take several, and tells whether any are left; it
                must not raise.
            abandon: Ends those rows, when the thread ends of a fault.
        """
        self._scheduler = scheduler
        self._run = run
        self._go_on = go_on
        self._abandon = abandon
        self._going_on = False
        self._changed = threading.Condition()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._stopping = False
        self.died = False
        self._on_death: Callable[[], None] = lambda: None
        # daemon: a base that takes minutes to load must not keep a stopped process alive
        self._thread = threading.Thread(target=self._main, name="model-owner", daemon=True)
        scheduler.on_work(self._notify)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def is_alive(self) -> bool:
        """False before the start, after the stop, and when the thread died of a fault."""
        return self._thread.is_alive()

    def on_death(self, callback: Callable[[], None]) -> None:
        """Set what is called when the thread ends of a fault; nothing is answered after that."""
        self._on_death = callback

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Run something on the owner thread, between two batches.

        Args:
            work: Called without arguments; what it raises ends up in the future.

        Returns:
            The future result; cancelled when the owner stops first.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._stopping:
                future.cancel()
            else:
                self._calls.append((work, future))
                self._changed.notify()
        return future

    def abandon(self, error: ServiceError) -> None:
        """End the rows that take several steps, after the one that runs.

        Args:
            error: What everybody is told.
        """
        self.call(lambda: self._abandon(error))

    def stop(self, timeout_seconds: float) -> bool:
        """Ask the thread to end after what it is doing.

        Args:
            timeout_seconds: How long to wait for it.

        Returns:
            True when it has ended; False when it is still inside a forward or a load.
        """
        with self._changed:
            self._stopping = True
            calls = list(self._calls)
            self._calls.clear()
            self._changed.notify()
        for _, future in calls:
            future.cancel()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify()

    def _main(self) -> None:
        try:
            self._work()
        except BaseException:  # noqa: BLE001 - edge of the thread: all that wait must hear of it
            self.died = True
            _log.critical("the model owner thread died", exc_info=True)
            self._scheduler.close(_failing())
            self._abandon(_failing())
            self._on_death()

    def _work(self) -> None:
        while self._wait():
            self._make_calls()
            self._run_next()
            self._going_on = self._go_on()

    def _run_next(self) -> None:
        # a frame of its own: a batch kept in a variable would keep its deltas in memory
        batch = self._scheduler.take()
        if batch is None:
            return
        try:
            self._run(batch)
        except BaseException:
            # the thread ends of this; rows that have their answer already are left as they are
            for work in batch.works:
                self._scheduler.fail(work, _failing())
            raise

    def _wait(self) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._stopping or self._going_on or self._calls or self._scheduler.has_work()
                )
            )
            return not self._stopping

    def _make_calls(self) -> None:
        """Make the calls that wait now; those that come meanwhile wait for the next batch."""
        with self._changed:
            calls = list(self._calls)
            self._calls.clear()
        for work, future in calls:
            if future.set_running_or_notify_cancel():
                _make_call(work, future)


def _make_call(work: Callable[[], Any], future: Future[Any]) -> None:
    try:
        result = work()
    except BaseException as error:  # noqa: BLE001 - belongs to whoever waits for the call
        future.set_exception(error)
    else:
        future.set_result(result)


def _failing() -> Unavailable:
    return Unavailable("the inference process is failing")

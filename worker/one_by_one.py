"""Work that may take minutes, one piece after the other, whatever threads it comes from.

A housekeeping worker has two threads. Two validations at once would leave none to the sweep, which
finds jobs whose worker was lost, and would share one interpreter anyway. Knows no data sets.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable

_log = logging.getLogger(__name__)


class OneByOne:
    """The first caller works on what all bring; the others go on at once."""

    def __init__(self, work: Callable[[str], None], *, stopping: threading.Event) -> None:
        """Prepare; nothing is worked on.

        Args:
            work: Does one piece. What it raises is logged, and the next piece begun.
            stopping: Once set, what waits is forgotten: whoever sent it sends it again.
        """
        self._work = work
        self._stopping = stopping
        self._lock = threading.Lock()
        self._waiting: deque[str] = deque()
        self._present: str | None = None

    def run(self, name: str) -> None:
        """Work on a piece and on those that come meanwhile, or leave it to who is at work.

        Args:
            name: Of the piece; one that waits, or is being worked on, is not taken twice.
        """
        with self._lock:
            if name == self._present or name in self._waiting:
                return
            if self._present is not None:
                self._waiting.append(name)
                return
            self._present = name
        present: str | None = name
        while present is not None:
            try:
                self._work(present)
            except Exception:  # noqa: BLE001 the edge of a task: the others are not its fault
                _log.exception("%s failed", present)
            present = self._next()

    def _next(self) -> str | None:
        with self._lock:
            if self._stopping.is_set():
                self._waiting.clear()
            self._present = self._waiting.popleft() if self._waiting else None
            return self._present

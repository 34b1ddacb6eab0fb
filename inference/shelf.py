"""Derived bases of an inference process: loaded when a request needs one, put out for another.

The bases that the settings name stay for good. Beside them derived bases share what the budget of
memory leaves: when a new one does not fit, those go that no request has needed for longest.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable

from core.errors import Unavailable
from inference.owner import Owner
from inference.served import BaseLoader, BaseState, ServedBase, load_served

_log = logging.getLogger(__name__)

_RETRY_AFTER_SECONDS = 10


class Shelf:
    """The derived bases in memory and on their way; may be used from any thread."""

    def __init__(
        self, loader: BaseLoader, *, budget_bytes: int, others_bytes: Callable[[], int]
    ) -> None:
        """Begin empty.

        Args:
            loader: How a base comes into memory.
            budget_bytes: Most memory of all bases of the process.
            others_bytes: How much of it the bases take that stay for good.
        """
        self._loader = loader
        self._budget_bytes = budget_bytes
        self._others_bytes = others_bytes
        self._lock = threading.Lock()
        self._served: OrderedDict[str, ServedBase] = OrderedDict()
        self._owner: Owner | None = None

    def start(self, owner: Owner) -> None:
        """Allow loads.

        Args:
            owner: The thread that builds the models.
        """
        self._owner = owner

    def all(self) -> list[ServedBase]:
        """Every derived base, loaded or on its way."""
        with self._lock:
            return list(self._served.values())

    def find(self, name: str) -> ServedBase | None:
        """A derived base, if it is here.

        Args:
            name: Its name.

        Returns:
            The base, or None.
        """
        with self._lock:
            return self._served.get(name)

    def acquire(self, name: str, parent: ServedBase) -> ServedBase:
        """Keep a derived base in memory for a request, and begin to load one that is not there.

        Args:
            name: Its name.
            parent: The base that it is derived from, loaded.

        Returns:
            The base, perhaps on its way; give it to ``release`` when the request has ended.

        Raises:
            Unavailable: There is no room for it (``base_memory_full``).
        """  # noqa: DOC502  raised below
        with self._lock:
            served = self._served.get(name)
            if served is None:
                served = self._begin(name, parent)
            self._served.move_to_end(name)
            served.requests += 1
            return served

    def release(self, served: ServedBase) -> None:
        """Note that a request has ended.

        Args:
            served: What ``acquire`` gave it.
        """
        with self._lock:
            served.requests -= 1

    def _begin(self, name: str, parent: ServedBase) -> ServedBase:
        # Nothing that is derived is larger than its parent, and its size is not known before.
        needed = parent.bytes or 0
        self._make_room(name, needed)
        served = ServedBase(name, parent.reference, bytes=needed)
        self._served[name] = served
        thread = threading.Thread(
            target=self._load, args=(served,), name=f"loader-{name}", daemon=True
        )
        thread.start()
        return served

    def _load(self, served: ServedBase) -> None:
        owner = self._owner
        if owner is not None:
            load_served(served, self._loader, owner)
        if served.state is BaseState.FAILED:
            # Whoever waits holds it still; the next request may have more luck.
            with self._lock:
                self._served.pop(served.name, None)

    def _make_room(self, name: str, needed: int) -> None:
        """Put idle bases out until another fits.

        Raises:
            Unavailable: It does not, even then.
        """
        free = self._budget_bytes - self._others_bytes()
        free -= sum(served.bytes or 0 for served in self._served.values())
        idle = [
            served
            for served in self._served.values()
            if served.requests == 0 and served.state is BaseState.READY
        ]
        if free + sum(served.bytes or 0 for served in idle) < needed:
            raise Unavailable(
                f"there is no memory for the base {name!r} now: {needed} bytes beside the bases in "
                f"use, with {self._budget_bytes} for all (TUNERY_BASES_BYTES)",
                code="base_memory_full",
                retry_after_seconds=_RETRY_AFTER_SECONDS,
            )
        for served in idle:
            if free >= needed:
                return
            del self._served[served.name]
            served.engine = None
            free += served.bytes or 0
            _log.info("base %s put out", served.name)

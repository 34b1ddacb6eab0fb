"""Tells the database that this process answers, so that an api with several replicas can choose.

Answering needs no database: when it is down or not migrated yet, that is logged once and tried
again.
"""

import logging
import threading
from collections.abc import Callable

from core.db import Database, nodes
from core.errors import ServiceError
from core.ids import new_id
from inference.bases import Bases

_log = logging.getLogger(__name__)

# Replicas that were not heard of for about three of these are passed over.
ANNOUNCE_SECONDS = 5.0


class Announcer:
    """A thread that renews this process's row until it is stopped."""

    def __init__(
        self,
        database: Database,
        *,
        url: str,
        device: str,
        bases: Bases,
        interval_seconds: float = ANNOUNCE_SECONDS,
    ) -> None:
        """Prepare the thread without starting it.

        Args:
            database: Where to announce.
            url: Address under which the api reaches this process.
            device: What it computes on.
            bases: What it serves.
            interval_seconds: Time between two announcements.
        """
        self.id = new_id("node")
        self._database = database
        self._url = url
        self._device = device
        self._bases = bases
        self._interval_seconds = interval_seconds
        self._stopping = threading.Event()
        self._silent = False
        self._thread = threading.Thread(target=self._main, name="announcer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_seconds: float) -> None:
        """Take the row away and end.

        Args:
            timeout_seconds: How long to wait; a database that hangs is left behind.
        """
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    def _main(self) -> None:
        self._attempt(self._announce)
        while not self._stopping.wait(self._interval_seconds):
            self._attempt(self._announce)
        self._attempt(self._remove)

    def _attempt(self, act: Callable[[], None]) -> None:
        try:
            act()
        except ServiceError as error:
            self._complain(error.message)
        except Exception as error:  # noqa: BLE001 - edge of a thread, which goes on
            self._complain(repr(error))
        else:
            self._silent = False

    def _complain(self, reason: str) -> None:
        if not self._silent:
            _log.warning("this process could not be announced, still trying: %s", reason)
        self._silent = True

    def _announce(self) -> None:
        served = self._bases.all()
        with self._database.write() as session:
            nodes.announce(
                session,
                id=self.id,
                url=self._url,
                bases=[base.describe().model_dump() for base in served],
                device=self._device,
                precision={
                    base.name: base.engine.base.precision
                    for base in served
                    if base.engine is not None
                },
                status="ready" if self._bases.ready else "starting",
            )

    def _remove(self) -> None:
        with self._database.write() as session:
            nodes.remove(session, self.id)

"""Adapters whose references were looked up a moment ago, so that a burst of calls asks once.

Only references that can mean one adapter for ever are kept: its id, and ``name@version``. A name
means its newest version and an alias whatever it was moved to last, and both are looked up for
every call.

A deleted adapter is forgotten at once by the process that deleted it, and within
``REMEMBER_SECONDS`` by every other one of the api.
"""

import threading
from time import monotonic

from core.db.adapters import Resolved

REMEMBER_SECONDS = 1.0
"""Looking an adapter up costs twice the rest of the api's work for a prediction."""

MAX_KNOWN = 10_000


class KnownAdapters:
    """What references of tenants meant a moment ago; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[Resolved, float]] = {}
        self._forgotten = 0

    @property
    def moment(self) -> int:
        """To be read before the database is, and given to ``remember``."""
        return self._forgotten

    def find(self, tenant_id: str, reference: str) -> Resolved | None:
        """Find an adapter that is still remembered.

        Args:
            tenant_id: Who asks.
            reference: As sent.

        Returns:
            The adapter, or None: ask the database.
        """
        found = self._known.get((tenant_id, reference))
        return None if found is None or found[1] < monotonic() else found[0]

    def remember(self, tenant_id: str, reference: str, found: Resolved, *, moment: int) -> None:
        """Keep an adapter for a moment, if its reference can never mean another.

        Args:
            tenant_id: Who asked.
            reference: As sent.
            found: What the database says.
            moment: Of the look-up: one that is older than a deletion is not kept.
        """
        adapter = found.adapter
        if reference not in {adapter.id, f"{adapter.name}@{adapter.version}"}:
            return
        with self._lock:
            if moment != self._forgotten:
                return
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[tenant_id, reference] = (found, monotonic() + REMEMBER_SECONDS)

    def forget_all(self) -> None:
        """Ask the database again for every adapter."""
        with self._lock:
            self._forgotten += 1
            self._known.clear()

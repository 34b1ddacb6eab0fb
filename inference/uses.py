"""Which adapters have requests in flight: who deletes one is told, instead of those who wait."""

import threading
from collections import Counter
from collections.abc import Collection


class Uses:
    """Requests in flight by adapter; may be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[str] = Counter()

    def begin(self, adapter_ids: Collection[str]) -> None:
        """Note a request.

        Args:
            adapter_ids: The adapters that it asks, each once.
        """
        with self._lock:
            self._requests.update(adapter_ids)

    def end(self, adapter_ids: Collection[str]) -> None:
        """Note that no row of a request waits or runs any more.

        Args:
            adapter_ids: As ``begin`` was told.
        """
        with self._lock:
            self._requests.subtract(adapter_ids)
            for adapter_id in adapter_ids:
                if self._requests[adapter_id] <= 0:
                    del self._requests[adapter_id]

    def count(self, adapter_id: str) -> int:
        """Requests in flight that ask an adapter.

        Args:
            adapter_id: The adapter; an unknown one has none.

        Returns:
            How many.
        """
        with self._lock:
            return self._requests.get(adapter_id, 0)

"""The parts of an inference process inside a benchmark: everything but its HTTP face."""

import asyncio
import sys
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from core.heap import freeze_heap
from core.settings import Settings
from core.storage import ObjectStore, delta_key
from inference.owner import SWITCH_SECONDS
from inference.parts import Parts, make_parts
from inference.schemas import DeltaIn
from peft_engine.delta import Delta, save_delta
from peft_engine.runtime import pin_blas_threads, pin_threads

T = TypeVar("T")
LOAD_SECONDS = 240.0


def store_delta(store: ObjectStore, delta: Delta) -> int:
    """Put a delta where the process finds it.

    Args:
        store: The object store.
        delta: The delta.

    Returns:
        Bytes of its file.
    """
    content = save_delta(delta)
    store.put_bytes(delta_key(delta.digest), content)
    return len(content)


def reference_to(delta: Delta) -> DeltaIn:
    """A row's way to name a stored delta.

    Args:
        delta: The delta.

    Returns:
        Its digest and key.
    """
    digest = delta.digest
    return DeltaIn(adapter_id=f"adp_{digest[-12:]}", digest=digest, key=delta_key(digest))


class Answering:
    """Running parts; used in a ``with``, which waits for the bases and stops the threads.

    Args:
        settings: The machine's settings.
    """

    def __init__(self, settings: Settings) -> None:
        self.parts: Parts = make_parts(settings)
        self._settled = threading.Event()
        self.parts.bases.on_settled(self._settle)
        self._loop = asyncio.new_event_loop()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something on the event loop, where requests are made.

        Args:
            work: What is run.

        Returns:
            Its result.
        """
        return self._loop.run_until_complete(work)

    def __enter__(self) -> "Answering":
        """Start, and wait until the bases can answer."""
        sys.setswitchinterval(SWITCH_SECONDS)  # as ``python -m inference`` does
        self.parts.owner.start()
        threads = self.parts.settings.threads
        pin_blas_threads(threads)
        self.parts.owner.call(lambda: pin_threads(threads)).result()
        self.parts.bases.start(self.parts.owner)
        for served in self.parts.bases.all():
            served.loaded.result(LOAD_SECONDS)
        self._settled.wait(LOAD_SECONDS)
        return self

    def _settle(self) -> None:
        freeze_heap()  # as ``python -m inference`` does
        self._settled.set()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the threads."""
        self.parts.stop()
        self._loop.close()

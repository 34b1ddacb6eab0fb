"""The loop of the process: claims batches while there is room, lets all go at its end."""

import asyncio
import contextlib
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

from starlette.types import ASGIApp

from app.batches.run import BatchRun
from app.batches.slots import Slots
from app.batches.tries import Tries
from app.services.parts import Parts
from core.db import batches
from core.db.batches import Claim
from core.errors import ServiceError

T = TypeVar("T")

_log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""How long a new batch waits for a process that is idle; one look-up by an index each time."""

PATIENCE_SECONDS = 5.0
"""How long it waits before a batch of a tenant who has several gives way to it."""


class BatchProcess:
    """Runs batches, several side by side.

    Args:
        parts: What the application works with.
        app: The application, started.
    """

    def __init__(self, parts: Parts, app: ASGIApp) -> None:
        self._parts = parts
        self._app = app
        self._owner = f"{socket.gethostname()}/{os.getpid()}"
        slots = Slots(parts.settings.batch_requests_at_once)
        self._tries = Tries(slots, parts.inference.bases)
        self._running: dict[asyncio.Task[None], BatchRun] = {}

    async def run(self, ending: asyncio.Event) -> None:
        """Run batches until told to end; what is answered by then is kept.

        Args:
            ending: Set when the process is to end.
        """
        while not ending.is_set():
            if not self._has_room:
                await self._make_room()
            elif (claim := await self._ask(self._claim_next)) is not None:
                self._start(claim)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ending.wait(), POLL_SECONDS)
        for run in self._running.values():
            run.leave()
        await asyncio.gather(*self._running, return_exceptions=True)

    @property
    def _has_room(self) -> bool:
        return len(self._running) < self._parts.settings.batches_at_once

    async def _make_room(self) -> None:
        """Let go of one of several batches of a tenant while another's waits for a day's work."""
        tenants = Counter(run.tenant_id for run in self._running.values())
        ((tenant_id, count),) = tenants.most_common(1)
        is_leaving = any(run.is_leaving for run in self._running.values())
        if count == 1 or is_leaving or not await self._ask(self._keeps_waiting):
            return
        # the one that was begun last
        *_, run = (run for run in self._running.values() if run.tenant_id == tenant_id)
        run.leave()

    async def _ask(self, call: Callable[[], T]) -> T | None:
        try:
            return await asyncio.to_thread(call)
        except ServiceError as error:
            _log.warning("no batch is claimed: %s", error)
            return None

    def _keeps_waiting(self) -> bool:
        with self._parts.database.read() as session:
            return batches.keeps_waiting(session, seconds=PATIENCE_SECONDS)

    def _claim_next(self) -> Claim | None:
        with self._parts.database.write() as session:
            return batches.claim_next(
                session, owner=self._owner, lease_seconds=self._parts.settings.lease_seconds
            )

    def _start(self, claim: Claim) -> None:
        _log.info("batch %s: attempt %d", claim.batch_id, claim.attempt)
        run = BatchRun(self._parts, self._app, claim, self._tries)
        task = asyncio.create_task(run.run())
        self._running[task] = run
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        error = None if task.cancelled() else task.exception()
        if error is not None:
            # the edge of a batch: its lease runs out, and after some such attempts it is given up
            _log.error("an attempt of a batch failed", exc_info=error)

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
"""How long it waits before others give way to it; processes that have room come first."""


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
        """Let a batch give way to one of a tenant who has none running."""
        run = self._to_give_way()
        if run is not None and await self._ask(self._keeps_waiting):
            run.give_way()

    def _to_give_way(self) -> BatchRun | None:
        """Of a tenant with several the last one, at any time; else the first, after its turn."""
        runs = list(self._running.values())
        tenants = Counter(run.tenant_id for run in runs)
        most = max(tenants.values())
        asking = [run for run in runs if tenants[run.tenant_id] == most and run.asking_seconds]
        if not asking or any(run.is_stopped for run in runs):
            return None
        if most > 1:
            return asking[-1]
        is_over = asking[0].asking_seconds > self._parts.settings.batch_turn_seconds
        return asking[0] if is_over else None

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

"""The loop of the process: claims batches while there is room, lets all go at its end."""

import asyncio
import contextlib
import logging
import os
import socket

from starlette.types import ASGIApp

from app.batches.run import BatchRun
from app.batches.tries import Tries
from app.services.parts import Parts
from core.db import batches
from core.db.batches import Claim
from core.errors import ServiceError

_log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""How long a new batch waits for a process that is idle; one look-up by an index each time."""


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
        slots = asyncio.Semaphore(parts.settings.batch_requests_at_once)
        self._tries = Tries(slots, parts.inference.bases)
        self._running: dict[asyncio.Task[None], BatchRun] = {}

    async def run(self, ending: asyncio.Event) -> None:
        """Run batches until told to end; what is answered by then is kept.

        Args:
            ending: Set when the process is to end.
        """
        while not ending.is_set():
            claim = await self._claim() if self._has_room else None
            if claim is not None:
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

    async def _claim(self) -> Claim | None:
        try:
            return await asyncio.to_thread(self._claim_next)
        except ServiceError as error:
            _log.warning("no batch is claimed: %s", error)
            return None

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

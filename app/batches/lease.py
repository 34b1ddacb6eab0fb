"""The hold on one batch: beats, and writes that wait for whatever is away."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import TypeVar

from app.batches.stopping import Stop
from core.db import Database, Session, batches
from core.db.batches import Claim, Fenced
from core.errors import ServiceError, Unavailable
from core.settings import Settings
from core.states import BatchStatus

T = TypeVar("T")

_log = logging.getLogger(__name__)

OUTAGE_SECONDS = 2.0
"""Pause before what storage or database did not take is tried again."""


class Left(Exception):
    """The batch is left to another attempt."""


class Lease:
    """Holds a batch that was claimed.

    Args:
        database: Where its row is.
        settings: How long a lease is, and how often it is renewed.
        claim: The right to write.
    """

    def __init__(self, database: Database, settings: Settings, claim: Claim) -> None:
        self.claim = claim
        self.stop = Stop(settings.cancel_grace_seconds)
        self._database = database
        self._settings = settings

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Renew the lease meanwhile; give the batch back where it is left.

        Yields:
            Once, knowing whether a stop was asked for before.
        """
        await self._beat()
        beating = asyncio.create_task(self._beat_on())
        try:
            yield
        except (Left, Fenced):
            # A beat that came after the release would hold the batch for a lease more.
            self.stop.set("leaving")
            await asyncio.gather(beating, return_exceptions=True)
            with contextlib.suppress(Fenced, ServiceError):
                await asyncio.to_thread(self.write, batches.release)
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    def write(self, change: Callable[[Session, Claim], T]) -> T:
        """Write to the batch; ``Fenced`` goes through.

        Args:
            change: A function of ``core.db.batches``.

        Returns:
            What it gives.
        """
        with self._database.write() as session:
            return change(session, self.claim)

    async def write_surely(self, change: Callable[[Session, Claim], T]) -> T:
        """Write to the batch, again while the database is away.

        Args:
            change: A function of ``core.db.batches`` that may be repeated.

        Returns:
            What it gives.
        """
        return await self.surely(partial(self.write, change))

    async def surely(self, call: Callable[[], T]) -> T:
        """Call in a thread, again while a part of the service is away.

        Args:
            call: May be repeated.

        Returns:
            What it gives.

        Raises:
            Left: The batch is to be left before that.
        """
        while True:
            try:
                return await asyncio.to_thread(call)
            except Unavailable as error:
                _log.warning("batch %s waits: %s", self.claim.batch_id, error)
            await self.stop.pause_working(OUTAGE_SECONDS)
            if self.stop.is_leaving:
                raise Left

    async def _beat_on(self) -> None:
        while True:
            await self.stop.pause_working(self._settings.heartbeat_seconds)
            if self.stop.is_leaving:
                return
            await self._beat()

    async def _beat(self) -> None:
        beat = partial(batches.beat, lease_seconds=self._settings.lease_seconds)
        try:
            found = await asyncio.to_thread(self.write, beat)
        except Fenced:
            self.stop.set("leaving")
        except ServiceError as error:
            # the lease may run out meanwhile: then another attempt fences this one
            _log.warning("batch %s: no beat: %s", self.claim.batch_id, error)
        else:
            if found.status is BatchStatus.CANCELLING:
                self.stop.set("cancelled")
            elif found.is_late and found.status is not BatchStatus.FINALIZING:
                self.stop.set("expired")

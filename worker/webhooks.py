"""Sends webhooks, in one thread of its own with many under way.

The tasks of a housekeeping worker only say that there may be something (``wake``): its two threads
are for validations and the sweep, and a receiver that does not answer would take one for ten
seconds each time. Several workers may do so at once: each delivery is claimed by one of them.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from core.db import Database, webhooks
from core.db.webhooks import Claim
from core.errors import Unavailable
from core.webhooks.messages import make_body
from core.webhooks.sending import GONE, TIMEOUT_SECONDS, Message, Reply, WebhookSender

_log = logging.getLogger(__name__)

MOST_AT_ONCE = 32
MOST_OF_ONE_ENDPOINT = 4
"""A receiver that is dead takes no more of the places, and one that lives is not overrun."""

STOP_SECONDS = 5.0
"""What is under way may end when the process ends; a supervisor waits ten for it."""


class WebhookThread:
    """Sends what is due, until there is nothing left, whenever it is woken."""

    def __init__(
        self,
        open_database: Callable[[], Database],
        *,
        lease_seconds: float,
        may_be_private: bool,
        stopping: threading.Event,
    ) -> None:
        """Prepare; nothing is opened or started.

        Args:
            open_database: Gives the database, once it is needed.
            lease_seconds: How late a note of what was answered may come. After this and the time
                of an attempt it is sent again, by whoever looks.
            may_be_private: Whether this process may send to private addresses; the api that took
                the address must have allowed it too, since they may have different settings.
            stopping: Once set, nothing more is begun.
        """
        self._open_database = open_database
        self._lease_seconds = TIMEOUT_SECONDS + lease_seconds
        self._may_be_private = may_be_private
        self._stopping = stopping
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        # Of the thread that runs now.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Have it look for what is due; may be called from any thread, as often as one likes."""
        with self._lock:
            if self._stopping.is_set():
                return
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
                self._thread.start()
            else:
                self._notify()

    def close(self) -> None:
        """Begin nothing more, and wait a little for what is under way."""
        self._stopping.set()
        with self._lock:
            thread = self._thread
            self._notify()
        if thread is not None:
            thread.join(STOP_SECONDS + 1.0)

    def _notify(self) -> None:
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has just ended
                loop.call_soon_threadsafe(self._news.set)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception:  # noqa: BLE001 the edge of a thread: the next to wake it starts another
            _log.exception("webhooks are not sent until somebody asks again")

    async def _serve(self) -> None:
        # The event before the loop: who sees the loop finds its event.
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        sender = WebhookSender(most=MOST_AT_ONCE)
        flying: dict[asyncio.Task[None], str] = {}
        try:
            while not self._stopping.is_set():
                self._news.clear()
                for claim in await self._claim(flying):
                    flying[asyncio.create_task(self._deliver(sender, claim))] = claim.endpoint_id
                await self._wait(flying)
            if flying:
                await asyncio.wait(flying, timeout=STOP_SECONDS)
        finally:
            sender.close()

    async def _claim(self, flying: dict[asyncio.Task[None], str]) -> list[Claim]:
        room = MOST_AT_ONCE - len(flying)
        if room < 1:
            return []
        busy = set(flying.values())

        def claim() -> list[Claim]:
            with self._open_database().write() as session:
                return webhooks.claim(
                    session,
                    limit=room,
                    per_endpoint=MOST_OF_ONE_ENDPOINT,
                    lease_seconds=self._lease_seconds,
                    busy=busy,
                )

        try:
            return await asyncio.to_thread(claim)
        except Unavailable as error:
            _log.warning("no webhooks claimed, the sweep asks again: %s", error)
            return []

    async def _wait(self, flying: dict[asyncio.Task[None], str]) -> None:
        """Wait until one has ended, or somebody says that there may be more."""
        news = asyncio.create_task(self._news.wait())
        await asyncio.wait({news, *flying}, return_when=asyncio.FIRST_COMPLETED)
        news.cancel()
        for task in [task for task in flying if task.done()]:
            del flying[task]

    async def _deliver(self, sender: WebhookSender, claim: Claim) -> None:
        message = Message(
            id=claim.delivery_id,
            url=claim.url,
            may_be_private=claim.may_be_private and self._may_be_private,
            keys=claim.secrets,
            body=make_body(
                event_id=claim.event_id,
                type=claim.event_type,
                object_id=claim.object_id,
                happened_at=claim.happened_at,
            ),
        )
        try:
            reply = await sender.send(message)
            await asyncio.to_thread(self._note, claim, reply)
        except Unavailable as error:
            _log.warning("%s not noted, so it is sent again: %s", claim.delivery_id, error)
        except Exception:  # noqa: BLE001 the edge of one delivery: the others are not its fault
            _log.exception("%s failed", claim.delivery_id)

    def _note(self, claim: Claim, reply: Reply) -> None:
        with self._open_database().write() as session:
            if reply.error is None and reply.status_code is not None:
                webhooks.note_delivered(session, claim, status_code=reply.status_code)
            else:
                webhooks.note_failed(
                    session,
                    claim,
                    error=reply.error or "no answer",
                    status_code=reply.status_code,
                    is_gone=reply.status_code == GONE,
                )
        said = reply.error or f"answered {reply.status_code}"
        _log.info("%s attempt %d: %s", claim.delivery_id, claim.attempt, said)

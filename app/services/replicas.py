"""Which inference replica answers a call: any can, one is likely to have the adapter warm.

Replicas announce themselves in the database. A call goes to the replica that ranks highest for its
adapter's digest (rendezvous hashing), so that each adapter is warm on few of them; one that is gone
or full is passed over for the next. Answers change nothing, so a call that broke off before its
answer is asked again elsewhere; a stream that has begun is not.

Source: Thaler and Ravishankar 1998, "Using Name-Based Mappings to Increase Hit Rates".
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from app.services.inference import InferenceClient, Unreachable
from core.errors import ServiceError, Unavailable
from peft_engine.configs.base import parent_name

_log = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_SECONDS = 2.0
"""How long a list of replicas is trusted; they announce themselves every five seconds."""

REST_SECONDS = 5.0
"""How long a replica that could not be reached comes last."""

_ROUNDS = 2

_PASSED_OVER = frozenset({"queue_full", "base_not_served", "base_loading", "shutting_down"})
"""Refusals that another replica may not make."""


@dataclass(frozen=True)
class Replica:
    """An inference process that announced itself.

    Attributes:
        url: Where it answers.
        bases: Names of the bases that are loaded there.
    """

    url: str
    bases: frozenset[str]


FindReplicas = Callable[[], Sequence[Replica]]
"""Looks the live replicas up; may raise ``ServiceError`` when the database is away."""


class Replicas:
    """Asks the inference processes of the service.

    Args:
        default_url: Asked when no replica has announced itself, and last when none of them answers.
        find: Looks up who has announced itself; called in a thread.
        token: Shared secret, or None on one loopback.
        clock: Monotonic seconds.
        is_background: Whether nobody waits for the answers; see ``InferenceClient``.
    """

    def __init__(
        self,
        default_url: str,
        find: FindReplicas,
        *,
        token: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        is_background: bool = False,
    ) -> None:
        self._default_url = default_url
        self._find = find
        self._token = token
        self._clock = clock
        self._is_background = is_background
        self._clients: dict[str, InferenceClient] = {}
        self._known: Sequence[Replica] = ()
        self._looked_at = -LOOK_SECONDS
        self._looking = asyncio.Lock()
        self._resting: dict[str, float] = {}

    async def close(self) -> None:
        """Close all connections."""
        for client in self._clients.values():
            await client.close()

    async def predict(self, rows: Sequence[Mapping[str, Any]], *, tenant_id: str) -> dict[str, Any]:
        """Ask for the answers of some rows; see ``InferenceClient.predict``.

        Args:
            rows: One internal row each.
            tenant_id: Whose share of the queue they take.

        Returns:
            ``outputs``, ``receipts`` and ``usage``.
        """
        return await self._ask(rows, lambda client: client.predict(rows, tenant_id=tenant_id))

    async def stream(
        self, rows: Sequence[Mapping[str, Any]], *, tenant_id: str
    ) -> AsyncGenerator[dict[str, Any]]:
        """Ask for the answers of some rows, bit by bit; see ``InferenceClient.stream``.

        Args:
            rows: One internal row each.
            tenant_id: Whose share of the queue they take.

        Returns:
            The events of one replica.
        """
        return await self._ask(rows, lambda client: client.stream(rows, tenant_id=tenant_id))

    async def take_in(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for a delta out of an archive in storage; see ``InferenceClient.take_in``.

        Args:
            body: Which archive, for which base.

        Returns:
            What the delta is, and where it lies.
        """
        named = body.get("base_model")
        bases = frozenset() if named is None else frozenset({str(named)})
        return await self._first(
            await self._urls(bases, str(body["key"])), lambda client: client.take_in(body)
        )

    async def preview(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask how training would read some records; see ``InferenceClient.preview``.

        Args:
            body: Which records, for which base and task.

        Returns:
            Their tokens.
        """
        bases = frozenset({parent_name(str(body["base_model"]))})
        return await self._first(await self._urls(bases, ""), lambda client: client.preview(body))

    async def merge(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for one delta out of several; see ``InferenceClient.merge``.

        Args:
            body: Which deltas, and how.

        Returns:
            What the delta is, and where it lies.
        """
        bases = frozenset({str(body["base_model"])})
        return await self._first(await self._urls(bases, ""), lambda client: client.merge(body))

    async def give_out(self, body: Mapping[str, Any]) -> tuple[str, AsyncGenerator[bytes]]:
        """Ask for a delta in a foreign format; see ``InferenceClient.give_out``.

        Args:
            body: Which delta, which format.

        Returns:
            How the file's name ends, and the file.
        """
        urls = await self._urls(frozenset({str(body["base_model"])}), str(body["delta"]["digest"]))
        return await self._first(urls, lambda client: client.give_out(body))

    async def bases(self) -> list[dict[str, Any]]:
        """Ask every replica which base models it has.

        Returns:
            One description a base, of a replica on which it is ready if there is one.

        Raises:
            ServiceError: No replica answers.
        """  # noqa: DOC502  raised as it came
        urls = await self._urls(frozenset(), "")
        asked = [self._client(url).bases() for url in urls]
        found = await asyncio.gather(*asked, return_exceptions=True)
        answers = [answer for answer in found if isinstance(answer, list)]
        failures = [failure for failure in found if isinstance(failure, BaseException)]
        if not answers and failures:
            raise failures[0]
        merged: dict[str, dict[str, Any]] = {}
        for base in (base for answer in answers for base in answer):
            name = str(base.get("name"))
            if name not in merged or (base.get("ready") and not merged[name].get("ready")):
                merged[name] = base
        return list(merged.values())

    async def requests_of(self, adapter_id: str) -> int:
        """Count the requests in flight that name an adapter, at all replicas.

        Args:
            adapter_id: ``adp_…``.

        Returns:
            How many. A replica that cannot be reached has none: whoever asked it has an error. One
            that is there and does not say in time raises ``Unreachable``.
        """
        urls = await self._urls(frozenset(), "")
        asked = [self._client(url).requests_of(adapter_id) for url in urls]
        requests = 0
        for found in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(found, int):
                requests += found
            elif not isinstance(found, Unreachable) or found.is_slow:
                raise found
        return requests

    async def ready(self) -> None:
        """Ask whether any replica can answer; returns only if so.

        Raises:
            ServiceError: None can.
        """  # noqa: DOC502  raised below
        await self._first(await self._urls(frozenset(), ""), lambda client: client.ready())

    async def _ask(
        self,
        rows: Sequence[Mapping[str, Any]],
        ask: Callable[[InferenceClient], Awaitable[T]],
    ) -> T:
        # Whoever serves a base derives from it on demand.
        bases = frozenset(parent_name(str(row["base_model"])) for row in rows)
        return await self._first(await self._urls(bases, _key(rows)), ask)

    async def _first(
        self, urls: Sequence[str], ask: Callable[[InferenceClient], Awaitable[T]]
    ) -> T:
        """The answer of the first replica that gives one; else what the first of them said.

        Those that no connection could be opened to are asked once more at the end: a machine that
        has just lost a replica may be too busy to open one to another in time. One that broke off
        is not: the request may be what broke it.

        Raises:
            ServiceError: None gave one.
        """
        told: ServiceError | None = None
        left = list(urls)
        for _ in range(_ROUNDS):
            asked, left = left, []
            for url in asked:
                try:
                    return await ask(self._client(url))
                except ServiceError as error:
                    if not self._passes_over(url, error):
                        raise
                    if isinstance(error, Unreachable) and not error.was_connected:
                        left.append(url)
                    if told is None or isinstance(told, Unreachable):
                        told = error  # one that is there knows better when to come back
        raise told or Unavailable("no inference process is known")

    def _passes_over(self, url: str, error: ServiceError) -> bool:
        if isinstance(error, Unreachable):
            self._resting[url] = self._clock() + REST_SECONDS
            _log.warning("the inference process at %s cannot be reached", url)
            return not error.is_slow
        return error.code in _PASSED_OVER

    async def _urls(self, bases: frozenset[str], key: str) -> list[str]:
        """Addresses in the order in which they are asked."""
        replicas = await self._look()
        fitting = [replica.url for replica in replicas if bases <= replica.bases]
        ranked = sorted(fitting, key=lambda url: _rank(url, key), reverse=True)
        now = self._clock()
        resting = {url for url, until in self._resting.items() if until > now}
        urls = [url for url in ranked if url not in resting]
        urls += [url for url in ranked if url in resting]
        return urls if self._default_url in urls else [*urls, self._default_url]

    async def _look(self) -> Sequence[Replica]:
        async with self._looking:
            if self._clock() - self._looked_at >= LOOK_SECONDS:
                try:
                    self._known = await asyncio.to_thread(self._find)
                except ServiceError as error:
                    # whoever was there a moment ago is likely to be there still
                    _log.warning("replicas are not looked up: %s", error.message)
                self._looked_at = self._clock()
        return self._known

    def _client(self, url: str) -> InferenceClient:
        if url not in self._clients:
            self._clients[url] = InferenceClient(
                url, token=self._token, is_background=self._is_background
            )
        return self._clients[url]


def _key(rows: Sequence[Mapping[str, Any]]) -> str:
    """What decides which replica is warm: the adapter of the first row that has one, else the base.

    A call that mixes adapters still goes to one replica, where its rows share batches.
    """
    deltas = (row["delta"]["digest"] for row in rows if row.get("delta"))
    return str(next(deltas, rows[0]["base_model"]))


def _rank(url: str, key: str) -> bytes:
    return hashlib.sha256(f"{url}|{key}".encode()).digest()

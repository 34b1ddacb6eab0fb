"""One signed request to an address that a tenant chose, and what was answered.

Not trusted: the name, the address, the answer. Ten seconds are all that a receiver gets, of which
nothing but its status is read; a redirect is an answer like any other.
"""

import asyncio
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from core.webhooks.addresses import AddressRefusedError, check_address, check_url
from core.webhooks.signing import signed_headers

TIMEOUT_SECONDS = 10.0
"""From the first look-up of its name to the status of its answer."""

GONE = 410
"""The receiver wants nothing any more (Standard Webhooks)."""

_HEADERS = {"content-type": "application/json", "user-agent": "Tunery-Webhooks/1"}


@dataclass(frozen=True, slots=True)
class Message:
    """What to send.

    Attributes:
        id: ``webhook-id``, the same whenever it is sent.
        url: Where to.
        may_be_private: Whether loopback and private addresses are allowed, and plain HTTP.
        keys: Secrets that sign it.
        body: The event.
    """

    id: str
    url: str
    may_be_private: bool
    keys: Sequence[str]
    body: bytes

    def __repr__(self) -> str:
        """Name the message without its address, which may be a secret, and its keys."""
        return f"Message({self.id})"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        status_code: Of the answer; None when there was none.
        error: What was wrong, for people; None when the message was taken.
    """

    status_code: int | None
    error: str | None


class WebhookSender:
    """Sends messages, any number at a time, in the event loop that asks.

    Attributes:
        under_way: How many are being sent.
    """

    def __init__(self, *, most: int) -> None:
        """Prepare; nothing connects and no thread is started.

        Args:
            most: Messages that will be sent at a time. Names are looked up in so many threads times
                four, since a resolver that does not answer keeps its thread longer than we wait.
        """
        self._threads = ThreadPoolExecutor(most * 4, thread_name_prefix="resolver")
        self.under_way = 0

    def close(self) -> None:
        """Let the threads end; one that waits for a resolver ends when that has answered."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def send(self, message: Message) -> Reply:
        """Send a message once.

        Args:
            message: What, and where to.

        Returns:
            What was answered, or why nothing was; nothing is raised for what a receiver does.
        """
        self.under_way += 1
        try:
            return await self._send(message)
        finally:
            self.under_way -= 1

    async def _send(self, message: Message) -> Reply:
        headers = _HEADERS | signed_headers(
            message.keys, message_id=message.id, timestamp=int(time.time()), body=message.body
        )
        try:
            check_url(message.url, may_be_private=message.may_be_private)
            status = await self._post(message, headers)
        except TimeoutError:
            return Reply(None, f"no answer within {TIMEOUT_SECONDS:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Reply(None, _explain(error))
        is_taken = 200 <= status < 300
        return Reply(status, None if is_taken else f"answered {status}")

    async def _post(self, message: Message, headers: dict[str, str]) -> int:
        # A connection for each message: none is shared between tenants, and each is checked.
        connector = aiohttp.TCPConnector(
            force_close=True,
            use_dns_cache=False,
            resolver=_Resolver(self._threads),
            socket_factory=None if message.may_be_private else _open_public,
        )
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=TIMEOUT_SECONDS),
                auto_decompress=False,
            ) as session,
            session.post(
                message.url, data=message.body, headers=headers, allow_redirects=False
            ) as answer,
        ):
            return answer.status


def _open_public(found: tuple[Any, ...]) -> socket.socket:
    """Open a socket for the very address that is connected to next."""
    family, kind, protocol, _, address = found
    check_address(address[0])
    return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    """The machine's own resolver, in threads that nothing else waits for."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        def look_up() -> list[Any]:
            return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)

        found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=address[1],
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """The threads belong to the sender."""


_EXPLANATIONS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ClientConnectorDNSError, "its name has no address"),
    (aiohttp.ClientSSLError, "its certificate is not valid, or it speaks no TLS"),
    (aiohttp.ClientConnectorError, "it cannot be connected to"),
    (aiohttp.InvalidURL, "its address cannot be read"),
    (aiohttp.ClientResponseError, "its answer is not HTTP"),
)
"""The first that fits."""


def _explain(error: Exception) -> str:
    """Say what was wrong in words of ours: those of libraries name addresses of the inside."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, AddressRefusedError):
        return f"its address {cause}"
    if isinstance(cause, ConnectionRefusedError):
        return "the connection was refused"
    fitting = (text for kind, text in _EXPLANATIONS if isinstance(error, kind))
    return next(fitting, "the connection broke off before an answer")

"""A small HTTP/1.1 client for one server: kept connections, one write a request.

It stands in the path of every prediction. The general client that the project uses elsewhere costs
about a millisecond of processor time a request (two writes, several layers); this one a tenth.
"""

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

CONNECT_SECONDS = 2.0
MAX_CONNECTIONS = 200
_PIECE_BYTES = 1 << 16


class NoAnswer(Exception):
    """The server could not be reached, broke off, or did not speak HTTP.

    Args:
        message: What happened.
        is_slow: Whether it took the request and then did not answer in time.
    """

    def __init__(self, message: str, *, is_slow: bool = False) -> None:
        super().__init__(message)
        self.is_slow = is_slow


@dataclass
class Response:
    """A whole answer.

    Attributes:
        status: HTTP status.
        headers: By lower-case name; the last one of a name.
        body: All bytes.
    """

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class _Reading:
    """Callbacks of the parser for one answer."""

    def __init__(self) -> None:
        self.parser = HttpResponseParser(self)
        self.response = Response()
        self.is_complete = False
        self.is_kept_alive = False
        self._body: list[bytes] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        # asked here: the parser forgets it when the next message may begin
        self.is_kept_alive = self.parser.should_keep_alive()
        self.response.status = self.parser.get_status_code()
        self.response.body = b"".join(self._body)
        self.is_complete = True


class _Connection:
    """One open connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.is_reusable = False

    async def exchange(self, message: bytes) -> Response | None:
        """Send a request and read its answer; None when the connection had ended before it.

        Raises:
            NoAnswer: It broke off in the middle.
        """
        reading = _Reading()
        try:
            self._writer.write(message)
            await self._writer.drain()
            piece = await self._reader.read(_PIECE_BYTES)
        except OSError:
            return None
        if not piece:
            return None
        while piece:
            reading.parser.feed_data(piece)
            if reading.is_complete:
                self.is_reusable = reading.is_kept_alive
                return reading.response
            piece = await self._reader.read(_PIECE_BYTES)
        raise NoAnswer("the answer broke off")

    def abort(self) -> None:
        """End at once."""
        self._writer.transport.abort()


class KeepAliveClient:
    """Requests to one server.

    Args:
        url: ``http://host:port`` or ``https://…``, with or without a path.
        headers: Sent with every request.

    Raises:
        ValueError: The address is not one of HTTP.
    """

    def __init__(self, url: str, *, headers: dict[str, str]) -> None:
        split = urlsplit(url)
        if split.scheme not in {"http", "https"} or not split.hostname:
            raise ValueError(f"{url!r} is not an address of HTTP")
        self._host = split.hostname
        self._port = split.port or (443 if split.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if split.scheme == "https" else None
        self._path = split.path.rstrip("/")
        lines = [f"host: {split.netloc.rpartition('@')[2]}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        self._head = "\r\n".join(lines)
        self._idle: deque[_Connection] = deque()
        self._slots = asyncio.Semaphore(MAX_CONNECTIONS)

    async def request(
        self, method: str, path: str, *, body: bytes | None = None, timeout_seconds: float
    ) -> Response:
        """Send a request that may be repeated, and read the whole answer.

        Args:
            method: Of HTTP.
            path: Behind the address's own.
            body: JSON, or None.
            timeout_seconds: For everything together.

        Returns:
            The answer, whatever its status.

        Raises:
            NoAnswer: There was none.
        """
        content = b"" if body is None else body
        message = (
            f"{method} {self._path}{path} HTTP/1.1\r\n{self._head}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
        ).encode("latin-1") + content
        try:
            async with asyncio.timeout(timeout_seconds), self._slots:
                return await self._exchange(message)
        except TimeoutError as error:
            raise NoAnswer("no answer in time", is_slow=True) from error
        except (OSError, HttpParserError) as error:
            raise NoAnswer(str(error)) from error

    async def _exchange(self, message: bytes) -> Response:
        while True:
            connection = self._idle.pop() if self._idle else None
            is_kept = connection is not None
            if connection is None:
                connection = await self._connect()
            response = None
            try:
                response = await connection.exchange(message)
            finally:
                if response is not None and connection.is_reusable:
                    self._idle.append(connection)
                else:
                    # ended, refused, or given up by us: closing tells the server to drop the work
                    connection.abort()
            if response is not None:
                return response
            if not is_kept:
                raise NoAnswer("the connection was closed without an answer")
            # a kept connection may have ended meanwhile: that is no answer of the server

    async def _connect(self) -> _Connection:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(
                    self._host, self._port, ssl=self._tls
                )
        except TimeoutError as error:
            raise NoAnswer("no connection in time") from error
        return _Connection(reader, writer)

    async def close(self) -> None:
        """End every connection that waits."""
        while self._idle:
            self._idle.pop().abort()

    async def __aenter__(self) -> Self:
        """Give the client itself."""
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close it."""
        await self.close()

"""Client of the inference process. Knows its internal HTTP face; knows no tenant and no database.

A process that cannot be reached is an answer (503), never a crash, and never another model's
answer.
"""

import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import aiohttp

from core.errors import (
    BadInput,
    Conflict,
    Internal,
    NotFound,
    ServiceError,
    TooLarge,
    TooMany,
    TooSlow,
    Unavailable,
)

CONNECT_SECONDS = 2.0

_LINE_END = b"\n"

ANSWER_SECONDS = 120.0
"""Longer than the deadline of the inference process itself, which answers first."""

EXCHANGE_SECONDS = 600.0
"""A merge loads a model, adds to it and writes it; several wait for one another."""

BACKGROUND_SECONDS = 600.0
"""Deadline of rows that nobody waits for: they may get a tenth of what others get meanwhile."""

LOOK_SECONDS = 2.0
"""For questions about state, which a page or a probe waits for."""

RETRY_SECONDS = 2
"""A restarted inference process has its base again after some seconds."""

_BY_STATUS: Mapping[int, type[ServiceError]] = {
    400: BadInput,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: BadInput,
    429: TooMany,
    500: Internal,  # such as a damaged delta: to ask again in a moment would not help
    504: TooSlow,
}


class Unreachable(Unavailable):
    """An inference process does not answer.

    Attributes:
        is_slow: It took the request and may still be working on it.
        was_connected: A connection was there, so that it may have seen the request.
    """

    is_slow = False
    was_connected = True


class InferenceClient:
    """Asks one inference process.

    Args:
        url: Where it listens.
        token: Shared secret, or None on one loopback.
        is_background: Whether nobody waits for the answers: rows come after those of the same and
            other tenants that somebody waits for.
    """

    def __init__(self, url: str, *, token: str | None = None, is_background: bool = False) -> None:
        # left out otherwise: an inference process of an older version knows no such fields
        self._more: dict[str, Any] = {}
        self._answer_seconds = ANSWER_SECONDS
        if is_background:
            self._more = {"background": True, "timeout_seconds": BACKGROUND_SECONDS}
            self._answer_seconds += BACKGROUND_SECONDS
        self._url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._opened: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._opened is not None:
            await self._opened.close()

    async def predict(self, rows: Sequence[Mapping[str, Any]], *, tenant_id: str) -> dict[str, Any]:
        """Ask for the answers of some rows.

        Args:
            rows: One ``{input, task, base_model, delta, options}`` a row.
            tenant_id: Whose share of the queue they take.

        Returns:
            ``outputs``, ``receipts`` (both aligned with the rows) and ``usage``.

        Raises:
            Unavailable: The process is gone, or answers nonsense. For a row that it refuses, the
                error of its code, with ``inputs.<row>…`` as ``param``.
        """
        answer = await self._ask(
            "POST",
            "/predict",
            body=self._body(rows, tenant_id),
            timeout_seconds=self._answer_seconds,
        )
        lengths = {len(answer.get(name, ())) for name in ("outputs", "receipts")}
        if lengths != {len(rows)}:
            raise Unavailable("the inference process gave another number of answers than rows")
        return answer

    async def stream(
        self, rows: Sequence[Mapping[str, Any]], *, tenant_id: str
    ) -> AsyncGenerator[dict[str, Any]]:
        """Ask for the answers of some rows, bit by bit.

        Args:
            rows: One ``{input, task, base_model, delta, options}`` a row.
            tenant_id: Whose share of the queue they take.

        Returns:
            Events as the inference process tells them; iterating raises what goes wrong on the way,
            and closing it early drops the rows.

        Raises:
            Unavailable: The process is gone. For a row that it refuses, the error of its code.
        """  # noqa: DOC502  made below
        return _read_events(
            await self._open("/stream", self._body(rows, tenant_id), ANSWER_SECONDS)
        )

    async def take_in(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for a delta out of an archive in storage.

        Args:
            body: As ``inference.schemas.ImportIn`` has it.

        Returns:
            What the delta is, and where it lies.
        """
        content = json.dumps(dict(body)).encode()
        return await self._ask(
            "POST", "/exchange/import", body=content, timeout_seconds=EXCHANGE_SECONDS
        )

    async def preview(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask how training would read some records.

        Args:
            body: As ``inference.schemas.PreviewIn`` has it.

        Returns:
            Their tokens.
        """
        return await self._ask("POST", "/preview", body=json.dumps(dict(body)).encode())

    async def merge(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for one delta out of several.

        Args:
            body: As ``inference.schemas.MergeIn`` has it.

        Returns:
            What the delta is, and where it lies.
        """
        content = json.dumps(dict(body)).encode()
        return await self._ask(
            "POST", "/exchange/merge", body=content, timeout_seconds=EXCHANGE_SECONDS
        )

    async def give_out(self, body: Mapping[str, Any]) -> tuple[str, AsyncGenerator[bytes]]:
        """Ask for a delta in a foreign format.

        Args:
            body: As ``inference.schemas.ExportIn`` has it.

        Returns:
            How the file's name ends, and the file; close it to stop early.

        Raises:
            Unavailable: The process is gone. For a delta that it refuses, the error of its code.
        """  # noqa: DOC502  made below
        content = json.dumps(dict(body)).encode()
        response = await self._open("/exchange/export", content, EXCHANGE_SECONDS)
        return response.headers.get("x-suffix", ""), _read_file(response)

    async def bases(self) -> list[dict[str, Any]]:
        """Ask which base models are there.

        Returns:
            One description a base.
        """
        answer = await self._ask("GET", "/bases", timeout_seconds=LOOK_SECONDS)
        found = answer.get("data", [])
        return [base for base in found if isinstance(base, dict)]

    async def requests_of(self, adapter_id: str) -> int:
        """Ask how many requests in flight there name an adapter.

        Args:
            adapter_id: ``adp_…``.

        Returns:
            How many.
        """
        answer = await self._ask("GET", f"/uses/{adapter_id}", timeout_seconds=LOOK_SECONDS)
        return int(answer["requests"])

    async def ready(self) -> None:
        """Ask whether all base models are loaded; returns only if so.

        Raises:
            Unavailable: The process is gone, or still loads.
        """
        status, _, _ = await self._send("GET", "/readyz", timeout_seconds=LOOK_SECONDS)
        if status != 200:
            raise Unavailable("the inference process is still loading its base models")

    def _body(self, rows: Sequence[Mapping[str, Any]], tenant_id: str) -> bytes:
        """The internal request.

        Raises:
            BadInput: A number in the rows is not one of JSON, or they are nested too deeply.
        """
        body = {"rows": rows, "tenant": tenant_id, **self._more}
        try:
            return json.dumps(body, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise BadInput(
                "the inputs hold NaN or Infinity, or are nested too deeply", param="inputs"
            ) from error

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:  # it belongs to the loop that runs
            self._opened = aiohttp.ClientSession(
                headers=self._headers,
                # The other side bounds rows, for each tenant too, and says so (429). A bound here
                # would let whoever waits for texts keep everybody else out, probes too, for ever.
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                # Our own process on our own network: no proxy of the environment stands between.
                trust_env=False,
            )
        return self._opened

    async def _open(
        self, path: str, content: bytes, timeout_seconds: float
    ) -> aiohttp.ClientResponse:
        """An answer that is read bit by bit; whoever reads it closes it.

        Raises:
            Unavailable: The process is gone. Where it refuses, the error of its code.
        """  # noqa: DOC501, DOC502  made below
        try:
            response = await self._request("POST", path, content, timeout_seconds)
            if response.status != 200:
                refusal = await response.read()
                raise _refused(response.status, response.headers, _read_json(refusal))
        except (aiohttp.ClientError, TimeoutError) as error:
            unreachable = _lost(error)
            raise unreachable from error
        return response

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        timeout_seconds: float = ANSWER_SECONDS,
    ) -> dict[str, Any]:
        status, headers, content = await self._send(
            method, path, body=body, timeout_seconds=timeout_seconds
        )
        answer = _read_json(content)
        if status != 200:
            raise _refused(status, headers, answer)
        if not isinstance(answer, dict | list):
            raise _unreachable()
        return {"data": answer} if isinstance(answer, list) else answer

    async def _send(
        self, method: str, path: str, *, body: bytes | None = None, timeout_seconds: float
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and content of an answer."""
        try:
            async with await self._request(method, path, body, timeout_seconds) as response:
                return response.status, response.headers, await response.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            unreachable = _lost(error)
            raise unreachable from error

    async def _request(
        self, method: str, path: str, body: bytes | None, timeout_seconds: float
    ) -> aiohttp.ClientResponse:
        return await self._session.request(
            method,
            f"{self._url}{path}",
            data=body,
            headers={"content-type": "application/json"} if body is not None else None,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS, sock_read=timeout_seconds
            ),
        )


def _read_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        unreachable = _unreachable()
        raise unreachable from error


async def _read_file(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    try:
        async for piece in response.content.iter_any():
            yield piece
    finally:
        response.close()


async def _read_events(response: aiohttp.ClientResponse) -> AsyncGenerator[dict[str, Any]]:
    """One event a line; a stream that breaks off before its usage is an error."""
    is_whole = False
    try:
        async for line in _read_lines(response):
            event = _read_json(line)
            if "error" in event:
                failed = _refused(response.status, response.headers, event)
                raise failed
            is_whole = "usage" in event
            yield event
    except (aiohttp.ClientError, TimeoutError) as error:
        unreachable = _unreachable()
        raise unreachable from error
    finally:
        response.close()  # hangs up, unless all was read
    if not is_whole:
        unreachable = _unreachable()
        raise unreachable


async def _read_lines(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    """Lines of any length; the library's own have a limit that an embedding may pass."""
    pieces: list[bytes] = []
    async for piece in response.content.iter_any():
        first, *others = piece.split(_LINE_END)
        pieces.append(first)
        for other in others:
            yield b"".join(pieces)
            pieces = [other]
    if any(pieces):
        yield b"".join(pieces)


def _lost(error: Exception) -> Unreachable:
    """What the end of a connection, or the lack of one, means."""
    found = _unreachable(is_slow=isinstance(error, aiohttp.SocketTimeoutError))
    unconnected = aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError
    found.was_connected = not isinstance(error, unconnected)
    return found


def _unreachable(*, is_slow: bool = False) -> Unreachable:
    what = "does not answer in time" if is_slow else "cannot be reached"
    found = Unreachable(
        f"the inference process {what}; try again in a moment",
        code="inference_unavailable",
        retry_after_seconds=RETRY_SECONDS,
    )
    found.is_slow = is_slow
    return found


def _refused(status: int, headers: Mapping[str, str], body: Any) -> ServiceError:
    """Turn a refusal of the inference process into one of ours."""
    fault = body.get("error") if isinstance(body, dict) else None
    if not isinstance(fault, dict) or status in {401, 403, 405}:
        return _unreachable()
    # in the middle of a stream the status stands in the error itself
    told = int(fault.get("status") or status)
    kind = _BY_STATUS.get(told, Unavailable)
    code = str(fault.get("code") or kind.default_code)
    status = told if kind is not Unavailable else 503
    details = fault.get("details")
    return kind(
        str(fault.get("message", "the inference process refused the request")),
        code=code,
        status=400 if status == 422 else status,
        param=input_path(fault.get("param")),
        details=details if isinstance(details, list) else None,
        retry_after_seconds=_retry_after(headers) if status in {429, 503} else None,
    )


def _retry_after(headers: Mapping[str, str]) -> int:
    given = headers.get("retry-after", "")
    return int(given) if given.isdecimal() else RETRY_SECONDS


def input_path(param: Any) -> str | None:
    """Translate a place in the internal request into one in the user's.

    Args:
        param: Such as ``rows.3.input.text``; anything else but text is dropped.

    Returns:
        Such as ``inputs.3.text``, or None.
    """
    if not isinstance(param, str):
        return None
    return re.sub(r"^rows\.(\d+)(?:\.input\b)?", r"inputs.\1", param)

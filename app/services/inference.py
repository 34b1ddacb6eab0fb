"""Client of the inference process. Knows its internal HTTP face; knows no tenant and no database.

A process that cannot be reached is an answer (503), never a crash, and never another model's
answer.
"""

import json
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

import httpx

from core.errors import (
    BadInput,
    Conflict,
    Internal,
    NotFound,
    ServiceError,
    TooLarge,
    TooMany,
    Unavailable,
)

CONNECT_SECONDS = 2.0
MAX_CONNECTIONS = 200

ANSWER_SECONDS = 120.0
"""Longer than the deadline of the inference process itself, which answers first."""

EXCHANGE_SECONDS = 600.0
"""A merge loads a model, adds to it and writes it; several wait for one another."""

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
    """

    def __init__(self, url: str, *, token: str | None = None) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            # Our own process on our own network: no proxy of the environment stands between.
            trust_env=False,
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

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
        answer = await self._ask("POST", "/predict", body=_body(rows, tenant_id))
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
        return _read_events(await self._open("/stream", _body(rows, tenant_id), ANSWER_SECONDS))

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
        response = await self._send("GET", "/readyz", timeout_seconds=LOOK_SECONDS)
        if response.status_code != 200:
            raise Unavailable("the inference process is still loading its base models")

    async def _open(self, path: str, content: bytes, timeout_seconds: float) -> httpx.Response:
        """An answer that is read bit by bit; whoever reads it closes it.

        Raises:
            Unavailable: The process is gone. Where it refuses, the error of its code.
        """  # noqa: DOC501, DOC502  made below
        asked = self._client.build_request(
            "POST",
            path,
            content=content,
            headers={"content-type": "application/json"},
            timeout=httpx.Timeout(timeout_seconds, connect=CONNECT_SECONDS),
        )
        try:
            response = await self._client.send(asked, stream=True)
            if response.status_code != 200:
                refusal = await response.aread()
                await response.aclose()
                raise _refused(response, _read_json(refusal))
        except httpx.TransportError as error:
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
        response = await self._send(method, path, body=body, timeout_seconds=timeout_seconds)
        answer = _read_json(response.content)
        if response.status_code != 200:
            raise _refused(response, answer)
        if not isinstance(answer, dict | list):
            raise _unreachable()
        return {"data": answer} if isinstance(answer, list) else answer

    async def _send(
        self, method: str, path: str, *, body: bytes | None = None, timeout_seconds: float
    ) -> httpx.Response:
        timeout = httpx.Timeout(timeout_seconds, connect=CONNECT_SECONDS)
        kind = {"content-type": "application/json"} if body is not None else None
        try:
            return await self._client.request(
                method, path, content=body, headers=kind, timeout=timeout
            )
        except httpx.TransportError as error:
            unreachable = _lost(error)
            raise unreachable from error


def _body(rows: Sequence[Mapping[str, Any]], tenant_id: str) -> bytes:
    """The internal request.

    Raises:
        BadInput: A number in the rows is not one of JSON, or they are nested too deeply.
    """
    try:
        return json.dumps({"rows": rows, "tenant": tenant_id}, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise BadInput(
            "the inputs hold NaN or Infinity, or are nested too deeply", param="inputs"
        ) from error


def _read_json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        unreachable = _unreachable()
        raise unreachable from error


async def _read_file(response: httpx.Response) -> AsyncGenerator[bytes]:
    try:
        async for piece in response.aiter_bytes():
            yield piece
    finally:
        await response.aclose()


async def _read_events(response: httpx.Response) -> AsyncGenerator[dict[str, Any]]:
    """One event a line; a stream that breaks off before its usage is an error."""
    is_whole = False
    try:
        async for line in response.aiter_lines():
            event = _read_json(line.encode())
            if "error" in event:
                failed = _refused(response, event)
                raise failed
            is_whole = "usage" in event
            yield event
    except httpx.TransportError as error:
        unreachable = _unreachable()
        raise unreachable from error
    finally:
        await response.aclose()
    if not is_whole:
        unreachable = _unreachable()
        raise unreachable


def _lost(error: httpx.TransportError) -> Unreachable:
    """What the end of a connection, or the lack of one, means."""
    found = _unreachable(is_slow=isinstance(error, httpx.ReadTimeout))
    unconnected = httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout
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


def _refused(response: httpx.Response, body: Any) -> ServiceError:
    """Turn a refusal of the inference process into one of ours."""
    fault = body.get("error") if isinstance(body, dict) else None
    if not isinstance(fault, dict) or response.status_code in {401, 403, 405}:
        return _unreachable()
    # in the middle of a stream the status stands in the error itself
    told = int(fault.get("status") or response.status_code)
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
        retry_after_seconds=_retry_after(response) if status in {429, 503} else None,
    )


def _retry_after(response: httpx.Response) -> int:
    given = response.headers.get("retry-after", "")
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

"""Client of the inference process. Knows its internal HTTP face; knows no tenant and no database.

A process that cannot be reached is an answer (503), never a crash, and never another model's
answer.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from app.services.keepalive import KeepAliveClient, NoAnswer, Response
from core.errors import (
    BadInput,
    Conflict,
    NotFound,
    ServiceError,
    TooLarge,
    TooMany,
    Unavailable,
)

ANSWER_SECONDS = 120.0
"""Longer than the deadline of the inference process itself, which answers first."""

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
}


class InferenceClient:
    """Asks one inference process.

    Args:
        url: Where it listens.
        token: Shared secret, or None on one loopback.
    """

    def __init__(self, url: str, *, token: str | None = None) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = KeepAliveClient(url, headers=headers)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def predict(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Ask for the answers of some rows.

        Args:
            rows: One ``{input, task, base_model, delta, options}`` a row.

        Returns:
            ``outputs``, ``receipts`` (both aligned with the rows) and ``usage``.

        Raises:
            BadInput: A number in the rows is not one of JSON, or they are nested too deeply.
            Unavailable: The process is gone, or answers nonsense. For a row that it refuses, the
                error of its code, with ``inputs.<row>…`` as ``param``.
        """
        try:
            body = json.dumps({"rows": rows}, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise BadInput(
                "the inputs hold NaN or Infinity, or are nested too deeply", param="inputs"
            ) from error
        answer = await self._ask("POST", "/predict", body=body)
        lengths = {len(answer.get(name, ())) for name in ("outputs", "receipts")}
        if lengths != {len(rows)}:
            raise Unavailable("the inference process gave another number of answers than rows")
        return answer

    async def bases(self) -> list[dict[str, Any]]:
        """Ask which base models are there.

        Returns:
            One description a base.
        """
        answer = await self._ask("GET", "/bases", timeout_seconds=LOOK_SECONDS)
        found = answer.get("data", [])
        return [base for base in found if isinstance(base, dict)]

    async def ready(self) -> None:
        """Ask whether all base models are loaded; returns only if so.

        Raises:
            Unavailable: The process is gone, or still loads.
        """
        response = await self._send("GET", "/readyz", timeout_seconds=LOOK_SECONDS)
        if response.status != 200:
            raise Unavailable("the inference process is still loading its base models")

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        timeout_seconds: float = ANSWER_SECONDS,
    ) -> dict[str, Any]:
        response = await self._send(method, path, body=body, timeout_seconds=timeout_seconds)
        try:
            answer = json.loads(response.body)
        except ValueError as error:
            raise _unreachable() from error
        if response.status != 200:
            raise _refused(response, answer)
        if not isinstance(answer, dict | list):
            raise _unreachable()
        return {"data": answer} if isinstance(answer, list) else answer

    async def _send(
        self, method: str, path: str, *, body: bytes | None = None, timeout_seconds: float
    ) -> Response:
        try:
            return await self._client.request(
                method, path, body=body, timeout_seconds=timeout_seconds
            )
        except NoAnswer as error:
            raise _unreachable(is_slow=error.is_slow) from error


def _unreachable(*, is_slow: bool = False) -> Unavailable:
    what = "does not answer in time" if is_slow else "cannot be reached"
    return Unavailable(
        f"the inference process {what}; try again in a moment",
        code="inference_unavailable",
        retry_after_seconds=RETRY_SECONDS,
    )


def _refused(response: Response, body: Any) -> ServiceError:
    """Turn a refusal of the inference process into one of ours."""
    fault = body.get("error") if isinstance(body, dict) else None
    if not isinstance(fault, dict) or response.status in {401, 403, 405}:
        return _unreachable()
    kind = _BY_STATUS.get(response.status, Unavailable)
    code = str(fault.get("code") or kind.default_code)
    status = response.status if kind is not Unavailable else 503
    details = fault.get("details")
    return kind(
        str(fault.get("message", "the inference process refused the request")),
        code=code,
        status=400 if status == 422 else status,
        param=input_path(fault.get("param")),
        details=details if isinstance(details, list) else None,
        retry_after_seconds=_retry_after(response) if status in {429, 503} else None,
    )


def _retry_after(response: Response) -> int:
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

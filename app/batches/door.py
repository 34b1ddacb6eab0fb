"""Asks the application of this very process, as its own caller."""

import json
from dataclasses import dataclass

import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from app.services.callers import INSIDE, Caller
from core.ids import new_id

# The transport knows no time-outs: the endpoint bounds how long an answer takes.
_ORIGIN = "http://batches.internal"
"""Nothing is sent there: an HTTP client wants a whole address."""

SCOPES = frozenset({"predict"})
"""All that a batch needs; its owner had a key of this scope when it was made."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint said.

    Attributes:
        status: HTTP status.
        request_id: As in ``x-request-id``, under which the log has it.
        content: JSON on one line.
        retry_after_seconds: When to ask again; None where that was not said.
    """

    status: int
    request_id: str
    content: bytes
    retry_after_seconds: int | None = None

    @property
    def code(self) -> str | None:
        """Code of the error, of an answer that is one."""
        return json.loads(self.content)["error"]["code"] if self.status >= 400 else None


class Door:
    """One endpoint, for one tenant.

    Args:
        app: The whole application, started.
        tenant_id: Who asks.
        endpoint: Path.
    """

    def __init__(self, app: ASGIApp, *, tenant_id: str, endpoint: str) -> None:
        caller = Caller(tenant_id, SCOPES)

        async def as_caller(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, INSIDE: caller}, receive, send)

        self._endpoint = endpoint
        self._http = httpx.AsyncClient(transport=httpx.ASGITransport(as_caller), base_url=_ORIGIN)

    async def close(self) -> None:
        """Close the client."""
        await self._http.aclose()

    async def ask(self, body: bytes) -> Answer:
        """Ask once.

        Args:
            body: JSON.

        Returns:
            The answer, whatever its status.
        """
        response = await self._http.post(
            self._endpoint,
            content=body,
            headers={"content-type": "application/json", "x-request-id": new_id("req")},
        )
        told = response.headers.get("retry-after", "")
        return Answer(
            status=response.status_code,
            request_id=response.headers["x-request-id"],
            content=response.content,
            retry_after_seconds=int(told) if told.isdecimal() else None,
        )

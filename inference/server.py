"""The internal HTTP face of an inference process, on loopback or a private network.

The api has resolved names and checked tenants; here a row names a digest and a key. Handlers only
wait.
"""

import asyncio
import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, StreamingResponse
from starlette.background import BackgroundTask

from core.errors import ServiceError, Unauthenticated
from core.settings import Settings
from inference.error_handlers import add_error_handlers, error_body
from inference.parts import Parts
from inference.previews import preview_rows
from inference.schemas import (
    BaseOut,
    ExportIn,
    ImportIn,
    ImportOut,
    MergeIn,
    PredictIn,
    PredictOut,
    PreviewIn,
    PreviewOut,
    UseOut,
)

MAX_BODY_BYTES = 64 * 1024 * 1024
"""Above the largest body that the limits on rows and characters let through."""

_CLIENT_GONE_STATUS = 499
_RETRY_AFTER_SECONDS = "2"


def create_app(settings: Settings, parts: Parts) -> FastAPI:
    """Build the HTTP face over the parts of the process.

    Args:
        settings: For the shared token.
        parts: Everything that answers; started and stopped with the application.

    Returns:
        The application.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        parts.start()
        yield
        await asyncio.to_thread(parts.stop)

    app = FastAPI(
        title="Tunery inference (internal)", lifespan=lifespan, max_body_size=MAX_BODY_BYTES
    )
    add_error_handlers(app)
    _add_probes(app, parts)
    _add_routes(app, parts, _TokenCheck(settings))
    return app


class _TokenCheck:
    """The shared secret between api and inference; nothing to check when none is set."""

    def __init__(self, settings: Settings) -> None:
        token = settings.inference_token
        self._expected = f"Bearer {token.get_secret_value()}".encode() if token else None

    def __call__(self, request: Request) -> None:
        given = request.headers.get("authorization", "").encode()
        if self._expected is not None and not hmac.compare_digest(given, self._expected):
            raise Unauthenticated("the inference token is missing or wrong")


def _add_probes(app: FastAPI, parts: Parts) -> None:
    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """Alive: the owner thread runs. A process that says no is to be replaced."""
        alive = parts.owner.is_alive()
        return JSONResponse({"status": "ok" if alive else "dead"}, 200 if alive else 503)

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """Ready: every base that this process shall serve can answer."""
        states = {served.name: served.state for served in parts.bases.all()}
        if parts.bases.ready and parts.owner.is_alive():
            return JSONResponse({"status": "ready", "bases": states})
        return JSONResponse(
            {"status": "not ready", "bases": states},
            status_code=503,
            headers={"Retry-After": _RETRY_AFTER_SECONDS},
        )


def _add_routes(app: FastAPI, parts: Parts, check: _TokenCheck) -> None:
    guarded = [Depends(check)]

    @app.get("/bases", dependencies=guarded)
    async def bases() -> list[BaseOut]:
        """The base models of this process, loaded or not."""
        return [served.describe() for served in parts.bases.all()]

    @app.get("/uses/{adapter_id}", dependencies=guarded)
    async def uses(adapter_id: str) -> UseOut:
        """How many requests in flight ask an adapter; asked before it is deleted."""
        return UseOut(adapter_id=adapter_id, requests=parts.predictor.uses.count(adapter_id))

    @app.get("/metrics", dependencies=guarded, response_class=PlainTextResponse)
    async def metrics() -> str:
        """Counts in the Prometheus text format."""
        return parts.metrics.render()

    @app.post("/predict", dependencies=guarded)
    async def predict(body: PredictIn, request: Request) -> PredictOut:
        """Answer rows of different adapters and of plain bases, all or none."""
        with parts.metrics.request():
            return await _until_gone(parts, body, request)

    @app.post("/exchange/import", dependencies=guarded)
    async def take_in(body: ImportIn) -> ImportOut:
        """Turn an archive in storage into a stored delta, or tell every reason why not."""
        return await parts.exchange.take_in(body)

    @app.post("/exchange/merge", dependencies=guarded)
    async def merge(body: MergeIn) -> ImportOut:
        """Make one stored delta of several, or tell every reason why not."""
        return await parts.exchange.merge(body)

    @app.post("/exchange/export", dependencies=guarded)
    async def give_out(body: ExportIn) -> FileResponse:
        """Write a stored delta in a foreign format, or tell every reason why not."""
        file = await parts.exchange.give_out(body)
        return FileResponse(
            file.path,
            media_type="application/octet-stream",
            headers={"x-suffix": file.suffix},
            background=BackgroundTask(file.remove),
        )

    @app.post("/preview", dependencies=guarded)
    async def preview(body: PreviewIn) -> PreviewOut:
        """Read rows of a data set as training would."""
        return await preview_rows(parts.bases, body)

    @app.post("/stream", dependencies=guarded)
    async def stream(body: PredictIn) -> StreamingResponse:
        """The same, bit by bit: one JSON object a line, as ``Predictor.stream`` tells them.

        What goes wrong after the start is the last line, ``{"error": …}``. A client that hangs up
        ends its rows.
        """
        events = await parts.predictor.stream(
            body.rows, tenant=body.share, timeout_seconds=body.timeout_seconds
        )
        lines = _as_lines(events, parts)
        return StreamingResponse(lines, media_type="application/x-ndjson")


async def _as_lines(events: AsyncGenerator[dict[str, Any]], parts: Parts) -> AsyncIterator[bytes]:
    with parts.metrics.request():
        try:
            async with aclosing(events):
                async for event in events:
                    yield json.dumps(event).encode() + b"\n"
        except ServiceError as error:
            yield json.dumps(error_body(error)).encode() + b"\n"


async def _until_gone(parts: Parts, body: PredictIn, request: Request) -> PredictOut:
    """Wait for the answer, or for the client to hang up: then its waiting rows are dropped.

    Raises:
        ServiceError: The client hung up; nobody reads this.
    """
    answer = asyncio.ensure_future(
        parts.predictor.predict(body.rows, tenant=body.share, timeout_seconds=body.timeout_seconds)
    )
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
    finally:
        gone.cancel()
        answer.cancel()
        await asyncio.wait({answer, gone})
    raise ServiceError("the client went away", code="request_cancelled", status=_CLIENT_GONE_STATUS)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

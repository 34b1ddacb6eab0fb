"""A twin of vLLM's OpenAI server: its routes, bodies and answers; our own engine computes.

Adapters are read from the folders that it is told, as vLLM reads them, so what it writes shows
whether the export is right. It is no vLLM: scheduling, kernels and what vLLM does to a batch are
not here.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from peft_engine.bases.base import Base
from peft_engine.delta import Delta
from peft_engine.exchange.importing import ImportOptions, import_adapter
from peft_engine.generation import Sampling
from peft_engine.parts.batching import Example, TokenRow
from peft_engine.serving import Engine, PreparedRow

BASE_NAME = "org/base-as-vllm-calls-it"
_SAMPLING = ("temperature", "top_p", "repetition_penalty", "presence_penalty", "seed")


class TwinVllm:
    """One server with one base."""

    def __init__(self, base: Base) -> None:
        self._engine = Engine(base)
        self.adapters: dict[str, Delta] = {}
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.completions = 0
        self.hangs = False
        """Whether texts begin and never end."""
        self.hung_up = asyncio.Event()
        self.app = FastAPI()
        self.app.get("/v1/models")(self._models)
        self.app.post("/v1/load_lora_adapter")(self._load)
        self.app.post("/v1/unload_lora_adapter")(self._unload)
        self.app.post("/v1/completions")(self._complete)

    async def _models(self) -> dict[str, Any]:
        cards = [{"id": BASE_NAME, "object": "model", "parent": None}]
        cards += [{"id": n, "object": "model", "parent": BASE_NAME} for n in self.adapters]
        return {"object": "list", "data": cards}

    async def _load(self, body: dict[str, str]) -> Any:
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            message = f"The lora adapter '{name}' has already been loaded."
            return _refuse(400, message, "InvalidUserInput")
        self.loads.append(name)
        self.adapters[name] = import_adapter(self._engine.base, folder, ImportOptions()).delta
        return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, body: dict[str, str]) -> Any:
        name = body["lora_name"]
        if self.adapters.pop(name, None) is None:
            return _refuse(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        self.unloads.append(name)
        return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")

    async def _complete(self, body: dict[str, Any]) -> Any:
        model = body["model"]
        if model != BASE_NAME and model not in self.adapters:
            return _refuse(404, f"The model `{model}` does not exist.", "NotFoundError")
        self.completions += 1
        delta = self.adapters.get(model)
        sampling = Sampling(
            max_new_tokens=body["max_tokens"],
            stop=tuple(body.get("stop", ())),
            top_k=body.get("top_k", 0),
            logprobs=body.get("logprobs"),
            **{name: body[name] for name in _SAMPLING},
        )
        example = Example((TokenRow(body["prompt"]),))
        row = PreparedRow("generate", delta, (example,), samplings=(sampling,))
        answer = self._engine.predict([row])[0].output
        return StreamingResponse(self._events(answer), media_type="text/event-stream")

    async def _events(self, answer: dict[str, Any]) -> AsyncIterator[str]:
        text, half = answer["text"], len(answer["text"]) // 2
        yield _event({"choices": [{"index": 0, "text": text[:half], "finish_reason": None}]})
        if self.hangs:
            try:
                while True:
                    yield _event({"choices": [{"index": 0, "text": "", "finish_reason": None}]})
                    await asyncio.sleep(0.01)
            finally:
                self.hung_up.set()
        last = {"index": 0, "text": text[half:], "finish_reason": answer["finish_reason"]}
        if "logprobs" in answer:
            last["logprobs"] = {
                "tokens": [one["token"] for one in answer["logprobs"]],
                "token_logprobs": [one["logprob"] for one in answer["logprobs"]],
                "top_logprobs": [
                    {top["token"]: top["logprob"] for top in one["top"]}
                    for one in answer["logprobs"]
                ],
            }
        yield _event({"choices": [last]})
        yield _event({"choices": [], "usage": {"completion_tokens": answer["tokens"]}})
        yield "data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _refuse(status: int, message: str, kind: str) -> JSONResponse:
    fault = {"message": message, "type": kind, "param": None, "code": status}
    return JSONResponse({"error": fault}, status)

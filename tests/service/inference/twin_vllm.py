"""A twin of vLLM's OpenAI server: its routes, bodies and answers; our own engine computes.

What it says and refuses is what version 0.32.0 for CPUs said and refused. Adapters are read from
the folders that it is told, as vLLM reads them, so what it writes shows whether the export is
right. It is no vLLM: scheduling and kernels are not here.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from peft_engine.bases.base import Base
from peft_engine.decoding import DecodingRow, TokenChoice
from peft_engine.delta import Delta
from peft_engine.exchange.importing import ImportOptions, import_adapter
from peft_engine.generation import Sampling
from peft_engine.parts.batching import Example, TokenRow
from peft_engine.serving import Engine, PreparedRow

BASE_NAME = "org/base-as-vllm-calls-it"
_SAMPLING = ("temperature", "top_p", "repetition_penalty", "presence_penalty", "seed")
# As the generation_config.json of its model has it: in force for a body that says nothing of it.
_DEFAULT_TOP_K = 1


class TwinVllm:
    """One server with one base."""

    def __init__(self, base: Base) -> None:
        self._engine = Engine(base)
        self.takes_adapters = True
        self.max_lora_rank = 16
        self.max_model_len = 64
        self.max_logprobs = 5
        self.adapters: dict[str, Delta] = {}
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.completions = 0
        self.refused = 0
        self.hangs = False
        """Whether texts begin and never end."""
        self.is_silent = False
        """Whether rows wait in its queue and nothing is said."""
        self.breaks_off = False
        """Whether it ends in the middle of a text."""
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
        if not self.takes_adapters:
            return JSONResponse({"detail": "Not Found"}, 404)
        name, folder = body["lora_name"], Path(body["lora_path"])
        if name in self.adapters:
            message = f"The lora adapter '{name}' has already been loaded."
            return _refuse(400, message, "InvalidUserInput")
        if not folder.is_dir():
            message = f"Loading lora {name} failed: No adapter found for <path>"
            return _refuse(404, message, "NotFoundError")
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if rank > self.max_lora_rank:
            self.refused += 1
            message = f"LoRA rank {rank} is greater than max_lora_rank {self.max_lora_rank}."
            message = f"Call to add_lora method failed: Worker failed with error '{message}'"
            return _refuse(500, message, "InternalServerError")
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
        if len(body["prompt"]) + body["max_tokens"] > self.max_model_len:
            self.refused += 1
            message = f"This model's maximum context length is {self.max_model_len} tokens."
            return _refuse(400, message, "BadRequestError")
        if (asked := body.get("logprobs") or 0) > self.max_logprobs:
            events = self._sampler_refuses(asked)
        else:
            self.completions += 1
            events = self._events(self._write(body), names_ids="logprobs" in body)
        return StreamingResponse(events, media_type="text/event-stream")

    def _delta_of(self, model: str) -> Delta | None:
        if model == BASE_NAME:
            # a row without adapter gets what stands in the last slot, on CPUs
            return next(reversed(self.adapters.values()), None)
        return self.adapters[model]

    def _write(self, body: dict[str, Any]) -> DecodingRow:
        sampling = Sampling(
            max_new_tokens=body["max_tokens"],
            stop=tuple(body.get("stop", ())),
            top_k=body.get("top_k", _DEFAULT_TOP_K),
            logprobs=body.get("logprobs"),
            **{name: body[name] for name in _SAMPLING},
        )
        assert body["ignore_eos"]
        assert body["stop_token_ids"] == [self._engine.base.text.eos_id]
        example = Example((TokenRow(body["prompt"]),))
        delta, writer = self._delta_of(body["model"]), self._engine.writer
        writing = writer.prepare(PreparedRow("generate", delta, (example,), samplings=(sampling,)))
        writer.begin(writing)
        while not writing.is_over:
            writer.step()
        return writing.choices[0]

    async def _sampler_refuses(self, asked: int) -> AsyncIterator[str]:
        self.refused += 1
        message = f"Requested sample logprobs of {asked}, which is greater than max allowed"
        yield _event({"error": {"message": message, "type": "BadRequestError", "code": 400}})
        yield "data: [DONE]\n\n"

    async def _events(self, row: DecodingRow, *, names_ids: bool) -> AsyncIterator[str]:
        half = len(row.choices) // 2
        if self.is_silent:
            await self._wait()
        yield _choice(row.choices[:half], None, names_ids=names_ids)
        if self.hangs:
            async for event in self._idle():
                yield event
        if self.breaks_off:
            return
        yield _choice(row.choices[half:], row.finish_reason, names_ids=names_ids)
        yield "data: [DONE]\n\n"

    async def _idle(self) -> AsyncIterator[str]:
        try:
            while True:
                yield _choice((), None, names_ids=False)
                await asyncio.sleep(0.01)
        finally:
            self.hung_up.set()

    async def _wait(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.hung_up.set()


def _choice(tokens: Any, reason: str | None, *, names_ids: bool) -> str:
    made: tuple[TokenChoice, ...] = tuple(tokens)
    choice: dict[str, Any] = {"index": 0, "text": "as vLLM reads it", "finish_reason": reason}
    choice["token_ids"] = [one.token for one in made]
    if names_ids:
        choice["logprobs"] = {
            "tokens": [f"token_id:{one.token}" for one in made],
            "token_logprobs": [one.logprob for one in made],
            "top_logprobs": [
                {f"token_id:{token}": value for token, value in one.top}
                | {f"token_id:{one.token}": one.logprob}
                for one in made
            ],
        }
    return _event({"choices": [choice]})


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _refuse(status: int, message: str, kind: str) -> JSONResponse:
    fault = {"message": message, "type": kind, "param": None, "code": status}
    return JSONResponse({"error": fault}, status)

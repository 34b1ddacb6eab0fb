"""A vLLM server, seen from outside: load an adapter, let it go, write a text.

Knows its HTTP face and nothing of deltas or queues. The server must be started with
``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``, and see the folders that it is told to
load.

Source: vLLM's OpenAI-compatible server, ``/v1/models``, ``/v1/completions``,
``/v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``.
"""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from core.errors import Unavailable
from peft_engine.generation import Sampling

_CONNECT_SECONDS = 2.0
# Between two tokens, and for a load: longer than either takes unless the server is stuck.
_SILENCE_SECONDS = 60.0
_DATA = "data: "
_END = "[DONE]"


@dataclass(frozen=True)
class Piece:
    """What has come of a text since the piece before.

    Attributes:
        text: The new text.
        finish_reason: ``stop`` or ``length`` with the last text, else None.
        output_tokens: Tokens written in all, once it is told.
        logprobs: Of the new tokens, in the form of our own answers; empty where not asked.
    """

    text: str = ""
    finish_reason: str | None = None
    output_tokens: int | None = None
    logprobs: Sequence[dict[str, Any]] = ()


class UnknownModelError(Unavailable):
    """The server does not know the adapter (any more): it was started again."""


class VllmServer:
    """Asks one vLLM server; used on one event loop.

    Args:
        url: Where it listens.
    """

    def __init__(self, url: str) -> None:
        self._client = httpx.AsyncClient(
            base_url=url,
            timeout=httpx.Timeout(_SILENCE_SECONDS, connect=_CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )
        self._base: str | None = None

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def base_name(self) -> str:
        """Ask under which name the server has its base model.

        Returns:
            The name of the model that has no parent.

        Raises:
            Unavailable: The server lists none.
        """
        if self._base is None:
            listed = (await self._ask("GET", "/v1/models")).json()["data"]
            names = [model["id"] for model in listed if not model.get("parent")]
            if not names:
                raise Unavailable("the vLLM server lists no base model", code="base_unavailable")
            self._base = str(names[0])
        return self._base

    async def load(self, name: str, folder: Path) -> None:
        """Make an adapter known; one that is known already is left as it is.

        Args:
            name: To be asked by from now on; it names its content, so equal names are equal.
            folder: Files in the form of PEFT.

        Raises:
            Unavailable: The server refuses it.
        """
        body = {"lora_name": name, "lora_path": str(folder)}
        response = await self._ask("POST", "/v1/load_lora_adapter", body, fails=False)
        if response.status_code == 404 and "lora" not in response.text.lower():
            raise Unavailable(
                "the vLLM server does not load adapters at run time; start it with --enable-lora "
                "and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
                code="inference_unavailable",
            )
        if response.is_error and "already been loaded" not in response.text:
            raise Unavailable(
                f"the vLLM server refused the adapter: {_told(response)}",
                code="inference_unavailable",
            )

    async def unload(self, name: str) -> None:
        """Let an adapter go; an unknown one is ignored.

        Args:
            name: As it was loaded.
        """
        await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name}, fails=False)

    async def write(
        self, model: str, prompt: Sequence[int], sampling: Sampling
    ) -> AsyncGenerator[Piece]:
        """Write one text.

        Args:
            model: An adapter that is loaded, or the base.
            prompt: Tokens of the prompt.
            sampling: How to choose.

        Yields:
            Pieces as they come. Closing the generator early makes the server stop.

        Raises:
            UnknownModelError: The server does not know the model.
            Unavailable: It is gone, or fails on the way.
        """
        body = _completion(model, prompt, sampling)
        try:
            async with self._client.stream("POST", "/v1/completions", json=body) as response:
                if response.status_code == 404:
                    raise UnknownModelError(f"the vLLM server does not know {model}")
                if response.is_error:
                    await response.aread()
                    raise Unavailable(f"the vLLM server refused the row: {_told(response)}")
                async for line in response.aiter_lines():
                    data = line.removeprefix(_DATA)
                    if data != line and data != _END:
                        yield _piece(json.loads(data), sampling)
        except (httpx.TransportError, ValueError) as error:
            unreachable = _unreachable()
            raise unreachable from error

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, fails: bool = True
    ) -> httpx.Response:
        try:
            response = await self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            raise _unreachable() from error
        if fails and response.is_error:
            raise Unavailable(f"the vLLM server answered {response.status_code} to {path}")
        return response


def _completion(model: str, prompt: Sequence[int], sampling: Sampling) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        # the prompt is rendered by our template and has its special tokens
        "add_special_tokens": False,
    }
    if sampling.top_k:
        asked["top_k"] = sampling.top_k
    if sampling.stop:
        asked["stop"] = list(sampling.stop)
    if sampling.logprobs is not None:
        asked["logprobs"] = sampling.logprobs
    return asked


def _piece(event: Mapping[str, Any], sampling: Sampling) -> Piece:
    """Read one event.

    Raises:
        Unavailable: It tells of a failure.
    """
    if "error" in event:
        raise Unavailable(f"the vLLM server failed on the way: {event['error']}")
    choices = event.get("choices") or [{}]
    usage = event.get("usage") or {}
    return Piece(
        text=choices[0].get("text", ""),
        finish_reason=choices[0].get("finish_reason"),
        output_tokens=usage.get("completion_tokens"),
        logprobs=_logprobs(choices[0].get("logprobs"), sampling.logprobs),
    )


def _logprobs(told: Mapping[str, Any] | None, wanted: int | None) -> list[dict[str, Any]]:
    if told is None or wanted is None:
        return []
    tops = told.get("top_logprobs") or [{}] * len(told["tokens"])
    found = []
    for token, logprob, top in zip(told["tokens"], told["token_logprobs"], tops, strict=True):
        # the chosen token is among them even where it is not one of the likeliest
        likeliest = sorted((top or {}).items(), key=lambda item: -item[1])[:wanted]
        listed = [{"token": other, "logprob": value} for other, value in likeliest]
        found.append({"token": token, "logprob": logprob, "top": listed})
    return found


def _told(response: httpx.Response) -> str:
    return response.text[:300]


def _unreachable() -> Unavailable:
    return Unavailable(
        "the vLLM server cannot be reached; try again in a moment", code="inference_unavailable"
    )

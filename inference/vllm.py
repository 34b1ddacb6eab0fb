"""A vLLM server, seen from outside: load an adapter, let it go, write a text.

Knows its HTTP face and nothing of deltas or queues. The server must be started with
``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1``, and see the folders that it is told to
load. It only chooses tokens: what text they are, and which of them end it, is said here, so that
neither its tokenizer nor the ``generation_config.json`` of its model changes an answer.

Source: vLLM's OpenAI-compatible server, ``/v1/models``, ``/v1/completions``,
``/v1/load_lora_adapter`` and ``/v1/unload_lora_adapter``, as version 0.32.0 answers.
"""

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from core.errors import Unavailable
from peft_engine.decoding import TokenChoice
from peft_engine.generation import Sampling

_CONNECT_SECONDS = 2.0
# For a question about state and for a load, which waits for the step that runs.
_ANSWER_SECONDS = 60.0
# A row may wait long and silently in the server's own queue; its deadline is the caller's.
_WRITE_TIMEOUT = httpx.Timeout(None, connect=_CONNECT_SECONDS)
_DATA = "data: "
_END = "[DONE]"
_BEFORE_ID = "token_id:"
"""What stands before the id of a token where logprobs are told."""
_ENDINGS = {None, "stop", "length"}
"""Others (``abort``, ``error``) say that the server gave the row up."""


@dataclass(frozen=True)
class Piece:
    """What has come of a text since the piece before.

    Attributes:
        tokens: The new tokens, with logprobs where asked.
        finish_reason: ``stop`` or ``length`` with the last tokens, else None.
    """

    tokens: Sequence[TokenChoice] = ()
    finish_reason: str | None = None


class UnknownModelError(Unavailable):
    """The server does not know the adapter (any more): it was started again."""


class RefusedError(Unavailable):
    """The server works, and cannot hold this adapter or write this row."""


class NoAdaptersError(RefusedError):
    """The server takes no adapters at all."""


class VllmServer:
    """Asks one vLLM server; used on one event loop.

    Args:
        url: Where it listens.
        key: What it was given as ``--api-key``; None: nothing.
    """

    def __init__(self, url: str, *, key: str | None = None) -> None:
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )
        self._base: str | None = None

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def forget_base(self) -> None:
        """Ask for the name of the base again: the server was started again."""
        self._base = None

    async def base_name(self) -> str:
        """Ask under which name the server has its base model.

        Returns:
            The name of the model that has no parent.

        Raises:
            Unavailable: The server cannot be asked, or lists none.
        """
        if self._base is None:
            response = await self._ask("GET", "/v1/models")
            if response.is_error:
                raise Unavailable(
                    f"the vLLM server answered {response.status_code} to /v1/models",
                    code="inference_unavailable",
                )
            names = [own["id"] for own in response.json()["data"] if not own.get("parent")]
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
            NoAdaptersError: The server was not started to take adapters.
            RefusedError: It cannot hold this one.
        """
        body = {"lora_name": name, "lora_path": str(folder)}
        response = await self._ask("POST", "/v1/load_lora_adapter", body)
        told = response.text
        if not response.is_error or "already been loaded" in told:
            return
        no_route = response.status_code == 404 and "lora" not in told.lower()
        if no_route or "LoRA is not enabled" in told:
            raise NoAdaptersError(
                "the vLLM server does not load adapters at run time; start it with --enable-lora "
                "and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
                code="inference_unavailable",
            )
        raise RefusedError(_told(response), code="inference_unavailable")

    async def unload(self, name: str) -> None:
        """Let an adapter go; an unknown one is ignored.

        Args:
            name: As it was loaded.
        """
        await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name})

    async def write(
        self, model: str, prompt: Sequence[int], sampling: Sampling, *, end_id: int | None
    ) -> AsyncGenerator[Piece]:
        """Write one text.

        Args:
            model: An adapter that is loaded, or the base.
            prompt: Tokens of the prompt.
            sampling: How to choose.
            end_id: The token that ends a text.

        Yields:
            Pieces as they come. Closing the generator early makes the server stop.

        Raises:
            UnknownModelError: The server does not know the model.
            RefusedError: It does not begin the row: it is too long for it, or asks too much.
            Unavailable: It is gone, or fails on the way.
        """  # noqa: DOC501, DOC502  made below
        body = _completion(model, prompt, sampling, end_id)
        begun = False
        try:
            async with self._client.stream(
                "POST", "/v1/completions", json=body, timeout=_WRITE_TIMEOUT
            ) as response:
                if response.is_error:
                    await response.aread()
                    raise _refusal(response, model)
                async for line in response.aiter_lines():
                    data = line.removeprefix(_DATA)
                    if data != line and data != _END:
                        yield _piece(json.loads(data), sampling, begun=begun)
                        begun = True
        except (httpx.TransportError, ValueError) as error:
            unreachable = _unreachable()
            raise unreachable from error

    async def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        try:
            return await self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            raise _unreachable() from error


def _completion(
    model: str, prompt: Sequence[int], sampling: Sampling, end_id: int | None
) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": sampling.max_new_tokens,
        # What is left out here the server takes from its model's generation_config.json.
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
        # That file may name other end tokens than the base's own.
        "ignore_eos": True,
        "stop_token_ids": [] if end_id is None else [end_id],
        "stop": list(sampling.stop),
        "stream": True,
        "return_token_ids": True,
        # the prompt is rendered by our template and has its special tokens
        "add_special_tokens": False,
    }
    if sampling.logprobs is not None:
        asked |= {"logprobs": sampling.logprobs, "return_tokens_as_token_ids": True}
    return asked


def _refusal(response: httpx.Response, model: str) -> Unavailable:
    if response.status_code == 404:
        return UnknownModelError(
            f"the vLLM server does not know {model}", code="inference_unavailable"
        )
    if response.status_code == 400:
        return RefusedError(_told(response), code="inference_unavailable")
    return Unavailable(
        f"the vLLM server answered {response.status_code} to a row", code="inference_unavailable"
    )


def _piece(event: Mapping[str, Any], sampling: Sampling, *, begun: bool) -> Piece:
    """Read one event.

    Raises:
        RefusedError: What the sampler refuses comes with status 200, as the first event.
        Unavailable: The event tells of a failure, or has no tokens.
    """  # noqa: DOC502
    if "error" in event:
        error = event["error"]
        kind = RefusedError if error.get("code") == 400 and not begun else Unavailable
        raise kind(
            f"the vLLM server failed on the way: {error.get('message')}",
            code="inference_unavailable",
        )
    choice = (event.get("choices") or [{"token_ids": []}])[0]
    reason = choice.get("finish_reason")
    if "token_ids" not in choice or reason not in _ENDINGS:
        raise Unavailable(
            f"the vLLM server gave the row up ({reason})"
            if reason not in _ENDINGS
            else "the vLLM server tells no token ids; it is older than those that were tried",
            code="inference_unavailable",
        )
    ids, told = choice["token_ids"] or [], choice.get("logprobs")
    if sampling.logprobs is None or told is None:
        return Piece([TokenChoice(token) for token in ids], reason)
    return Piece(_with_logprobs(ids, told, sampling.logprobs), reason)


def _with_logprobs(ids: Sequence[int], told: Mapping[str, Any], wanted: int) -> list[TokenChoice]:
    tops = told.get("top_logprobs") or [None] * len(ids)
    found = []
    for token, logprob, top in zip(ids, told["token_logprobs"], tops, strict=True):
        # the chosen token is among them even where it is not one of the likeliest
        likeliest = sorted((top or {}).items(), key=lambda item: -item[1])[:wanted]
        named = tuple((int(name.removeprefix(_BEFORE_ID)), value) for name, value in likeliest)
        found.append(TokenChoice(token, logprob, named))
    return found


def _told(response: httpx.Response) -> str:
    return response.text[:300]


def _unreachable() -> Unavailable:
    return Unavailable(
        "the vLLM server cannot be reached; try again in a moment", code="inference_unavailable"
    )

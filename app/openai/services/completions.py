"""Prompts: in the words of ``/predict``, and what was written in those of OpenAI."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from app.openai.schemas.completions import (
    Completion,
    CompletionChoice,
    CompletionChunk,
    CompletionChunkChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from app.openai.services.targets import SEEDS, as_request
from app.openai.services.texts import TASK, Asked, Written, as_usage, read_options
from app.schemas.predictions import PredictRequest
from core.settings import Settings


def read_request(settings: Settings, body: CompletionRequest) -> tuple[PredictRequest, int | None]:
    """Read a request.

    Args:
        settings: Which bases there are.
        body: The request.

    Returns:
        One row for ``/predict`` for each prompt, and the seed in force.
    """
    options, seed = read_options(body, max_tokens=body.max_tokens, logprobs=body.logprobs)
    prompts = [body.prompt] if isinstance(body.prompt, str) else list(body.prompt)
    own = [options | _own_seed(seed, place * body.n) for place in range(len(prompts))]
    request = as_request(settings, model=body.model, task=TASK, inputs=prompts, options=own)
    return request, seed


def _own_seed(seed: int | None, choice: int) -> dict[str, int]:
    """What the first choice of a prompt is drawn with: equal prompts have texts of their own."""
    return {} if seed is None else {"seed": (seed + choice) % SEEDS}


def as_completion(asked: Asked, found: dict[str, Any]) -> Completion:
    """Shape what was written.

    Args:
        asked: What was asked.
        found: ``outputs``, ``receipts`` and ``usage``.

    Returns:
        The answer.
    """
    return Completion(
        **asked.head,
        **asked.origin(found["receipts"][0]),
        choices=[
            CompletionChoice.model_validate(_ending(written, written.text))
            for row, output in enumerate(found["outputs"])
            for written in asked.choices(row, output)
        ],
        usage=as_usage(found["usage"]),
    )


class CompletionForm:
    """How prompts are read, and answers to them shown."""

    field = "prompt"
    kind = "cmpl"
    read = staticmethod(read_request)
    whole = staticmethod(as_completion)

    def opening(self, index: int) -> None:  # noqa: ARG002  protocol
        """Nothing comes before the text.

        Args:
            index: Of the choice.
        """
        return

    def piece(self, index: int, text: str) -> CompletionChunkChoice:
        """New text.

        Args:
            index: Of the choice.
            text: What is new.

        Returns:
            A choice with that text.
        """
        return CompletionChunkChoice(index=index, text=text)

    def ending(self, written: Written) -> CompletionChunkChoice:
        """The end of a choice.

        Args:
            written: The whole of it.

        Returns:
            A choice with the reason and all log-probabilities.
        """
        return CompletionChunkChoice.model_validate(_ending(written, ""))

    def chunk(self, **fields: Any) -> CompletionChunk:
        """An event.

        Args:
            **fields: Of the chunk.

        Returns:
            The chunk.
        """
        return CompletionChunk(**fields)


def _ending(written: Written, text: str) -> dict[str, Any]:
    return {
        "index": written.index,
        "text": text,
        "finish_reason": written.finish_reason,
        "logprobs": _as_logprobs(written.logprobs),
    }


def _as_logprobs(tokens: Sequence[Mapping[str, Any]] | None) -> CompletionLogprobs | None:
    if tokens is None:
        return None
    texts = [str(token["token"]) for token in tokens]
    return CompletionLogprobs(
        tokens=texts,
        token_logprobs=[token["logprob"] for token in tokens],
        # from the last, so that of one text the likelier stays
        top_logprobs=[
            {top["token"]: top["logprob"] for top in reversed(token["top"])} for token in tokens
        ],
        text_offset=list(accumulate(map(len, texts[:-1]), initial=0)) if texts else [],
    )

"""Conversations: in the words of ``/predict``, and what was written in those of OpenAI."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.openai.schemas.chat import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    ChatRequest,
    TokenProbability,
    WrittenToken,
)
from app.openai.services.targets import as_request
from app.openai.services.texts import TASK, Asked, Written, as_usage, read_options
from app.schemas.predictions import PredictRequest
from core.settings import Settings

_PART_OF_A_CHARACTER = "�"
"""What a decoder shows for bytes that are no whole character."""


def read_request(settings: Settings, body: ChatRequest) -> tuple[PredictRequest, int | None]:
    """Read a request.

    Args:
        settings: Which bases there are.
        body: The request.

    Returns:
        One row for ``/predict``, and the seed in force.
    """
    likeliest = (body.top_logprobs or 0) if body.logprobs else None
    most = body.max_completion_tokens or body.max_tokens
    options, seed = read_options(body, max_tokens=most, logprobs=likeliest)
    row = {"messages": [_as_turn(message) for message in body.messages]}
    request = as_request(settings, model=body.model, task=TASK, inputs=[row], options=[options])
    return request, seed


def as_completion(asked: Asked, found: dict[str, Any]) -> ChatCompletion:
    """Shape what was written.

    Args:
        asked: What was asked.
        found: ``outputs``, ``receipts`` and ``usage``.

    Returns:
        The answer.
    """
    return ChatCompletion(
        **asked.head,
        **asked.origin(found["receipts"][0]),
        choices=[_as_choice(written) for written in asked.choices(0, found["outputs"][0])],
        usage=as_usage(found["usage"]),
    )


class ChatForm:
    """How conversations are read and shown."""

    field = "messages"
    kind = "chatcmpl"
    read = staticmethod(read_request)
    whole = staticmethod(as_completion)

    def opening(self, index: int) -> ChatChunkChoice:
        """The role.

        Args:
            index: Of the choice.

        Returns:
            A choice without text.
        """
        return ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))

    def piece(self, index: int, text: str) -> ChatChunkChoice:
        """New text.

        Args:
            index: Of the choice.
            text: What is new.

        Returns:
            A choice with that text.
        """
        return ChatChunkChoice(index=index, delta=ChatDelta(content=text))

    def ending(self, written: Written) -> ChatChunkChoice:
        """The end of a choice.

        Args:
            written: The whole of it.

        Returns:
            A choice with the reason and all log-probabilities.
        """
        return ChatChunkChoice.model_validate(
            {
                "index": written.index,
                "delta": ChatDelta(),
                "finish_reason": written.finish_reason,
                "logprobs": _as_logprobs(written.logprobs),
            }
        )

    def chunk(self, **fields: Any) -> ChatChunk:
        """An event.

        Args:
            **fields: Of the chunk.

        Returns:
            The chunk.
        """
        return ChatChunk(**fields)


def _as_turn(message: ChatMessage) -> dict[str, str]:
    content = message.content
    text = content if isinstance(content, str) else "".join(part.text for part in content)
    return {"role": "system" if message.role == "developer" else message.role, "content": text}


def _as_choice(written: Written) -> ChatChoice:
    return ChatChoice.model_validate(
        {
            "index": written.index,
            "message": AssistantMessage(content=written.text),
            "finish_reason": written.finish_reason,
            "logprobs": _as_logprobs(written.logprobs),
        }
    )


def _as_logprobs(tokens: Sequence[Mapping[str, Any]] | None) -> ChatLogprobs | None:
    if tokens is None:
        return None
    return ChatLogprobs(
        content=[
            WrittenToken(
                **_as_token(token),
                top_logprobs=[TokenProbability(**_as_token(t)) for t in token["top"]],
            )
            for token in tokens
        ]
    )


def _as_token(token: Mapping[str, Any]) -> dict[str, Any]:
    text = str(token["token"])
    whole = _PART_OF_A_CHARACTER not in text
    return {
        "token": text,
        "logprob": token["logprob"],
        "bytes": list(text.encode()) if whole else None,
    }

"""``POST /v1/chat/completions``."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from app.openai.schemas.shared import FinishReason, NotOffered, TextRequest, TokenUsage, Traced
from app.schemas.shared import Asked, Sent, Text

_NO_TOOLS = "models here write text and call no tools"


class TextPart(Asked):
    """A piece of a message; pieces are joined as they are."""

    type: Literal["text"]
    text: Text


class ChatMessage(Asked):
    """One turn of the conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="`developer` is the same as `system`."
    )
    content: tuple[TextPart, ...] | Text = Field(description="Text only.")
    name: Annotated[Any, NotOffered("templates have no place for names")] = None
    refusal: Annotated[Any, NotOffered("refusals are texts")] = None
    annotations: Annotated[Any, NotOffered("texts have no annotations", ([],))] = None
    audio: Annotated[Any, NotOffered("text only")] = None
    function_call: Annotated[Any, NotOffered(_NO_TOOLS)] = None
    tool_calls: Annotated[Any, NotOffered(_NO_TOOLS, ([],))] = None


class ChatRequest(TextRequest):
    """A conversation to go on with."""

    messages: tuple[ChatMessage, ...] = Field(
        min_length=1,
        description="Rendered by the model's own template; the last one is the user's.",
        examples=[[{"role": "user", "content": "name[Aromi], food[Chinese]"}]],
    )
    max_completion_tokens: int | None = Field(
        None, ge=1, le=4096, description="Most tokens to write; 128 unless it is sent."
    )
    max_tokens: int | None = Field(
        None, ge=1, le=4096, description="The older name of `max_completion_tokens`."
    )
    logprobs: bool | None = Field(
        None, description="The log-probability of every token; a stream has them at its end."
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="So many of the likeliest tokens too; needs `logprobs`."
    )
    response_format: Annotated[Any, NotOffered("texts are written freely", ({"type": "text"},))] = (
        None
    )
    tools: Annotated[Any, NotOffered(_NO_TOOLS, ([],))] = None
    tool_choice: Annotated[Any, NotOffered(_NO_TOOLS, ("none", "auto"))] = None
    parallel_tool_calls: Annotated[Any, NotOffered(_NO_TOOLS, (True, False))] = None
    functions: Annotated[Any, NotOffered(_NO_TOOLS, ([],))] = None
    function_call: Annotated[Any, NotOffered(_NO_TOOLS, ("none", "auto"))] = None
    modalities: Annotated[Any, NotOffered("text only", (["text"],))] = None
    audio: Annotated[Any, NotOffered("text only")] = None
    prediction: Annotated[Any, NotOffered("no predicted outputs")] = None
    reasoning_effort: Annotated[Any, NotOffered("no model here reasons apart from its text")] = None
    verbosity: Annotated[Any, NotOffered("ask for it in a message")] = None
    web_search_options: Annotated[Any, NotOffered("nothing is looked up")] = None
    service_tier: Annotated[Any, NotOffered("there is one tier", ("auto", "default"))] = None
    store: Annotated[Any, NotOffered("answers are not kept", (False,))] = None
    metadata: Annotated[Any, NotOffered("answers are not kept", ({},))] = None

    @field_validator("max_tokens")
    @classmethod
    def _agrees(cls, value: int | None, info: ValidationInfo) -> int | None:
        newer = info.data.get("max_completion_tokens")
        if newer is not None and value not in {None, newer}:
            raise ValueError(f"max_completion_tokens says {newer}; send one of them")
        return value

    @field_validator("top_logprobs")
    @classmethod
    def _is_wanted(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("logprobs"):
            raise ValueError("needs logprobs: true")
        return value


class TokenProbability(Sent):
    """A token that might have been written."""

    token: str
    logprob: float
    bytes: list[int] | None = Field(
        description="UTF-8 of the token; null for a token that is a part of a character."
    )


class WrittenToken(TokenProbability):
    """A token that was written."""

    top_logprobs: list[TokenProbability]


class ChatLogprobs(Sent):
    """Natural logarithms, before temperature and penalties."""

    content: list[WrittenToken]
    refusal: None = None


class AssistantMessage(Sent):
    """What was written."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Sent):
    """One answer."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None = None


class ChatCompletion(Traced):
    """The answers to a conversation."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: TokenUsage


class ChatDelta(Sent):
    """What is new of a message."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Sent):
    """What is new of one answer."""

    index: int
    delta: ChatDelta
    finish_reason: FinishReason | None = None
    logprobs: ChatLogprobs | None = None


class ChatChunk(Traced):
    """One event of a stream."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: TokenUsage | None = None

"""``POST /v1/completions``."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.openai.schemas.shared import FinishReason, NotOffered, TextRequest, TokenUsage, Traced
from app.schemas.shared import Sent, Text


class CompletionRequest(TextRequest):
    """Prompts to answer."""

    prompt: Text | tuple[Text, ...] = Field(
        min_length=1,
        description="One text or several. Rendered as `prompt` of a training record is: by the "
        "model's template where it has one.",
        examples=["name[Aromi], food[Chinese]"],
    )
    max_tokens: int = Field(16, ge=1, le=4096, description="Most tokens to write for a choice.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=20,
        description="The log-probability of every token, and so many of the likeliest; a stream "
        "has them at its end.",
    )
    echo: Annotated[Any, NotOffered("prompts are not scored", (False,))] = None
    suffix: Annotated[Any, NotOffered("nothing is written between texts")] = None
    best_of: Annotated[Any, NotOffered("every choice is given", (1,))] = None


class CompletionLogprobs(Sent):
    """Natural logarithms, before temperature and penalties."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] = Field(
        description="By the text of a token: of two tokens of one text the likelier is told."
    )
    text_offset: list[int] = Field(description="Where each token begins, in characters.")


class CompletionChoice(Sent):
    """One answer; of several prompts the first `n` are the first prompt's."""

    index: int
    text: str
    finish_reason: FinishReason
    logprobs: CompletionLogprobs | None = None


class Completion(Traced):
    """The answers to all prompts."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: TokenUsage


class CompletionChunkChoice(Sent):
    """What is new of one answer."""

    index: int
    text: str
    finish_reason: FinishReason | None = None
    logprobs: CompletionLogprobs | None = None


class CompletionChunk(Traced):
    """One event of a stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChunkChoice]
    usage: TokenUsage | None = None

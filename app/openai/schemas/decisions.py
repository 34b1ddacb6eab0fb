"""What ``POST /v1/decisions`` takes."""

from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictStr, field_validator

from app.openai.schemas.shared import Model, NotOffered
from app.schemas.shared import Asked, Text
from peft_engine.configs.nesting import is_deeper

MAX_QUESTIONS = 400
MAX_CHOICES = 255
MAX_LEVELS = 10
MAX_JSON_LEVELS = 32
"""As OpenAI has it, all four."""
_MAX_VALUE_CHARS = 512

_NO_CACHE = "no prompt is kept from one request to the next"


class TextPart(Asked):
    """A piece of text."""

    type: Literal["input_text", "output_text"]
    text: Text
    prompt_cache_breakpoint: Annotated[Any, NotOffered(_NO_CACHE)] = None


class JsonPart(Asked):
    """JSON, which is read as its text."""

    type: Literal["input_json"]
    data: dict[str, Any] | list[dict[str, Any]]

    @field_validator("data")
    @classmethod
    def _is_shallow(cls, value: Any) -> Any:
        if is_deeper(value, MAX_JSON_LEVELS):
            raise ValueError(f"has more than {MAX_JSON_LEVELS} lists and objects in one another")
        return value


Content = tuple[Annotated[TextPart | JsonPart, Field(discriminator="type")], ...] | Text
# lists first, so that what is wrong inside one is told before that it is no text


class InputMessage(Asked):
    """One turn of a conversation."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"] = Field(
        description="`developer` is the same as `system`."
    )
    content: Content = Field(description="Text, or parts of text and JSON, a line each.")
    phase: Annotated[Any, NotOffered("turns have no phases")] = None


class Option(Asked):
    """One of several choices."""

    value: Annotated[StrictStr, Field(min_length=1, max_length=_MAX_VALUE_CHARS)] | StrictBool = (
        Field(description="A boolean is answered as one; its text is `true` or `false`.")
    )
    description: Text | None = Field(
        None, description="Told to a model that writes; a classifier knows its labels by name."
    )

    @property
    def text(self) -> str:
        """What a model says, or a classifier calls it."""
        return self.value if isinstance(self.value, str) else str(self.value).lower()


class Level(Asked):
    """One step of a scale."""

    label: Annotated[Text, Field(min_length=1, max_length=_MAX_VALUE_CHARS)]
    description: Text | None = None

    @property
    def text(self) -> str:
        """What a model says, or a classifier calls it."""
        return self.label


class _Question(Asked):
    name: Text | None = Field(None, max_length=512, description="Given back with the answer.")
    instructions: Content = Field(
        description="What is asked about the input. Empty: the input is all that is read."
    )


class Predicate(_Question):
    """How likely a statement about the input is true."""

    type: Literal["predicate"]


class Choice(_Question):
    """Which of several choices fits the input."""

    type: Literal["choice"]
    choices: tuple[Option, ...] = Field(min_length=2, max_length=MAX_CHOICES)

    @field_validator("choices")
    @classmethod
    def _differ(cls, value: tuple[Option, ...]) -> tuple[Option, ...]:
        _check_different([option.text for option in value], "choices")
        return value


class Score(_Question):
    """Where the input stands on a scale."""

    type: Literal["score"]
    levels: tuple[Level, ...] = Field(
        min_length=2, max_length=MAX_LEVELS, description="From the lowest to the highest."
    )

    @field_validator("levels")
    @classmethod
    def _differ(cls, value: tuple[Level, ...]) -> tuple[Level, ...]:
        _check_different([level.label for level in value], "levels")
        return value


Question = Annotated[Predicate | Choice | Score, Field(discriminator="type")]


class DecisionRequest(Asked):
    """Questions about one input."""

    model: Model = Field(
        description="A classifier, a regression, or whatever writes: an adapter (id, name, "
        "`name@version` or alias) or a base model.",
        examples=["support-intents"],
    )
    input: Annotated[tuple[InputMessage, ...], Field(min_length=1)] | Text = Field(
        description="A text, or a conversation.", examples=["My card has not arrived"]
    )
    questions: tuple[Question, ...] = Field(min_length=1, max_length=MAX_QUESTIONS)
    safety_identifier: Text | None = Field(
        None, max_length=512, description="Your own name for who asks; no answer depends on it."
    )
    prompt_cache_key: Annotated[Any, NotOffered(_NO_CACHE)] = None
    prompt_cache_options: Annotated[Any, NotOffered(_NO_CACHE)] = None


def _check_different(texts: list[str], what: str) -> None:
    twice = [text for place, text in enumerate(texts) if text in texts[:place]]
    if twice:
        raise ValueError(f"{what} must differ, and {twice[0]!r:.100} is there twice")

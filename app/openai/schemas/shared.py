"""What several bodies share: fields that are not offered, how texts are drawn, token counts."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from app.schemas.predictions import Receipt
from app.schemas.shared import MAX_REFERENCE_CHARS, Asked, Sent, Text

Model = Annotated[Text, Field(min_length=1, max_length=MAX_REFERENCE_CHARS)]
"""Who is asked, or trained."""


@dataclass(frozen=True)
class NotOffered:
    """A field of OpenAI's that means nothing here: only what it is anyway is taken.

    Attributes:
        why: What there is instead, or that there is nothing.
        neutral: Values that ask for nothing; null always is one.
    """

    why: str
    neutral: tuple[Any, ...] = ()

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Check the value.

        Args:
            source: The annotated type, which is of no matter.
            handler: Not needed.

        Returns:
            A schema that refuses by the code ``unsupported``.
        """
        del source, handler

        def check(value: Any) -> Any:
            if value is None or any(_same(value, one) for one in self.neutral):
                return value
            raise PydanticCustomError("unsupported", "not offered here: {why}", {"why": self.why})

        return core_schema.no_info_plain_validator_function(check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the value.

        Args:
            schema: Of the check.
            handler: Not needed.

        Returns:
            An enumeration of what is taken.
        """
        del schema, handler
        return {"enum": [None, *self.neutral], "description": f"Not offered: {self.why}."}


def _same(value: Any, one: Any) -> bool:
    # for Python True is 1, for JSON it is not
    return type(value) is type(one) and bool(value == one)


class NullIsDefault(Asked):
    """Fields that have a default take null for it, which the official client sends for None."""

    @model_validator(mode="before")
    @classmethod
    def _leave_nulls_out(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        fields = cls.model_fields
        return {
            name: own
            for name, own in value.items()
            if own is not None or name not in fields or fields[name].is_required()
        }


class StreamOptions(NullIsDefault):
    """How a stream ends."""

    include_usage: bool = Field(
        False, description="A last chunk without choices has the usage; all others have null."
    )
    include_obfuscation: Annotated[Any, NotOffered("no padding is added", (False,))] = None


class OwnOptions(Asked):
    """Options of ours, which the official client sends in `extra_body`."""

    top_k: int | None = Field(
        None, ge=0, le=1_000_000, description="Only so many likeliest tokens; 0: all."
    )
    repetition_penalty: float | None = Field(
        None,
        ge=0.1,
        le=10,
        description="Above 1: tokens of prompt and text become less likely (CTRL).",
    )


class TextRequest(NullIsDefault):
    """What every request for a text can say."""

    model: Model = Field(
        description="An adapter (id, name, `name@version` or alias) or a base model; a base's name "
        "means the base. `GET /v1/models` lists all.",
        examples=["menu-texts"],
    )
    temperature: float = Field(
        1.0, ge=0, le=2, description="0: always the likeliest token. `/predict` has 0 by default."
    )
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(
        1,
        ge=1,
        le=16,
        description="Texts for every prompt; above 1 it needs a seed's "
        "chance: a temperature above 0.",
    )
    stop: tuple[Text, ...] | Text | None = Field(
        None, description="Up to 16 texts at which the answer ends; they are cut off."
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=2**63 - 1,
        description="The same request with the same seed gives the same texts, whoever else is "
        "answered meanwhile: choice i is drawn with seed + i. Left out, it is drawn, and `x_seed` "
        "tells it.",
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken from the logits of tokens that were written already."
    )
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="The same, times how often.")
    stream: bool = Field(False, description="Server-sent events while the text is written.")
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    user: Text | None = Field(
        None, max_length=512, description="Your own name for who asks; no answer depends on it."
    )
    logit_bias: Annotated[Any, NotOffered("no bias by token", ({},))] = None
    x_tunery: OwnOptions = OwnOptions()

    @field_validator("stream_options")
    @classmethod
    def _is_used(cls, value: StreamOptions | None, info: ValidationInfo) -> StreamOptions | None:
        if value is not None and not info.data.get("stream"):
            raise ValueError("needs stream: true")
        return value


class TokenUsage(Sent):
    """Tokens read and written over all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Traced(Sent):
    """What every answer says of its origin."""

    id: str
    created: int = Field(description="Unix seconds.")
    model: str = Field(description="Who answered: `name@version`, or the base.")
    system_fingerprint: str | None = Field(
        None,
        description="What produced this: `fp_`, 12 characters of the base's fingerprint and, of an "
        "adapter, 12 of its digest. Equal fingerprints: equal weights.",
    )
    x_seed: int | None = Field(
        None, description="The seed in force; null where nothing was drawn (temperature 0)."
    )
    x_receipt: Receipt | None = Field(
        None, description="Proof of which weights answered; of a stream it is in the last choices."
    )


FinishReason = Literal["stop", "length"]

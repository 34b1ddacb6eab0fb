"""The one pydantic base class of every configuration: frozen, and strict about fields and types."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from peft_engine.configs.json_types import only_json_types

Auto = Literal["auto"]
"""The engine resolves the value by a documented rule and shows it in the job."""

TaskName = Literal[
    "text-classification",
    "regression",
    "token-classification",
    "relation-extraction",
    "question-answering",
    "multiple-choice",
    "text-generation",
]
"""Tasks that the engine can train and answer."""


class Config(BaseModel):
    """Frozen value object; an unknown field is an error, and so is `true` or `"8"` for a number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Take no number, and no truth value, of another type.

        Args:
            source: The class.
            handler: Makes the schema of its fields.

        Returns:
            The same schema, strict about each number and truth value in it.
        """
        strict: CoreSchema = only_json_types(handler(source))
        return strict

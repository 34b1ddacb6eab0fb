"""The one pydantic base class of every configuration: frozen, and strict about unknown fields."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

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
    """Frozen value object; an unknown field is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

"""What ``POST /v1/decisions`` answers."""

from typing import Annotated, Literal

from pydantic import Field

from app.schemas.predictions import Receipt
from app.schemas.shared import Sent

Probability = Annotated[float, Field(ge=0, le=1)]


class _Answer(Sent):
    name: str | None = Field(description="Of the question.")
    x_coverage: Probability | None = Field(
        None,
        description="Probability of everything offered together, before it was made to sum to 1: "
        "how likely the model is to give one of these answers at all. null where there is none.",
    )


class PredicateAnswer(_Answer):
    """How likely a statement is true."""

    type: Literal["predicate"] = "predicate"
    probability: Probability


class ChoiceProbability(Sent):
    """One choice."""

    value: str | bool
    probability: Probability


class ChoiceAnswer(_Answer):
    """The likeliest choice."""

    type: Literal["choice"] = "choice"
    choice: str | bool = Field(description="Of equally likely ones the first.")
    confidence: Probability = Field(description="Its probability.")
    probabilities: list[ChoiceProbability] = Field(description="In the order of the question.")


class LevelProbability(Sent):
    """One level."""

    label: str
    value: int = Field(description="Its place on the scale, from 0.")
    probability: Probability


class ScoreAnswer(_Answer):
    """A place on a scale."""

    type: Literal["score"] = "score"
    score: float = Field(description="Sum of the places of the levels, each by its probability.")
    confidence: Probability = Field(description="The largest probability.")
    probabilities: list[LevelProbability] = Field(description="In the order of the question.")
    x_value: float | None = Field(None, description="Of a regression: the number that it gives.")


AnyAnswer = Annotated[PredicateAnswer | ChoiceAnswer | ScoreAnswer, Field(discriminator="type")]


class InputTokensDetails(Sent):
    """Nothing is kept from one request to the next."""

    cached_tokens: Literal[0] = 0
    cache_write_tokens: Literal[0] = 0


class OutputTokensDetails(Sent):
    """Nothing is written."""

    reasoning_tokens: Literal[0] = 0


class DecisionUsage(Sent):
    """Tokens read over all questions."""

    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: Literal[0] = 0
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class Decision(Sent):
    """Answers in the order of the questions."""

    model: str = Field(description="Who answered: `name@version`, or the base.")
    answers: list[AnyAnswer]
    usage: DecisionUsage
    x_receipt: Receipt = Field(description="Proof of which weights answered.")

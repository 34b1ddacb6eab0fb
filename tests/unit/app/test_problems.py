"""What a user is told of a bad body: in the words of JSON."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.openai.schemas.completions import CompletionRequest
from app.openai.schemas.decisions import DecisionRequest
from app.schemas.shared import refusal_of

_QUESTION = {"type": "predicate", "instructions": "x"}


@pytest.mark.parametrize(
    ("schema", "body", "told"),
    [
        (
            DecisionRequest,
            {"input": "i", "questions": []},
            "questions: must be at least 1 long, not 0",
        ),
        (
            DecisionRequest,
            {"input": "i", "questions": [_QUESTION] * 401},
            "questions: must be at most 400 long, not 401",
        ),
        (CompletionRequest, {"prompt": ""}, "prompt: must be at least 1 long, not 0, got ''"),
        (CompletionRequest, {"prompt": 5}, "prompt: Input should be a valid list, or: "),
        (CompletionRequest, {"prompt": "a", "x": 1}, "x: there is no such field"),
    ],
)
def test_lengths_and_kinds_are_told_without_the_words_of_python(
    schema: Any, body: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate({"model": "m"} | body)
    message = refusal_of(caught.value).message
    assert message.startswith(told)
    assert "uple" not in message

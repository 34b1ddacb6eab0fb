"""What a user is told of a bad body: in the words of JSON."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.openai.schemas.completions import CompletionRequest
from app.openai.schemas.decisions import DecisionRequest
from app.schemas.checkpoints import PublishRequest
from app.schemas.shared import refusal_of
from peft_engine.configs import JobSpec, TrainingConfig

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


@pytest.mark.parametrize(
    ("schema", "body", "params"),
    [
        (
            TrainingConfig,
            {"class_weights": {"float": "x"}},
            ["class_weights", "class_weights.float"],
        ),
        (TrainingConfig, {"class_weights": 5}, ["class_weights"]),
        (TrainingConfig, {"batch_size": "x", "seed": "x"}, ["batch_size", "seed"]),
        (
            PublishRequest,
            {"metadata": {"str": 5, "int": 5, "list-price": 5, "a.b": 5}},
            ["metadata.str", "metadata.int", "metadata.list-price", "metadata.a.b"],
        ),
        (
            JobSpec,
            {
                "dataset_id": "ds_x",
                "base_model": "b",
                "method": {"type": "lora", "layers": "x"},
                "metadata": {"bool": True},
            },
            ["method.0.layers", "metadata.bool"],
        ),
    ],
)
def test_a_problem_is_told_of_the_field_that_was_sent(
    schema: Any, body: dict[str, Any], params: list[str]
) -> None:
    """Pydantic calls a branch of a union as a user may call a label: neither loses its name."""
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(body)
    told = [problem["param"] for problem in refusal_of(caught.value).details or []]
    assert sorted(told) == sorted(params)

"""A number is a number and a truth value is one, in every body and every configuration."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from app.main import create_app
from app.openai.schemas.completions import CompletionRequest
from app.schemas.exchange import MergePart
from app.schemas.predictions import PredictOptions
from app.schemas.shared import refusal_of
from core.settings import load_settings
from peft_engine.configs import JobSpec, SweepSpec, TrainingConfig
from peft_engine.configs.model import Config

_LORA = {"type": "lora"}


@pytest.mark.parametrize(
    ("schema", "body", "param", "told"),
    [
        (TrainingConfig, {"epochs": True}, "epochs", "valid number"),
        (TrainingConfig, {"epochs": "8"}, "epochs", "valid number"),
        (TrainingConfig, {"seed": False}, "seed", "valid integer, got false"),
        (TrainingConfig, {"batch_size": "8"}, "batch_size", "valid integer"),
        (TrainingConfig, {"seed": 8.5}, "seed", "valid integer, got 8.5"),
        (TrainingConfig, {"packing": 1}, "packing", "valid boolean"),
        (TrainingConfig, {"packing": "yes"}, "packing", "valid boolean"),
        (TrainingConfig, {"early_stopping": {"min_delta": True}}, "early_stopping.min_delta", ""),
        (TrainingConfig, {"class_weights": {"a": True}}, "class_weights", ""),
        (SweepSpec, {"max_jobs": True}, "max_jobs", "valid integer"),
        (MergePart, {"weight": "1"}, "weight", "valid number"),
        (PredictOptions, {"max_new_tokens": True}, "max_new_tokens", "valid integer"),
        (PredictOptions, {"stream": "true"}, "stream", "valid boolean"),
        (CompletionRequest, {"temperature": True}, "temperature", "valid number"),
        (CompletionRequest, {"n": "1"}, "n", "valid integer"),
        (CompletionRequest, {"x_tunery": {"top_k": True}}, "x_tunery.top_k", "valid integer"),
        (JobSpec, {"method": [_LORA | {"r": "8"}]}, "method.0.r", "valid integer"),
        (JobSpec, {"method": _LORA | {"layers": [1, True]}}, "method.0.layers", ""),
        (JobSpec, {"auto_start": 0}, "auto_start", "valid boolean"),
    ],
)
def test_a_value_of_another_type_is_refused(
    schema: type[BaseModel], body: dict[str, Any], param: str, told: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(body)
    # fields that this body lacks are told besides
    found = [p for p in refusal_of(caught.value).details or [] if p["code"] != "missing"]
    assert found[0]["param"] == param
    assert told in found[0]["message"]


def test_a_branch_of_a_union_is_no_field() -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingConfig.model_validate({"packing": 1})
    assert [problem["param"] for problem in refusal_of(caught.value).details or []] == ["packing"]


def test_numbers_are_taken_however_they_are_written() -> None:
    taken = TrainingConfig.model_validate(
        {"epochs": 2, "seed": 8.0, "batch_size": 4.0, "max_steps": None, "packing": False}
    )
    assert (taken.epochs, taken.seed, taken.batch_size, taken.packing) == (2.0, 8, 4, False)
    assert type(taken.seed) is int
    assert type(taken.epochs) is float


def test_what_was_kept_is_read_again() -> None:
    spec = JobSpec.model_validate(
        {
            "dataset_id": "ds_1",
            "base_model": "minilm",
            "method": [_LORA | {"layers": [0, 1]}, "bitfit"],
            "training": {"class_weights": {"a": 2}, "max_grad_norm": 1},
        }
    )
    assert JobSpec.model_validate(spec.model_dump(mode="json")) == spec
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def _named_under(base: type[BaseModel]) -> set[str]:
    return {base.__name__}.union(*map(_named_under, base.__subclasses__()))


def test_every_body_is_strict(tmp_path: Path) -> None:
    described = create_app(load_settings(data_dir=tmp_path)).openapi()
    schemas = [
        operation["requestBody"]["content"].get("application/json", {}).get("schema", {})
        for methods in described["paths"].values()
        for operation in methods.values()
        if "requestBody" in operation
    ]
    bodies = {schema["$ref"].rpartition("/")[2] for schema in schemas if "$ref" in schema}
    assert {"JobSpec", "CompletionRequest"} <= bodies <= _named_under(Config)

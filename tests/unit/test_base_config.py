"""Names of derived bases say what was done, and are read back."""

from typing import Any

import pytest
from pydantic import ValidationError

from peft_engine.configs import BaseConfig, JobSpec, PruningConfig
from peft_engine.configs.base import MAX_BASE_NAME_CHARS, join_base_name, split_base_name

NAMES = [
    "int8",
    "int8-weight-only",
    "int4",
    "nf4",
    "magnitude-0.5",
    "magnitude-2:4+int8",
    "movement-0.5-0123456789abcdef",
    "wanda-0.333",
    "wanda-2:4-0123456789abcdef",
    "ffn-0.25",
    "heads-0.25+nf4",
    "layers-0.333-fedcba9876543210+int8-weight-only",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_read_back(name: str) -> None:
    found = BaseConfig.parse(name)
    assert found.name == name
    assert BaseConfig.model_validate(found.model_dump()) == found
    assert split_base_name(join_base_name("b" * 64, found)) == ("b" * 64, found)
    assert len(join_base_name("b" * 64, found)) <= MAX_BASE_NAME_CHARS


def test_nothing_done_has_no_name() -> None:
    assert join_base_name("minilm", BaseConfig()) == "minilm"
    assert split_base_name("minilm") == ("minilm", BaseConfig())


@pytest.mark.parametrize(
    "name",
    [
        "",
        "none",
        "int9",
        "int8+int8",
        "int8+wanda-0.5",
        "wanda",
        "wanda-1",
        "wanda-0.9999",
        "wanda-0.95",
        "wanda-0.50",
        "ffn-2:4",
        "wanda-0.5-short",
        "wanda-0.5+",
        "magnitude-0.5-0123456789abcdef",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        BaseConfig.parse(name)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ({"method": "wanda", "pattern": "ffn"}, "has the patterns"),
        ({"method": "structured", "pattern": "2:4"}, "has the patterns"),
        ({"method": "wanda", "pattern": "2:4", "sparsity": 0.25}, "takes a sparsity of 0.5"),
        ({"method": "magnitude", "calibration": "0123456789abcdef"}, "looks at no rows"),
        ({"method": "magnitude", "sparsity": 0.33333}, "three decimals"),
        ({"method": "magnitude", "sparsity": 0}, "greater than"),
        ({"method": "by hand"}, "Input should be"),
    ],
)
def test_what_means_nothing_is_refused(asked: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        PruningConfig.model_validate(asked)


def job(**more: Any) -> JobSpec:
    return JobSpec.model_validate({"dataset_id": "ds", "base_model": "minilm"} | more)


def test_a_job_may_name_its_derived_base() -> None:
    named = job(base_model="minilm@magnitude-0.5+int8")
    asked = job(base={"quantization": "int8", "pruning": {"method": "magnitude"}})
    assert named == asked
    assert (named.base_model, named.base_name) == ("minilm", "minilm@magnitude-0.5+int8")
    assert JobSpec.model_validate(named.model_dump(mode="json")) == named
    assert job(base_model="minilm@int8", base={"quantization": "int8"}).base.name == "int8"


@pytest.mark.parametrize("name", ["minilm@", "minilm@int9", "minilm@int8@int8"])
def test_a_job_whose_base_means_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="is no pruning"):
        job(base_model=name)


def test_a_job_that_says_two_things_is_refused() -> None:
    with pytest.raises(ValidationError, match="ask for two things"):
        job(base_model="minilm@int8", base={"quantization": "nf4"})

"""JSON that is nested: what is still taken and what is one level too deep, wherever it is read."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from app.batches.lines import BadLine, parse_line
from app.openai.schemas.decisions import MAX_JSON_LEVELS, JsonPart
from peft_engine.configs import SweepSpec
from peft_engine.configs.nesting import MAX_DEPTH, is_deeper
from peft_engine.records.options import Limits
from peft_engine.records.strict_json import Refused, StrictDecoder


def nested(depth: int, leaf: Any = 1) -> Any:
    """Objects in one another, and lists in turn; the innermost holds a leaf."""
    for number in range(depth):
        leaf = [leaf] if number % 2 else {"in": leaf}
    return leaf


def of_sweep(value: Any) -> None:
    job = {"dataset_id": "ds_1", "base_model": "minilm"}
    SweepSpec.model_validate({"job": job | {"metadata": value}, "search": {"method": ["lora"]}})


def of_line(value: Any) -> None:
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"input": value}}
    parse_line(json.dumps(line).encode())


def of_record(value: Any) -> None:
    StrictDecoder(Limits()).record(json.dumps({"messages": value}))


@pytest.mark.parametrize(
    ("value", "depth"),
    [(None, 0), ("[[", 0), ([], 1), ({}, 1), ([1, [], 2], 2), ({"a": [{"b": 1}]}, 3), ((), 1)],
)
def test_lists_and_objects_are_counted_and_nothing_else(value: Any, depth: int) -> None:
    assert not is_deeper(value, depth)
    assert depth == 0 or is_deeper(value, depth - 1)


@pytest.mark.parametrize(
    ("read", "around", "most"),
    [
        (of_sweep, 1, MAX_DEPTH),
        (of_line, 2, MAX_DEPTH),
        (of_record, 1, MAX_DEPTH),
        (lambda value: JsonPart(type="input_json", data=value), 0, MAX_JSON_LEVELS),
    ],
)
@pytest.mark.parametrize("leaf", [1, [], {}])
def test_the_bound_is_the_same_for_whoever_reads(
    read: Callable[[Any], Any], around: int, most: int, leaf: Any
) -> None:
    room = most - around - (leaf != 1)
    read({"in": nested(room - 1, leaf)})
    with pytest.raises((ValueError, BadLine, Refused)):
        read({"in": nested(room, leaf)})

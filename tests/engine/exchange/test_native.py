"""Native files that were brought along: what fits comes in, what lies about itself does not."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import SpanHeadSpec, TagHeadSpec
from peft_engine.delta import Delta, load_delta, save_delta
from peft_engine.errors import DeltaError, ExchangeError
from peft_engine.exchange.importing import ImportOptions, import_adapter
from tests.engine.conftest import make_delta
from tests.engine.task_sets import SETS
from tests.engine.test_training import job, run


def bring(base: Base, folder: Path, delta: Delta) -> Delta:
    (folder / "adapter.safetensors").write_bytes(save_delta(delta))
    return import_adapter(base, folder, ImportOptions()).delta


def changed(
    delta: Delta, tensors_of_head: Mapping[str, Tensor | None] | None = None, **manifest: Any
) -> Delta:
    tensors = dict(delta.tensors)
    for name, tensor in (tensors_of_head or {}).items():
        tensors.pop(f"head:{name}", None)
        if tensor is not None:
            tensors[f"head:{name}"] = tensor
    return Delta.of(tensors, delta.manifest.model_copy(update=manifest))


@pytest.mark.parametrize("name", SETS)
def test_what_was_trained_here_comes_back(name: str, bert: Base, tmp_path: Path) -> None:
    task, splits = SETS[name]
    delta = run(bert, job(task, max_steps=1, max_length=48), splits).delta
    assert delta is not None
    assert bring(bert, tmp_path, delta).digest == delta.digest


def test_text_generation_comes_back(llama: Base, tmp_path: Path) -> None:
    delta = make_delta(llama, seed=1)
    assert bring(llama, tmp_path, delta).digest == delta.digest


LIES: dict[str, Callable[[Delta], Delta]] = {
    "no bias": lambda delta: changed(delta, tensors_of_head={"bias": None}),
    "a class too few": lambda delta: changed(
        delta,
        tensors_of_head={"weight": delta.head["weight"][:-1], "bias": delta.head["bias"][:-1]},
    ),
    "a label too many": lambda delta: changed(
        delta, labels=(*(delta.manifest.labels or ()), "more")
    ),
    "another width": lambda delta: changed(
        delta, tensors_of_head={"weight": torch.zeros(len(delta.manifest.labels or ()), 7)}
    ),
    "a tensor that nobody reads": lambda delta: changed(
        delta, tensors_of_head={"hidden_weight": torch.zeros(2)}
    ),
    "longer rows than the base has places": lambda delta: changed(delta, max_length=1000),
    "no method": lambda delta: Delta.of(
        {f"head:{name}": tensor for name, tensor in delta.head.items()},
        delta.manifest.model_copy(update={"methods": ()}),
    ),
    "a method twice": lambda delta: changed(delta, methods=delta.manifest.methods * 2),
    "a label twice": lambda delta: changed(delta, labels=("no", "yes", "yes")),
    "no head at all": lambda delta: changed(delta, head=None),
    "another task": lambda delta: changed(delta, task="regression"),
    "no task": lambda delta: changed(delta, task="x" * 1000),
    "another head": lambda delta: changed(
        delta, task="question-answering", head=SpanHeadSpec(scale=1.0, abstains=False)
    ),
}


@pytest.mark.parametrize("lie", LIES, ids=str)
def test_a_file_that_lies_about_its_head_is_refused(lie: str, bert: Base, tmp_path: Path) -> None:
    with pytest.raises(ExchangeError) as refused:
        bring(bert, tmp_path, LIES[lie](make_delta(bert, seed=1, labels=("no", "perhaps", "yes"))))
    assert refused.value.code == "adapter_invalid"
    assert {problem.code for problem in refused.value.problems} == {"delta_corrupt"}


def test_a_table_of_words_must_have_the_rows_that_words_are_dealt_to(
    bert: Base, tmp_path: Path
) -> None:
    """Else a word that nobody tried would be looked up beyond its end."""
    task, splits = SETS["tags"]
    delta = run(bert, job(task, max_steps=1, max_length=48), splits).delta
    assert delta is not None
    assert isinstance(delta.manifest.head, TagHeadSpec)
    spec = delta.manifest.head.model_copy(update={"words": 4096})
    table = torch.zeros(len(delta.manifest.labels or ()), 4096)
    right = changed(delta, {"words": table}, head=spec)
    assert bring(bert, tmp_path, right).digest == right.digest
    with pytest.raises(ExchangeError) as refused:
        bring(bert, tmp_path, changed(delta, {"words": table[:, :-1]}, head=spec))
    assert {problem.code for problem in refused.value.problems} == {"delta_corrupt"}


def test_transitions_must_be_those_of_the_tags(bert: Base, tmp_path: Path) -> None:
    task, splits = SETS["tags"]
    delta = run(bert, job(task, max_steps=1, max_length=48), splits).delta
    assert delta is not None
    assert isinstance(delta.manifest.head, TagHeadSpec)
    assert delta.manifest.head.transitions  # so that the table of tasks tests them everywhere
    assert bring(bert, tmp_path, delta).digest == delta.digest
    cut = {"transitions": delta.head["transitions"][:-1]}
    with pytest.raises(ExchangeError) as refused:
        bring(bert, tmp_path, changed(delta, cut))
    assert {problem.code for problem in refused.value.problems} == {"delta_corrupt"}
    without = delta.manifest.head.model_copy(update={"transitions": False})
    with pytest.raises(ExchangeError):  # a tensor that nobody reads
        bring(bert, tmp_path, changed(delta, {}, head=without))


@pytest.mark.parametrize("told", ["[]", "3", "null", '"tunery-delta/1"', "{", "{}"])
def test_metadata_of_another_shape_is_a_damaged_file(told: str) -> None:
    content = save({"a": torch.zeros(2)}, metadata={"tunery": told})
    with pytest.raises(DeltaError) as refused:
        load_delta(content)
    assert refused.value.code == "delta_corrupt"

"""A checkpoint is a delta and a state: the delta is what a run of so many steps ends with."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load, save

from peft_engine.bases.base import Base
from peft_engine.configs import JobSpec
from peft_engine.delta import Delta, load_delta, save_delta
from peft_engine.training import TrainingEvent
from peft_engine.training.__main__ import FileCheckpoints
from tests.engine.test_training import CLASSIFICATION, GENERATION, Shelf, job, run

WITHOUT_VALIDATION = {**CLASSIFICATION, "validation": [], "test": []}
METHODS = {
    "lora": {"type": "lora", "r": 4, "dropout": 0.1},
    "mask": {"type": "mask", "selection": "magnitude", "density": 0.02},
    "full": {"type": "full"},
}


def steady(steps: int, method: str = "lora") -> JobSpec:
    """A job whose first steps do not depend on how many follow."""
    return job(
        method=METHODS[method], max_steps=steps, schedule="constant", warmup_ratio=0, keep="last"
    )


def header_of(state: bytes) -> dict[str, object]:
    header: dict[str, object] = json.loads(state[8 : 8 + int.from_bytes(state[:8], "little")])
    return header


@pytest.mark.parametrize("method", METHODS)
def test_the_delta_of_a_checkpoint_is_that_of_a_run_of_so_many_steps(
    bert: Base, method: str
) -> None:
    shelf = Shelf()
    run(bert, steady(9, method), WITHOUT_VALIDATION, shelf=shelf, checkpoint_seconds=0)
    for step in (1, 4, 8):
        ended = run(bert, steady(step, method), WITHOUT_VALIDATION).delta
        (kept,) = [delta for at, _, delta in shelf.kept if at == step]
        assert ended is not None
        assert kept is not None
        assert kept.digest == ended.digest
        assert save_delta(kept) == save_delta(ended)


def test_it_is_the_step_itself_and_not_the_best_one_so_far(bert: Base) -> None:
    """With a rate that ruins everything the start is the best step of a job."""
    spec = job(learning_rate=1.0, head_learning_rate=1.0, epochs=2, early_stopping=None)
    shelf = Shelf()
    best = run(bert, spec, CLASSIFICATION, shelf=shelf, checkpoint_seconds=0).delta
    _, _, kept = shelf.kept[-1]
    assert best is not None
    assert kept is not None
    assert kept.digest != best.digest


def test_no_tensor_stands_in_both_parts(bert: Base) -> None:
    shelf = Shelf()
    run(bert, job(), CLASSIFICATION, shelf=shelf, checkpoint_seconds=0)
    _, state, delta = shelf.kept[-1]
    kinds = {name.partition("/")[0] for name in header_of(state)}
    assert kinds == {"__metadata__", "best", "optimizer", "random"}
    assert delta is not None
    assert json.loads(header_of(state)["__metadata__"]["tunery"])["delta"] == delta.digest  # type: ignore[index]


def test_a_state_with_the_delta_of_another_step_is_left_aside(bert: Base) -> None:
    shelf = Shelf()
    whole = run(bert, job(), CLASSIFICATION, shelf=shelf, checkpoint_seconds=0).delta
    (step, state, _), (_, _, other) = shelf.kept[-2:]
    mixed, events = Shelf(), list[TrainingEvent]()
    mixed.kept = [(step, state, other)]
    again = run(bert, job(), CLASSIFICATION, shelf=mixed, events=events).delta
    assert any("left aside" in event.data.get("message", "") for event in events)
    assert whole is not None
    assert again is not None
    assert again.digest == whole.digest


@pytest.mark.parametrize("method", ["lora", "mask"])
def test_the_state_of_an_earlier_version_leads_to_the_same_bytes(bert: Base, method: str) -> None:
    spec, shelf, old = job(method=METHODS[method]), Shelf(), Shelf()
    whole = run(bert, spec, CLASSIFICATION, shelf=shelf, checkpoint_seconds=0).delta
    step, state, delta = shelf.kept[4]
    assert delta is not None
    old.kept = [(step, as_before(state, delta), None)]
    events: list[TrainingEvent] = []
    resumed = run(bert, spec, CLASSIFICATION, shelf=old, events=events).delta
    assert any(f"resumed at step {step}" in e.data.get("message", "") for e in events)
    assert whole is not None
    assert resumed is not None
    assert resumed.digest == whole.digest


def as_before(state: bytes, delta: Delta) -> bytes:
    """The one file of a version that kept the delta's tensors in it, and named no delta."""
    told = json.loads(header_of(state)["__metadata__"]["tunery"])  # type: ignore[index]
    del told["delta"]
    chosen = {name for name in delta.tensors if name.endswith("indices")}
    own = {f"{'fixed' if n in chosen else 'now'}/{n}": t for n, t in delta.tensors.items()}
    return save(load(state) | own, metadata={"tunery": json.dumps(told)})


def test_both_parts_lie_in_one_file_of_the_command(llama: Base, tmp_path: Path) -> None:
    spec, path = job("text-generation", epochs=2, eval_generate_rows=0), tmp_path / "c"
    shelf, file = Shelf(), FileCheckpoints(path)
    assert file.latest() is None
    whole = run(llama, spec, GENERATION, shelf=shelf, checkpoint_seconds=0).delta
    step, state, delta = shelf.kept[1]
    assert whole is not None
    assert delta is not None
    file.save(step, state, delta)
    found = file.latest()
    assert found is not None
    assert found[:2] == (step, state)
    assert found[2] is not None
    assert found[2].digest == load_delta(save_delta(delta)).digest == delta.digest
    resumed = run(llama, spec, GENERATION, shelf=file).delta
    assert resumed is not None
    assert resumed.digest == whole.digest
    path.write_bytes(step.to_bytes(8, "little") + as_before(state, delta))
    assert FileCheckpoints(path).latest() == (step, as_before(state, delta), None)

"""Training that would leave the numbers, learn nothing or hardly move says so."""

import re

import pytest

from peft_engine.bases.base import Base
from peft_engine.errors import DataError, TrainingError
from peft_engine.training import TrainingEvent
from tests.engine.test_training import CLASSIFICATION, GENERATION, job, run

TOO_FAST = {
    "method": {"type": "lora", "r": 4, "alpha": 4096},
    "learning_rate": 1.0,
    "max_grad_norm": None,
    "schedule": "constant",
    "warmup_ratio": 0,
}
"""Its gradients overflow within a few steps, while its losses are numbers still."""


def test_the_last_step_may_not_leave_weights_that_are_no_numbers(llama: Base) -> None:
    with pytest.raises(TrainingError, match="made weights that are no numbers") as first:
        run(llama, job("text-generation", epochs=9, **TOO_FAST), GENERATION)
    found = re.match(r"step (\d+)", str(first.value))
    assert found is not None
    last = int(found[1])
    splits = {**GENERATION, "validation": [], "test": []}
    run(llama, job("text-generation", epochs=9, max_steps=last - 1, **TOO_FAST), splits)
    with pytest.raises(TrainingError, match=f"step {last} made") as error:
        run(llama, job("text-generation", epochs=9, max_steps=last, **TOO_FAST), splits)
    assert error.value.code == "loss_not_finite"


def test_rows_without_a_word_are_left_out(bert: Base) -> None:
    rows = [{"tokens": ["card", "lost"], "tags": ["B-X", "O"]}] * 2
    blank = {"tokens": [" "], "tags": ["O"]}
    spec = job("token-classification", max_steps=4, batch_size=1)
    events: list[TrainingEvent] = []
    whole = run(bert, spec, {"train": rows, "validation": [], "test": []})
    told = run(bert, spec, {"train": [blank, *rows], "validation": [], "test": []}, events=events)
    assert whole.delta is not None
    assert told.delta is not None
    assert told.delta.digest == whole.delta.digest
    assert any("1 rows of train have no word" in str(event.data) for event in events)


def test_nothing_but_rows_without_a_word_is_refused(bert: Base) -> None:
    rows = [{"tokens": [" ", "\t"], "tags": ["B-X", "O"]}] * 3
    with pytest.raises(DataError, match="a word that the base") as error:
        run(bert, job("token-classification"), {"train": rows, "validation": [], "test": []})
    assert error.value.code == "nothing_to_learn"


@pytest.mark.parametrize(("rate", "warned"), [("auto", True), (0.01, False)])
def test_sgd_with_the_rates_of_adamw_is_warned_of(
    bert: Base, rate: float | str, warned: bool
) -> None:
    events: list[TrainingEvent] = []
    spec = job(optimizer="sgd", learning_rate=rate, max_steps=1)
    run(bert, spec, CLASSIFICATION, events=events)
    told = [str(event.data["message"]) for event in events if event.kind == "log"]
    assert any("hardly moves sgd" in message for message in told) == warned

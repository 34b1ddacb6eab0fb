"""An option that does nothing for a job's task or method is warned of when the job begins."""

from collections.abc import Mapping
from typing import Any

import pytest

from peft_engine.bases.base import Base
from peft_engine.training import TrainingEvent
from tests.engine.task_sets import SETS
from tests.engine.test_training import CLASSIFICATION, GENERATION, Splits, job, run

ALL: Mapping[str, tuple[str, Splits]] = SETS | {
    "classes": ("text-classification", CLASSIFICATION),
    "text": ("text-generation", GENERATION),
}
AUTO = {"learning_rate": "auto", "head_learning_rate": "auto"}


def warnings_of(base: Base, name: str, **training: Any) -> list[str]:
    """What the job is told of options, in order."""
    task, splits = ALL[name]
    events: list[TrainingEvent] = []
    settings = {"max_steps": 1, "max_length": 48} | AUTO | training
    if task == "text-generation":
        settings["eval_generate_rows"] = 0
    run(base, job(task, **settings), splits, events=events)
    told = [event.data.get("message", "") for event in events if event.kind == "log"]
    return [message for message in told if "does nothing" in message]


@pytest.mark.parametrize("name", ["regression", "similarity", "question", "choice", "classes"])
def test_smoothing_of_a_loss_without_classes(name: str, bert: Base) -> None:
    found = warnings_of(bert, name, label_smoothing=0.1)
    idle = name in ("regression", "similarity", "question")
    assert [message.split()[0] for message in found] == ["label_smoothing"] * idle
    assert not warnings_of(bert, name)


def test_the_rate_of_no_head(llama: Base) -> None:
    (found,) = warnings_of(llama, "text", head_learning_rate=0.01, learning_rate=0.01)
    assert found.startswith("head_learning_rate ")
    assert not warnings_of(llama, "text", label_smoothing=0.1)


def test_the_rate_of_nothing_but_a_head(bert: Base) -> None:
    given = {"head_learning_rate": 0.01, "learning_rate": 0.01}
    (found,) = warnings_of(bert, "classes", method="head-only", **given)
    assert found.startswith("learning_rate ")
    assert not warnings_of(bert, "classes", **given)


@pytest.mark.parametrize(
    ("name", "training", "idle"),
    [
        ("classes", {"weight_decay": 0.1, "method": "bitfit"}, ["weight_decay"]),
        ("classes", {"weight_decay": 0.1}, []),
        ("classes", {"weight_decay": 0.1, "method": ["bitfit", "lora"]}, []),
        ("classes", {"max_steps": 50, "epochs": 0.2}, ["max_steps"]),
        ("classes", {"max_steps": 1}, []),
        (
            "classes",
            {"keep": "last", "early_stopping": {"patience": 2, "min_delta": 0.1}},
            ["early_stopping.patience", "early_stopping.min_delta"],
        ),
        ("classes", {"keep": "best", "early_stopping": {"patience": 2, "min_delta": 0.1}}, []),
        ("classes", {"keep": "last", "early_stopping": {"metric": "loss"}}, []),
        (
            "classes",
            {"eval_generate_rows": 5, "validation_generate_rows": 5},
            ["eval_generate_rows", "validation_generate_rows"],
        ),
        ("classes", {"eval_generate_rows": 0, "validation_generate_rows": 0}, []),
    ],
)
def test_options_of_decay_end_and_answers(
    name: str, training: dict[str, Any], idle: list[str], bert: Base
) -> None:
    found = warnings_of(bert, name, **training)
    assert [message.split()[0] for message in found] == idle

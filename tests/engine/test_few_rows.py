"""Few rows: steps enough, gentle rates, and no choice of a step by three rows."""

from typing import Any

import pytest

from peft_engine.bases.base import Base
from peft_engine.configs import JobSpec
from peft_engine.training import TrainingResult
from peft_engine.training.recipes import (
    FEW_ROW_RECIPES,
    FEW_ROWS,
    RECIPES,
    Recipe,
    recipes_for,
)
from peft_engine.training.resolve import GENTLEST, MIN_FEW_STEPS, adapt_to_few_rows
from peft_engine.training.verdict import add_verdict
from tests.engine.test_training import GENERATION, Splits, classification_rows, run

LORA = Recipe(2e-3, 5e-3, 4, 16, 0.01)


def job(task: str = "text-classification", **training: Any) -> JobSpec:
    """A job that leaves all its training to ``auto`` but what is named."""
    fields: dict[str, Any] = {"dataset_id": "ds", "base_model": "b", "task": task}
    fields |= {"method": {"type": "lora", "r": 16}, "training": training}
    return JobSpec.model_validate(fields)


def rows(train: int, validation: int = 0, test: int = 0) -> Splits:
    return {
        "train": classification_rows(train),
        "validation": classification_rows(validation, start=100),
        "test": classification_rows(test, start=200),
    }


@pytest.mark.parametrize(
    ("count", "batch", "epochs", "share"),
    [
        (3, 3, 20.0, GENTLEST),
        (8, 4, 10.0, GENTLEST),
        (16, 4, 5.0, GENTLEST),
        (32, 8, 5.0, 0.25),
        (64, 16, 5.0, 0.5),
        (127, 16, 4, 127 / 128),
        (FEW_ROWS, 16, 4, 1.0),
    ],
)
def test_the_rule(count: int, batch: int, epochs: float, share: float) -> None:
    fitted = adapt_to_few_rows(LORA, rows=count, starts_fitted=True)
    assert (fitted.batch_size, fitted.epochs) == (batch, epochs)
    assert fitted.learning_rate == pytest.approx(2e-3 * share)
    assert fitted.head_learning_rate == pytest.approx(5e-3 * share)
    text = adapt_to_few_rows(LORA, rows=count, starts_fitted=False)
    assert text.learning_rate == 2e-3


def test_the_longer_recipes_hold_from_enough_rows_on() -> None:
    lora = ("lora", "text-classification")
    assert recipes_for(FEW_ROWS - 1)[lora] == LORA
    assert recipes_for(FEW_ROWS)[lora] == recipes_for(None)[lora] == RECIPES[lora] != LORA


@pytest.mark.parametrize("count", [1, 2, 5, 9, 17, 33, 64, 100])
def test_every_recipe_gets_its_steps(count: int) -> None:
    for recipe in FEW_ROW_RECIPES.values():
        found = adapt_to_few_rows(recipe, rows=count, starts_fitted=True)
        assert 1 <= found.batch_size <= min(count, recipe.batch_size)
        assert found.epochs >= recipe.epochs
        assert round(found.epochs * -(-count // found.batch_size)) >= MIN_FEW_STEPS
        assert found.learning_rate >= GENTLEST * recipe.learning_rate


def test_a_job_of_eight_rows_shows_it(bert: Base) -> None:
    resolved = run(bert, job(), rows(8)).resolved
    assert (resolved["batch_size"], resolved["total_steps"]) == (4, 20)
    assert resolved["learning_rate"] == pytest.approx(3e-4)
    assert resolved["method_learning_rates"] == {"lora": pytest.approx(3e-4)}
    assert resolved["keep"] == "last"


@pytest.mark.parametrize(
    ("asked", "passes"),
    [
        ({"batch_size": 8}, 20.0),
        ({"batch_size": 2}, 5.0),
        ({"gradient_accumulation": 2}, 20.0),
        ({"batch_size": 1, "gradient_accumulation": 3}, 20 / 3),
    ],
)
def test_twenty_steps_are_counted_by_the_batch_in_force(
    asked: dict[str, int], passes: float, bert: Base
) -> None:
    resolved = run(bert, job(**asked), rows(8)).resolved
    assert resolved["epochs"] == pytest.approx(passes)
    assert resolved["total_steps"] == MIN_FEW_STEPS


def test_what_is_asked_for_is_not_changed(bert: Base) -> None:
    spec = job(epochs=1, batch_size=8, learning_rate=0.01, head_learning_rate=0.02, keep="best")
    resolved = run(bert, spec, rows(8)).resolved
    assert (resolved["batch_size"], resolved["total_steps"], resolved["keep"]) == (8, 1, "best")
    assert (resolved["learning_rate"], resolved["head_learning_rate"]) == (0.01, 0.02)


def ruined(bert: Base, validation: int, **training: Any) -> TrainingResult:
    """Rates at which every evaluation is worse than the start."""
    settings = {
        "learning_rate": 1.0,
        "head_learning_rate": 1.0,
        "eval_every_steps": 2,
        "early_stopping": {"patience": 3},
    }
    return run(bert, job(**settings | training), rows(16, validation))


@pytest.mark.parametrize(
    ("validation", "asked", "kept"),
    [(3, "auto", "last"), (15, "auto", "last"), (16, "auto", "one_se"), (3, "best", "best")],
)
def test_few_validation_rows_choose_no_step(
    bert: Base, validation: int, asked: str, kept: str
) -> None:
    result = ruined(bert, validation, keep=asked)
    found = result.metrics["validation"]
    assert result.resolved["keep"] == kept
    assert found["best_step"] == (result.resolved["total_steps"] if kept == "last" else 0)
    assert found["stopped_early"] == (kept != "last")
    assert found["after"] == pytest.approx(found["best"])


def test_the_last_step_may_be_asked_for(bert: Base) -> None:
    found = ruined(bert, 20, keep="last").metrics["validation"]
    assert (found["best_step"], found["stopped_early"]) == (20, False)


def test_text_of_few_rows_is_learned(llama: Base) -> None:
    splits = GENERATION | {"train": GENERATION["train"][:8], "validation": []}
    result = run(llama, job("text-generation", eval_generate_rows=0), splits)
    assert result.resolved["total_steps"] == MIN_FEW_STEPS
    test = result.metrics["test"]
    assert test["after"]["loss"] < test["before"]["loss"]


def test_an_interval_of_few_rows_says_so() -> None:
    report = {
        "rows": 29,
        "before": {"accuracy": 0.5},
        "after": {"accuracy": 0.9},
        "delta": {"accuracy": 0.4},
        "confidence_interval": {"accuracy": [0.1, 0.6]},
        "before_is": "chance",
    }
    assert "too narrow" in add_verdict(report, metric="accuracy", rows=29)["verdict"]
    assert "too narrow" not in add_verdict(report, metric="accuracy", rows=30)["verdict"]


def test_rows_that_were_not_answered_do_not_count(llama: Base) -> None:
    """Three of forty test rows are answered, two of thirty to choose a step by."""
    rows = [{"prompt": f"say {i % 4}", "completion": "abcd"[i % 4] * 3} for i in range(40)]
    spec = job(
        "text-generation",
        keep="auto",
        max_steps=2,
        early_stopping={"metric": "chrf"},
        validation_generate_rows=2,
        eval_generate_rows=3,
    )
    splits = {"train": GENERATION["train"], "validation": rows[:30], "test": rows}
    result = run(llama, spec, splits)
    assert result.resolved["keep"] == "last"
    verdict = result.metrics["test"]["verdict"]
    assert "on 3 test rows chrf" in verdict
    assert "too narrow" in verdict

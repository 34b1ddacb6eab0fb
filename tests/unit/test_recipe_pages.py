"""The pages in docs say the rates and passes that the code has."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from peft_engine.configs.methods import METHOD_NAMES
from peft_engine.records.tokens import estimate
from peft_engine.tasks.table import TASKS
from peft_engine.training.recipes import FEW_ROW_RECIPES, RECIPES

DOCS = Path(__file__).parents[2] / "docs"
NONE = "\N{EN DASH}"
ROW = re.compile(
    r"^\| ([\w, ()-]+?) \| ([\w-]+) \| ([^ |]+) \| ([^ |]+) \| (\d+) \| (\d+) \|", re.M
)


def rate(value: float) -> str:
    """As the pages write it: 5e-4."""
    digits, _, power = f"{value:e}".partition("e")
    return f"{float(digits):g}e{int(power)}"


def table_rows() -> Iterator[tuple[str, str, list[str]]]:
    """Method, task and the cells behind them, of the recipe table; ``same`` is the row above."""
    methods: list[str] = []
    for named, task, *cells in ROW.findall((DOCS / "training.md").read_text()):
        plain = re.sub(r" *\(.*?\)", "", named).lower()
        methods = methods if plain == "same" else plain.split(", ")
        yield from ((method, task, cells) for method in methods)


def test_the_table_of_recipes_is_that_of_the_code() -> None:
    rows = list(table_rows())
    assert len(rows) > 20
    assert {method for method, _, _ in rows} == {*METHOD_NAMES} - {"norm"}
    for method, task, (own, head, epochs, batch) in rows:
        recipe = RECIPES[method, task]
        assert own in {rate(recipe.learning_rate), NONE}, (method, task)
        assert head in {rate(recipe.head_learning_rate), NONE}, (method, task)
        assert (float(epochs), int(batch)) == (recipe.epochs, recipe.batch_size), (method, task)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_task_states_the_defaults_of_lora(task: str) -> None:
    recipe, few = RECIPES["lora", task], FEW_ROW_RECIPES["lora", task]
    (line,) = re.findall(
        r"^- \*\*Defaults\*\* \(LoRA\) (.*)", (DOCS / "tasks" / f"{task}.md").read_text(), re.M
    )
    assert line.startswith(f"learning rate {rate(recipe.learning_rate)}")
    if task != "text-generation":
        assert f"head {rate(recipe.head_learning_rate)}," in line
    assert f"{recipe.epochs:g} epochs" in line
    assert f"batch {recipe.batch_size}" in line
    assert f"at most {TASKS[task].max_length_tokens:,} tokens" in line
    if few.learning_rate != recipe.learning_rate:
        assert rate(few.learning_rate) in line


@pytest.mark.parametrize("task", sorted(TASKS))
def test_an_upload_is_told_where_a_job_cuts_unless_asked(task: str) -> None:
    windows = task == "question-answering"  # which nothing cuts
    assert estimate(task).max_tokens == (None if windows else TASKS[task].max_length_tokens)

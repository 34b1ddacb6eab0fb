"""The vocabulary projection is computed where a token is learned or asked for, and nowhere else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.parts.batching import Example, TokenRow, collate
from peft_engine.tasks.likelihood import mean_log_likelihoods
from peft_engine.tasks.table import TASKS
from tests.engine.test_training import Splits, job, run

TASK = TASKS["text-generation"]
RECORDS = [
    {"prompt": "say" * (1 + i % 4), "completion": "abcde"[i % 5] * (1 + i % 3)} for i in range(16)
]
FAMILIES = ("llama", "gpt2", "t5", "bart")
Project = Callable[[Base, Tensor], Tensor]


@pytest.fixture
def projected(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What reaches the projection of any base, call by call."""
    seen: list[Tensor] = []
    project: Project = Base.vocabulary_logits

    def note(base: Base, hidden: Tensor) -> Tensor:
        seen.append(hidden.detach())
        return project(base, hidden)

    monkeypatch.setattr(Base, "vocabulary_logits", note)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_projects_what_stands_before_each_learned_token(
    family: str, projected: list[Tensor], request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(family)
    examples = TASK.encode(base, RECORDS, labels=None, max_length=40)
    batch = collate(examples, pad_id=base.text.pad_id, device=base.device)
    with torch.no_grad():
        hidden = hidden_states(base, batch)
        TASK.loss(base, None, hidden, batch, label_smoothing=0.0)
    (found,) = projected
    before = [
        hidden[row, place - 1]
        for row, example in enumerate(examples)
        for place, learned in enumerate(example.target)
        if learned
    ]
    assert len(before) < 0.8 * hidden[..., 0].numel()
    assert torch.equal(found, torch.stack(before))


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"packing": False}),
        ("llama", {"packing": True}),
        ("llama", {"packing": False, "gradient_checkpointing": True}),
        ("t5", {"gradient_accumulation": 2}),
    ],
)
def test_steps_and_evaluations_project_each_learned_token_once(
    family: str, settings: dict[str, Any], projected: list[Tensor], request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(family)
    splits: Splits = {"train": RECORDS, "test": RECORDS[:5]}
    fixed = {"batch_size": 4, "epochs": 2, "eval_generate_rows": 0, "keep": "last"}
    run(base, job("text-generation", method="ia3", **fixed, **settings), splits)
    learned = {
        name: sum(sum(e.target) for e in TASK.encode(base, rows, labels=None, max_length=40))
        for name, rows in splits.items()
    }
    # two passes over the training rows; the test rows before and after
    expected = 2 * learned["train"] + 2 * learned["test"]
    assert sum(len(hidden) for hidden in projected) == expected
    assert {hidden.dim() for hidden in projected} == {2}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_scored_answer_projects_what_stands_before_its_own_tokens(
    family: str, projected: list[Tensor], request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(family)
    rows, answers = [[5, 6, 7, 8, 9, 10], [5, 6, 7], [9, 8, 7, 6]], [2, 1, 3]
    examples = [
        Example((TokenRow(row),), answer) for row, answer in zip(rows, answers, strict=True)
    ]
    batch = collate(examples, pad_id=base.text.pad_id, device=base.device)
    with torch.no_grad():
        hidden = hidden_states(base, batch)
        mean_log_likelihoods(base, hidden, batch)
    (found,) = projected
    expected = [
        hidden[place, len(row) - answer - 1 : len(row) - 1]
        for place, (row, answer) in enumerate(zip(rows, answers, strict=True))
    ]
    assert torch.equal(found, torch.cat(expected))

"""Movement pruning: scores are learned, of absent weights too, and make a plan like any other."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from peft_engine.bases.base import Base, load_base
from peft_engine.compression.derive import load_derived
from peft_engine.compression.pruning import Calibration, prune
from peft_engine.configs.pruning import PruningConfig
from peft_engine.errors import ConfigError
from peft_engine.parts.batching import Example, TokenRow
from peft_engine.parts.sites import linear_sites, weight_of
from peft_engine.training.movement import _masked, _share_gone, choose_by_movement, movement_rows
from tests.engine.test_training import CLASSIFICATION, job, run

MOVEMENT = PruningConfig.model_validate({"method": "movement", "sparsity": 0.6})


def test_the_gradient_of_a_score_is_that_of_its_weights_presence() -> None:
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Linear(6, 5).requires_grad_(False)
    scores = torch.randn(5, 6, generator=generator, requires_grad=True)
    x = torch.randn(7, 6, generator=generator)
    upstream = torch.randn(7, 5, generator=generator)
    y = _masked(module, scores, 0.5)(x)
    kept = scores >= scores.flatten().sort().values[15]
    torch.testing.assert_close(y, x @ (module.weight * kept).T + module.bias)
    (y * upstream).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(scores.grad, upstream.T @ x * module.weight)


def test_the_share_that_is_gone_rises_as_a_cube() -> None:
    course = [_share_gone(step, 100) for step in range(100)]
    assert course[:11] == [0.0] * 11
    assert course[40] == pytest.approx(1 - 0.5**3)
    assert course[70:] == [1.0] * 30
    assert all(a <= b for a, b in pairwise(course))
    assert _share_gone(0, 1) == 0.0


def test_a_choice_is_repeated_exact_and_recovered_from(bert: Base, models_dir: Any) -> None:
    spec = job(epochs=4)
    plans = []
    for _ in range(2):
        base = load_base(str(bert.info.directory), name="bert", models_dir=models_dir)
        before = [tensor.clone() for tensor in base.model.parameters()]
        plans.append(choose_by_movement(base, spec, CLASSIFICATION, MOVEMENT))
        after = base.model.parameters()
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert plans[0].digest == plans[1].digest

    pruning = MOVEMENT.model_copy(update={"calibration": "0" * 16})
    asked = spec.base.model_copy(update={"pruning": pruning})
    base = load_derived(bert.info, asked, plan=plans[0], device=str(bert.device))
    for site in linear_sites(base.trunk):
        weight = weight_of(base.trunk.get_submodule(site.path))
        assert int((weight == 0).sum()) == round(0.6 * weight.numel())
    test = run(base, spec, CLASSIFICATION).metrics["test"]
    assert test["after"]["loss"] < 0.8 * test["frozen_head"]["loss"]


def test_what_decides_is_in_the_name() -> None:
    rows = [Example((TokenRow([5, 6]),), target=place) for place in range(3)]
    others = [*rows[:2], Example((TokenRow([5, 6]),), target=0)]
    names = {
        movement_rows(rows, job()).digest,
        movement_rows(others, job()).digest,
        movement_rows(rows, job(seed=1)).digest,
        Calibration.of(rows, count=3).digest,
    }
    assert len(names) == 4


def test_rows_alone_cannot_choose(bert: Base) -> None:
    with pytest.raises(ConfigError, match="learned by a job"):
        prune(bert, MOVEMENT, Calibration([TokenRow([5, 6])]))

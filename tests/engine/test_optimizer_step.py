"""Steps of whole jobs against steps computed by hand.

The gradients come from plain autograd: the weights themselves learn, in a copy of the base. A full
delta begins at zero, so that what a step adds to a weight is what it makes of the delta.
"""

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs import JobSpec
from peft_engine.parts.batching import collate
from peft_engine.router import Router
from peft_engine.tasks.protocol import Head
from peft_engine.training import FeatureStore
from peft_engine.training.prepare import Prepared, prepare
from tests.engine.conftest import ROUNDING_FACTOR
from tests.engine.test_training import CLASSIFICATION, Splits, job, run

RATES = {"full": 0.05, "head": 0.2}
MOMENTUM, DECAY = 0.9, 0.5
ROUNDING = 1e-6 * ROUNDING_FACTOR
"""Of values near 1, and of gradients that are 0 in exact numbers, as those of a key's bias are."""

JOBS: Mapping[str, tuple[str, Splits, dict[str, Any]]] = {
    # all rows in one batch
    "bert": ("text-classification", {"train": CLASSIFICATION["train"][:24]}, {"batch_size": 24}),
    # and in two batches of one step, with another number of learned tokens in each
    "llama": (
        "text-generation",
        {"train": [{"text": "a card is lost"[i % 5 : 6 + i]} for i in range(12)]},
        {"batch_size": 8, "gradient_accumulation": 2},
    ),
}


@pytest.fixture(params=JOBS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def spec_of(family: str, **training: Any) -> JobSpec:
    task, _, batches = JOBS[family]
    rates = {"learning_rate": RATES["full"], "head_learning_rate": RATES["head"]}
    fixed = {"method": "full", "optimizer": "sgd", "warmup_ratio": 0, "weight_decay": 0}
    return job(task, **{**fixed, **rates, **batches, "max_steps": 1, "keep": "last", **training})


def end_of(base: Base, family: str, **training: Any) -> Mapping[str, Tensor]:
    delta = run(base, spec_of(family, **training), JOBS[family][1]).delta
    assert delta is not None
    return delta.tensors


def start_of(base: Base, family: str) -> Prepared:
    return prepare(
        base,
        spec_of(family),
        JOBS[family][1],
        router=Router(base.trunk),
        features=FeatureStore(),
        check=lambda: None,
        emit=lambda _: None,
    )


def gradients(base: Base, start: Prepared, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the mean loss over all rows, by the names of the delta."""
    trunk = copy.deepcopy(base.trunk)
    leaves: dict[str, Tensor] = {}
    for name, value in values.items():
        path, _, own = name.partition(":")
        if path == "head":
            leaves[name] = value.clone().requires_grad_()
            continue
        weight = trunk.get_submodule(path).get_parameter(own.removeprefix("full."))
        weight.data += value
        leaves[name] = weight.requires_grad_()
    examples = start.splits["train"].examples
    batch = collate(examples, pad_id=base.text.pad_id, device=base.device)
    hidden = trunk(input_ids=batch.input_ids, attention_mask=batch.mask).last_hidden_state
    spec, labels = start.trainable.head_spec, start.trainable.labels or ()
    tensors = {n.removeprefix("head:"): t for n, t in leaves.items() if n.startswith("head:")}
    head = None if spec is None else Head(spec, tensors, labels)
    loss = start.task.loss(base, head, hidden, batch, label_smoothing=0.0)
    found = torch.autograd.grad(loss.total / loss.count, list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def moved(
    values: Mapping[str, Tensor], gradient: Mapping[str, Tensor], factor: float
) -> dict[str, Tensor]:
    """``θ - η f g`` with the rate η of each tensor."""
    rates = {name: RATES["head" if name.startswith("head:") else "full"] for name in values}
    return {name: own - rates[name] * factor * gradient[name] for name, own in values.items()}


def assert_ends(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], start: Mapping[str, Tensor]
) -> None:
    """Each tensor moved as expected, to a thousandth of its largest move."""
    assert found.keys() == expected.keys()
    for name, end in expected.items():
        begin = start[name].cpu()
        move = end.cpu() - begin
        near = 1e-3 * float(move.abs().max()) + ROUNDING
        torch.testing.assert_close(found[name] - begin, move, rtol=0, atol=near)


def norm_of(gradient: Mapping[str, Tensor]) -> float:
    return float(torch.stack([own.norm() for own in gradient.values()]).norm())


def test_the_first_step_goes_along_the_mean_gradient_no_longer_than_is_allowed(
    family: str, base: Base
) -> None:
    start = start_of(base, family)
    zero = start.trainable.copy()
    gradient = gradients(base, start, zero)
    norm = norm_of(gradient)
    for allowed, factor in ((None, 1.0), (4 * norm, 1.0), (norm / 4, 0.25)):
        found = end_of(base, family, max_grad_norm=allowed)
        assert_ends(found, moved(zero, gradient, factor), zero)


def test_gradients_are_clipped_to_one_unless_asked_otherwise(family: str, base: Base) -> None:
    start = start_of(base, family)
    zero = start.trainable.copy()
    gradient = gradients(base, start, zero)
    norm = norm_of(gradient)
    assert norm > 1.1
    assert_ends(end_of(base, family), moved(zero, gradient, 1 / norm), zero)


@pytest.mark.parametrize(("schedule", "second"), [("constant", 1.0), ("linear", 0.5)])
def test_the_second_step_of_sgd_has_momentum_and_a_penalty_on_matrices(
    schedule: str, second: float, family: str, base: Base
) -> None:
    start = start_of(base, family)
    zero = start.trainable.copy()
    first = gradients(base, start, zero)
    once = moved(zero, first, 1.0)
    then = gradients(base, start, once)
    penalty = {n: DECAY * own if n.endswith("full.weight") else 0 for n, own in once.items()}
    speed = {name: MOMENTUM * first[name] + then[name] + penalty[name] for name in zero}
    twice = moved(once, speed, second)
    settings = {"max_steps": 2, "max_grad_norm": None, "weight_decay": DECAY}
    found = end_of(base, family, schedule=schedule, **settings)
    assert_ends(found, twice, zero)

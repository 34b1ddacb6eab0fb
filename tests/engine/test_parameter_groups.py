"""How the optimizer treats each tensor: who decays, who learns faster, and by how much."""

from typing import Any

import pytest
import torch

from peft_engine.bases.base import Base
from peft_engine.configs import JobSpec
from peft_engine.delta import Delta
from peft_engine.methods.table import METHODS
from tests.engine.conftest import make_delta
from tests.engine.method_table import METHOD_CASES
from tests.engine.test_continuing import continued, trained
from tests.engine.test_continuing import run as run_from
from tests.engine.test_training import CLASSIFICATION, Splits, job, run

ROWS: Splits = {"train": CLASSIFICATION["train"][:24]}
RATE, HEAD_RATE, RATIO, DECAY = 1e-3, 4e-3, 8.0, 0.5
DECAYED = {"lora.A", "lora.B", "bottleneck.down", "bottleneck.up", "full.weight"}
CASES = [
    "lora",
    "dora",
    "houlsby",
    "learned scale",
    "bitfit everywhere",
    "ia3",
    "norm",
    "mask",
    "prefix",
    "full",
    "pfeiffer + mask + norm",
]


def settings(**training: Any) -> dict[str, Any]:
    fixed = {"batch_size": 24, "max_steps": 1, "warmup_ratio": 0, "schedule": "constant"}
    rates = {"learning_rate": RATE, "head_learning_rate": HEAD_RATE}
    return {**fixed, **rates, "keep": "last", **training}


def spec_of(ratio: float, **training: Any) -> JobSpec:
    method = {"type": "lora", "r": 4, "b_learning_rate_ratio": ratio}
    return job(method=method, **settings(weight_decay=0, **training))


def ending(delta: Delta, name: str) -> list[torch.Tensor]:
    return [tensor for own, tensor in delta.tensors.items() if own.endswith(name)]


def first_delta(base: Base, ratio: float, **training: Any) -> Delta:
    return trained(run(base, spec_of(ratio, **training), ROWS))


@pytest.mark.parametrize("ratio", [1.0, RATIO])
def test_the_first_moves_of_both_matrices_have_the_ratio_of_lora_plus(
    ratio: float, bert: Base
) -> None:
    """What AdamW adds at first depends on the rate and on the sign of the gradient alone.

    B begins at zero, so A gets its first gradient in the second step, where the moments of AdamW
    are ``(1 - β) g`` over ``1 - β²``.
    """
    once, twice = (first_delta(bert, ratio, max_steps=steps) for steps in (1, 2))
    for before, after in zip(ending(once, "lora.A"), ending(twice, "lora.A"), strict=True):
        late = (0.1 / (1 - 0.9**2)) / (0.001 / (1 - 0.999**2)) ** 0.5
        moves = (after - before).abs()
        assert float(moves.median()) == pytest.approx(RATE * late, rel=1e-3)
    for matrix in ending(once, "lora.B"):
        assert float(matrix.abs().median()) == pytest.approx(RATE * ratio, rel=1e-3)


def test_the_ratio_leaves_a_and_the_head_at_their_own_rates(bert: Base) -> None:
    plain, plus = (first_delta(bert, ratio, optimizer="sgd") for ratio in (1.0, RATIO))
    assert ending(plain, "lora.B")
    for slow, fast in zip(ending(plain, "lora.B"), ending(plus, "lora.B"), strict=True):
        torch.testing.assert_close(fast, RATIO * slow)
    same = [name for name in plain.tensors if not name.endswith("lora.B")]
    assert all(torch.equal(plain.tensors[name], plus.tensors[name]) for name in same)


def test_the_head_learns_at_its_own_rate(bert: Base) -> None:
    """Its first move under AdamW, as the difference of two rates."""
    slow, fast = (first_delta(bert, 1.0, head_learning_rate=r) for r in (HEAD_RATE, 3 * HEAD_RATE))
    apart = (fast.tensors["head:weight"] - slow.tensors["head:weight"]).abs()
    assert float(apart.median()) == pytest.approx(2 * HEAD_RATE, rel=1e-2)
    (matrix, *_) = ending(slow, "lora.B")
    assert torch.equal(matrix, ending(fast, "lora.B")[0])


@pytest.mark.parametrize("case", CASES)
def test_only_matrices_of_a_method_decay(case: str, bert: Base) -> None:
    """One step with decay against the same without, from values that are all far from zero."""
    start = make_delta(bert, seed=3, config=METHOD_CASES[case], labels=("is", "my", "where"))
    free, held = (
        trained(run_from(bert, continued(**settings(weight_decay=decay)), ROWS, start))
        for decay in (0, DECAY)
    )
    assert any(name.startswith("head:") for name in free.tensors)
    for name, tensor in free.tensors.items():
        if name.partition(":")[2] not in DECAYED:
            assert torch.equal(held.tensors[name], tensor), name
            continue
        lost = RATE * DECAY * start.tensors[name].cpu()
        assert lost.any()
        torch.testing.assert_close(tensor - held.tensors[name], lost, rtol=1e-3, atol=1e-6)


def test_every_method_has_a_case() -> None:
    told = {config.type for case in CASES for config in METHOD_CASES[case]}
    assert told == set(METHODS) - {"head-only"}

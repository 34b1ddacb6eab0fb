"""Gradients come out the same every time, on any device: what equal bytes after a kill rest on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import embedding, scaled_dot_product_attention

from peft_engine.parts.packing import pack
from peft_engine.parts.sparse import Pattern, sparse_linear
from peft_engine.runtime import deterministic_sums
from tests.engine.conftest import DEVICE

# Legend of axes: B rows, H heads, T tokens, d width of a head, D width.


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(DEVICE)


def attention(mask: Tensor | None, *, causal: bool) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Over rows so long that a GPU lets several blocks add up the gradient of one query."""
    key = noise(2, 4, 600, 16)  # (B, H, T, d)
    return noise(2, 4, 600, 16), lambda query: scaled_dot_product_attention(
        query, key, query, attn_mask=mask, is_causal=causal
    )


def packed() -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A beginning that 300 rows have in common."""
    packing = pack([[1, 2, 3, 4, row] for row in range(5, 305)], share=True, device=DEVICE)
    weights = noise(300, 5, 16)
    return noise(packing.input_ids.shape[1], 16), lambda nodes: packing.spread(nodes) * weights


def looked_up(table: Tensor) -> Tensor:
    ids = (torch.arange(4000, device=DEVICE) * 7) % 5
    return embedding(ids, table) * noise(4000, 16)


def taken(values: Tensor) -> Tensor:
    places = [place % 3 for place in range(4000)]
    return values[places] * noise(4000, 16)


def sparse() -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Ten rows of a matrix whole, as a choice by gradients may have them, and a few of all."""
    indices = torch.cat([torch.arange(2560), torch.arange(2560, 256 * 256, 13)]).int().to(DEVICE)
    pattern, x = Pattern.of(indices, (256, 256)), noise(700, 256)
    return noise(len(indices)), lambda values: sparse_linear(
        sparse_linear(x, values, pattern), values, pattern
    )


CASES: dict[str, Callable[[], tuple[Tensor, Callable[[Tensor], Tensor]]]] = {
    "causal attention": lambda: attention(None, causal=True),
    "attention beside padding": lambda: attention(
        (noise(2, 1, 600, 600) > -1).logical_or(torch.eye(600, device=DEVICE).bool()), causal=False
    ),
    "packed rows": packed,
    "tokens looked up": lambda: (noise(5, 16), looked_up),
    "places taken": lambda: (noise(3, 16), taken),
    "masks": sparse,
}


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_is_the_same_every_time(case: str) -> None:
    start, compute = CASES[case]()

    def gradient() -> Tensor:
        leaf = start.clone().requires_grad_()
        with deterministic_sums(DEVICE):
            compute(leaf).square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    first = gradient()
    assert first.any()
    for _ in range(8):
        assert torch.equal(gradient(), first)


def test_the_switch_goes_back_to_where_it_was() -> None:
    with deterministic_sums(DEVICE):
        assert torch.are_deterministic_algorithms_enabled() is (DEVICE.type == "cuda")
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory

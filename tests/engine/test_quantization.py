"""Quantized linears: exact, close to what they stand for, and linears to everything else."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch.nn.functional import linear

from peft_engine.bases.base import Base, move_model
from peft_engine.compression.derive import load_derived
from peft_engine.compression.quantization.codebooks import INT4, NF4
from peft_engine.compression.quantization.halves import HalfLinear
from peft_engine.compression.quantization.integers import (
    Kernel,
    Product,
    has_fbgemm,
    multiply,
    round_weight,
    round_weight_beside_bytes,
)
from peft_engine.compression.quantization.linears import (
    FourBitLinear,
    Int8Linear,
    Int8WeightLinear,
    QuantizedLinear,
)
from peft_engine.compression.quantization.tables import QuantizedEmbedding
from peft_engine.configs import BaseConfig
from peft_engine.configs.base import QUANTIZATIONS
from peft_engine.parts.sites import embedding_sites, linear_sites, weight_of
from tests.engine.conftest import random_ids
from tests.engine.derived import derived_from

# What makes one, and how far an answer may be from fp32's: root mean square, relative.
KINDS: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor | None], QuantizedLinear], float]] = {
    "fp16": (HalfLinear, 3e-4),
    "fp16 without its kernel": (lambda weight, bias: HalfLinear(weight, bias, packs=False), 3e-4),
    "int8": (Int8Linear, 0.012),
    "int8-weight-only": (Int8WeightLinear, 0.008),
    "int4": (lambda weight, bias: FourBitLinear(weight, bias, book=INT4), 0.12),
    "nf4": (lambda weight, bias: FourBitLinear(weight, bias, book=NF4), 0.12),
    "nf4 by bitsandbytes": (
        lambda weight, bias: FourBitLinear(weight, bias, book=NF4, by_library=True),
        0.12,
    ),
    "int8 by bitsandbytes": (
        lambda weight, bias: Int8Linear(weight, bias, kernel="bitsandbytes"),
        0.012,
    ),
}

KERNELS: list[Kernel] = (
    ["fbgemm", "onednn", "bitsandbytes", "plain"] if has_fbgemm() else ["bitsandbytes", "plain"]
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("biased", [True, False])
def test_it_answers_as_the_linear_whose_place_it_takes(kind: str, biased: bool) -> None:
    make, bound = KINDS[kind]
    weight, bias = noise(48, 100) * 0.1, noise(48, seed=1) if biased else None
    x = noise(3, 7, 100, seed=2)
    module = make(weight, bias)
    assert relative(module(x), linear(x, weight, bias)) < bound
    # its weight is the one that it multiplies with; int8 rounds what comes in as well
    own = linear(x, module.weight, bias)
    assert relative(module(x), own) < (0.01 if kind.split()[0] == "int8" else 3e-4)
    assert module(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["fp16", "int8", "int8-weight-only"])
def test_linears_that_are_joined_answer_to_the_bit_as_they_do_alone(kind: str) -> None:
    make = KINDS[kind][0]
    first, second = make(noise(24, 96), noise(24, seed=1)), make(noise(40, 96, seed=3), None)
    joined = type(first).joined([first, second])
    assert joined is not None
    x = noise(5, 96, seed=2)
    assert torch.equal(joined(x), torch.cat([first(x), second(x)], dim=1))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("make", [Int8Linear, Int8WeightLinear])
def test_a_row_is_answered_to_the_bit_as_it_is_alone(make: Any, kernel: Kernel) -> None:
    module = make(noise(64, 96), noise(64, seed=1), kernel=kernel)
    x = noise(37, 96, seed=2)
    x[5] *= 1e6  # a neighbour that would stretch a common range
    x[6] = 0
    together = module(x)
    for row in range(len(x)):
        assert torch.equal(module(x[row : row + 1])[0], together[row])
    assert torch.equal(module(x.flip(0)).flip(0), together)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_row_that_is_not_a_number_stays_alone(kernel: Kernel) -> None:
    module = Int8Linear(noise(8, 16), None, kernel=kernel)
    x = noise(3, 16, seed=1)
    expected = module(x)
    x[1, 3] = float("nan")
    found = module(x)
    assert not torch.isfinite(found[1]).any()
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


@pytest.mark.skipif(not has_fbgemm(), reason="this build of torch has no FBGEMM")
@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("inputs", [32, 1000, 3072])
def test_kernels_and_reference_agree_to_the_bit(bits: Literal[7, 8], inputs: int) -> None:
    """At the largest integers of all, where kernels that add in 16 bits would saturate."""
    span = {7: 63, 8: 127}[bits]
    weight = noise(40, inputs)
    codes, scales = (
        round_weight(weight, levels=127) if bits == 7 else round_weight_beside_bytes(weight)
    )
    most = 127 if bits == 7 else 64  # of each of two
    codes[:3] = most
    codes[3:6] = -most
    if bits == 8:  # one large neighbour, at every place among four
        for place in range(4):
            codes[6 + place] = 1
            codes[6 + place, place::4] = 127
    integers = (noise(9, inputs, seed=1) * span / 3).clamp(-span, span)
    integers[:2], integers[2] = span, -span - 1
    integers = integers.round()
    exact = integers.double() @ codes.double().T
    plain = Product.of(codes, scales, bits=bits, kernel="plain")
    for kernel in ("fbgemm", "onednn"):
        fast = Product.of(codes, scales, bits=bits, kernel=kernel)
        assert torch.equal(fast.unpacked(), codes)
        assert torch.equal(fast(integers.clone()), plain(integers))
    assert torch.equal(multiply(integers, codes), exact.float())


def test_no_two_neighbours_are_large_together_and_one_may_be() -> None:
    weight = noise(64, 102)
    weight[0], weight[1, 3:5] = 0, torch.tensor([9.0, -9.0])  # in two groups of four
    codes, scales = round_weight_beside_bytes(weight)
    assert ((codes.float() * scales.unsqueeze(1) - weight).abs() <= scales.unsqueeze(1) / 2).all()
    fours = torch.nn.functional.pad(codes.int().abs(), (0, 2)).view(64, -1, 4)
    assert fours.topk(2, dim=2).values.sum(2).max() <= 128
    assert codes[1, 3:5].int().abs().min() > 100
    # what single weights within 7 bits would have
    assert (scales[2:] / round_weight(weight, levels=63)[1][2:]).mean() < 0.8


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_weight_that_it_stands_for(kind: str) -> None:
    module = KINDS[kind][0](noise(24, 64), noise(24, seed=1))
    x = noise(5, 64, seed=2).requires_grad_()
    above = noise(5, 24, seed=3)
    module(x).backward(above)
    assert x.grad is not None
    assert torch.allclose(x.grad, above @ module.weight, atol=1e-4)
    assert all(not weight.requires_grad for weight in module.parameters())


def test_scales_keep_their_type_when_a_base_changes_its_own() -> None:
    for make, _ in KINDS.values():
        module = make(noise(8, 64), noise(8, seed=1))
        before = module.weight
        assert torch.equal(module.to(torch.bfloat16).weight, before)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2", "t5", "bart"])
@pytest.mark.parametrize("scheme", QUANTIZATIONS)
def test_a_whole_base_is_quantized_and_smaller(
    scheme: str, family: str, request: pytest.FixtureRequest
) -> None:
    parent: Base = request.getfixturevalue(family)
    base = derived_from(parent, scheme)
    assert base.name == f"{parent.name}@{scheme}"
    assert base.info.parent_fingerprint == parent.fingerprint != base.fingerprint
    assert base.template_digest == parent.template_digest
    assert base.parameters == parent.parameters
    assert base.bytes < parent.bytes
    # the same sites, of which every linear is quantized, and nobody's weights were touched
    assert list(linear_sites(base.trunk)) == list(linear_sites(parent.trunk))
    assert list(embedding_sites(base.trunk)) == list(embedding_sites(parent.trunk))
    for site in linear_sites(base.trunk):
        module, original = (b.trunk.get_submodule(site.path) for b in (base, parent))
        assert isinstance(module, QuantizedLinear)
        assert relative(weight_of(module), weight_of(original)) < 0.15
    if base.generates:
        hidden = noise(3, base.hidden_size).to(base.device)
        close = base.vocabulary_logits(hidden), parent.vocabulary_logits(hidden)
        assert relative(*close) < 0.02
    else:
        ids = random_ids(2, 9)
        with torch.no_grad():
            found = base.trunk(input_ids=ids).last_hidden_state
            expected = parent.trunk(input_ids=ids).last_hidden_state
        assert relative(found, expected) < (0.6 if scheme in ("int4", "nf4") else 0.15)


def test_the_integers_are_the_same_whatever_the_arithmetic_around_them(llama: Base) -> None:
    derivation = BaseConfig(quantization="int8")
    one, other = (
        load_derived(llama.info, derivation, precision=precision) for precision in ("fp32", "bf16")
    )
    assert one.fingerprint == other.fingerprint
    assert other.precision == "bf16"
    for site in linear_sites(one.trunk):
        first, second = (b.trunk.get_submodule(site.path) for b in (one, other))
        assert torch.equal(first.weight, second.weight)
    norms = [m.weight for m in other.model.modules() if type(m).__name__ == "LlamaRMSNorm"]
    assert {weight.dtype for weight in norms} == {torch.bfloat16}


def test_shared_tables_are_shared_still(t5: Base) -> None:
    base = derived_from(t5, "int8-weight-only")
    tables = [m for m in base.model.modules() if isinstance(m, QuantizedEmbedding)]
    pointers = {table.codes.data_ptr() for table in tables}
    assert len(pointers) == 1
    move_model(base.model, device=torch.device("meta"), dtype=torch.float32)
    assert len(tables) == 3
    assert len({id(table.codes) for table in tables}) == 1

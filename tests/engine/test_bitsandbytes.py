"""Kernels of bitsandbytes on its CPU back end: the same base, to the bit, as with our own.

What runs here is the library's interface and its stand-ins for CPUs; its CUDA kernels need CUDA.
"""

import logging
from typing import Any

import bitsandbytes
import pytest
import torch
from torch.nn.functional import linear

from peft_engine.bases.base import Base
from peft_engine.compression import derive
from peft_engine.compression.quantization import library
from peft_engine.compression.quantization.codebooks import INT4, NF4
from peft_engine.compression.quantization.integers import Product, round_weight_beside_bytes
from peft_engine.compression.quantization.linears import FourBitLinear, Int8Linear
from peft_engine.configs import BaseConfig
from peft_engine.parts.sites import linear_sites
from tests.engine.conftest import random_ids
from tests.engine.derived import derived_from
from tests.engine.test_quantization import noise, relative


@pytest.mark.parametrize("shape", [(48, 64), (40, 576), (3, 1536)])
def test_codes_scales_and_weights_of_nf4_are_the_library_s_to_the_bit(
    shape: tuple[int, int],
) -> None:
    weight = noise(*shape) * torch.logspace(-3, 1, shape[0]).unsqueeze(1)
    weight[0] = 0
    theirs, state = bitsandbytes.functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    codes, scales = NF4.encode(weight)
    assert torch.equal(codes.flatten(), theirs.flatten())
    assert torch.equal(scales.flatten(), state.absmax)
    whole = bitsandbytes.functional.dequantize_4bit(theirs, state)
    assert torch.equal(NF4.decode(codes, scales, shape[1]), whole)


def test_the_library_multiplies_with_the_weight_that_the_codes_stand_for() -> None:
    own = FourBitLinear(noise(40, 128) * 0.1, noise(40, seed=1), book=NF4)
    theirs = FourBitLinear(noise(40, 128) * 0.1, noise(40, seed=1), book=NF4, by_library=True)
    x = noise(3, 7, 128, seed=2)
    assert torch.equal(own.weight, theirs.weight)
    assert relative(theirs(x), own(x)) < 1e-6
    assert relative(theirs(x.bfloat16()).float(), own(x)) < 0.01


@pytest.mark.parametrize("book", [NF4, INT4])
def test_what_the_library_does_not_know_is_left_to_us(book: Any) -> None:
    """Groups that go over the end of a row, and other values."""
    inputs = 100 if book is NF4 else 128
    module = FourBitLinear(noise(24, inputs), None, book=book, by_library=True)
    x = noise(5, inputs, seed=2)
    assert torch.equal(module(x), linear(x, module.weight))


def test_its_products_of_integers_are_exact() -> None:
    codes, scales = round_weight_beside_bytes(noise(40, 512))
    integers = noise(9, 512, seed=1).mul_(60).clamp_(-128, 127).round_()
    integers[:2], integers[2] = 127, -128
    own, theirs = (
        Product.of(codes, scales, bits=8, kernel=kernel) for kernel in ("plain", "bitsandbytes")
    )
    assert torch.equal(own(integers.clone()), theirs(integers.clone()))
    assert torch.equal(theirs.unpacked(), codes)


@pytest.mark.parametrize("scheme", ["nf4", "int8"])
def test_a_base_answers_and_teaches_as_with_our_own_kernels(scheme: str, llama: Base) -> None:
    """Hidden states and the gradient of an adapter's weight through the whole base."""
    own, theirs = derived_from(llama, scheme), derived_from(llama, scheme)
    for site in linear_sites(theirs.trunk):
        module = theirs.trunk.get_submodule(site.path)
        if isinstance(module, FourBitLinear):
            module._by_library = True
        elif isinstance(module, Int8Linear):
            product = module.product
            module.product = Product.of(
                product.unpacked(), product.scales, bits=8, kernel="bitsandbytes"
            )
    assert own.fingerprint == theirs.fingerprint
    gradients = []
    for base in (own, theirs):
        site = next(iter(linear_sites(base.trunk)))
        added = torch.full((site.in_features,), 0.01, device=base.device, requires_grad=True)
        handle = base.trunk.get_submodule(site.path).register_forward_pre_hook(
            lambda _, inputs, added=added: (inputs[0] + added,)
        )
        hidden = base.trunk(input_ids=random_ids(2, 9)).last_hidden_state
        hidden.square().mean().backward()
        handle.remove()
        gradients.append((hidden.detach(), added.grad))
    assert relative(gradients[1][0], gradients[0][0]) < 1e-4
    assert gradients[0][1] is not None
    assert relative(gradients[1][1], gradients[0][1]) < 1e-3


def test_it_is_chosen_on_cuda_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert library.computes_on(torch.device("cuda", 0))
    assert not library.computes_on(torch.device("cpu"))
    assert not library.computes_on(torch.device("mps"))
    monkeypatch.setattr(library, "has_library", lambda: False)
    assert not library.computes_on(torch.device("cuda", 0))


def test_where_it_is_missing_a_load_for_cuda_says_so(
    bert: Base, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(derive, "has_library", lambda: False)
    monkeypatch.setattr(derive, "pick_device", lambda _: torch.device("cuda", 0))
    with caplog.at_level(logging.WARNING):
        derive.load_derived(bert.info, BaseConfig(quantization="int4"), device="cpu")
        assert not caplog.messages
        derive.load_derived(bert.info, BaseConfig(quantization="nf4"), device="cpu")
    assert "install tunery[cuda]" in caplog.text

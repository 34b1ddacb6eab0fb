"""Methods against PEFT's own layers: the same values give the same hidden states and gradients.

Prefixes: ``test_prefix``. Bottlenecks, which PEFT has not: ``test_method_formulas``.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import BeftConfig, IA3Config, LNTuningConfig, ShiraConfig, get_peft_model
from peft import LoraConfig as PeftLoraConfig
from torch import Tensor, nn

from peft_engine.configs.methods import (
    BitfitConfig,
    Ia3Config,
    LoraConfig,
    MaskConfig,
    MethodConfig,
    NormConfig,
)
from peft_engine.parts.sites import weight_of
from peft_engine.plan import Actor
from peft_engine.router import Router
from tests.engine.conftest import random_ids
from tests.engine.method_table import hidden, make_actor, make_trunk, sites_of, trained_tensors

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

ATOL = 1e-5
ROWS = 4

Pair = tuple[Tensor, Tensor, Tensor | float]
"""Ours, PEFT's, and what PEFT's holds where ours is zero."""

Pairs = Callable[[Any, Actor], Iterator[Pair]]


def against_peft(trunk: nn.Module, config: MethodConfig, peft_config: Any, pairs: Pairs) -> None:
    """Forward and backward; ``pairs`` names every trained tensor of both sides once."""
    # PEFT's linears are deterministic without their dropout; nothing else differs in training.
    theirs = get_peft_model(copy.deepcopy(trunk), peft_config).eval()
    actor = make_actor(trunk, (config,), seed=6, strength=0.1)
    matched = list(pairs(theirs, actor))
    with torch.no_grad():
        for ours, peers, start in matched:
            peers.copy_(ours.view_as(peers) + start)
    own = trained_tensors(actor)
    for tensor in own.values():
        tensor.requires_grad_()
    # A delta in training: nothing made of its tensors is kept.
    actor = replace(actor, frozen=False)
    ids = random_ids(ROWS, 8)
    ours = hidden(trunk, Router(trunk), ids, [actor] * ROWS)
    found = theirs(input_ids=ids).last_hidden_state
    with torch.no_grad():
        assert (ours - trunk(input_ids=ids).last_hidden_state).abs().max() > 1e-2
    assert torch.allclose(ours, found, atol=ATOL)
    weights = torch.linspace(-1, 1, ours.shape[-1], device=ours.device)
    for out in (ours, found):
        (out * weights).sum().backward()
    assert {id(ours) for ours, *_ in matched} == {id(tensor) for tensor in own.values()}
    trained = {id(weight) for weight in theirs.parameters() if weight.requires_grad}
    assert {id(peers) for _, peers, _ in matched} == trained
    for ours, peers, _ in matched:
        assert ours.grad is not None
        assert peers.grad is not None
        assert ours.grad.any()
        limit = ATOL * max(1.0, float(peers.grad.abs().max()))
        assert torch.allclose(ours.grad.view_as(peers), peers.grad, atol=limit, rtol=1e-4)


def state_of(theirs: nn.Module) -> dict[str, Tensor]:
    """PEFT's tensors by the name of the site and of the tensor."""
    prefix = "base_model.model."
    named = theirs.named_parameters()
    return {name.replace(".default", "").removeprefix(prefix): value for name, value in named}


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama", "gpt2", "t5 encoder"])
@pytest.mark.parametrize("kind", ["plain", "rslora", "dora", "patterns"])
def test_lora(family: str, kind: str) -> None:
    trunk = make_trunk(family)
    suffix = {"llama": "k_proj", "gpt2": "c_attn", "distilbert": "k_lin", "t5 encoder": "k"}.get(
        family
    )
    suffix = suffix or "key"
    options: dict[str, Any] = {
        "plain": {},
        "rslora": {"rslora": True},
        "dora": {"dora": True},
        "patterns": {"rank_pattern": {suffix: 2}, "alpha_pattern": {suffix: 5.0}},
    }[kind]
    config = LoraConfig(r=4, alpha=8, **options)
    paths = [site.path for site in sites_of(trunk, config)]
    renamed = {"rslora": "use_rslora", "dora": "use_dora"}
    peft_config = PeftLoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=paths,
        fan_in_fan_out=family == "gpt2",
        **{renamed.get(name, name): value for name, value in options.items()},
    )

    def pairs(theirs: nn.Module, actor: Actor) -> Iterator[Pair]:
        state = state_of(theirs)
        for path in paths:
            own = actor.sites[path]["lora"]
            yield own["A"], state[f"{path}.lora_A.weight"], 0.0
            yield own["B"], state[f"{path}.lora_B.weight"], 0.0
            if kind == "dora":
                length = weight_of(trunk.get_submodule(path)).norm(dim=1)
                yield own["magnitude"], state[f"{path}.lora_magnitude_vector.weight"], length

    against_peft(trunk, config, peft_config, pairs)


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama", "t5 encoder"])
def test_ia3(family: str) -> None:
    trunk = make_trunk(family)
    sites = sites_of(trunk, Ia3Config())
    inputs = [site.path for site in sites if site.in_features]
    peft_config = IA3Config(
        target_modules=[site.path for site in sites], feedforward_modules=inputs
    )

    def pairs(theirs: nn.Module, actor: Actor) -> Iterator[Pair]:
        state = state_of(theirs)
        for site in sites:
            (own,) = actor.sites[site.path]["ia3"].values()
            yield own, state[f"{site.path}.ia3_l"], 0.0

    against_peft(trunk, Ia3Config(), peft_config, pairs)


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama", "gpt2", "t5 encoder"])
def test_norm_tuning(family: str) -> None:
    trunk = make_trunk(family)
    paths = [site.path for site in sites_of(trunk, NormConfig())]

    def pairs(theirs: nn.Module, actor: Actor) -> Iterator[Pair]:
        state = state_of(theirs)
        for path in paths:
            for name, own in actor.sites[path]["norm"].items():
                peers = state[f"{path}.ln_tuning_layers.{name}"]
                yield own, peers, peers.detach().clone()

    against_peft(trunk, NormConfig(), LNTuningConfig(target_modules=paths), pairs)


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama", "t5 encoder"])
def test_new_biases_are_those_of_beft(family: str) -> None:
    trunk = make_trunk(family)
    config = BitfitConfig(norms=False, biases="all")
    paths = [site.path for site in sites_of(trunk, config)]

    def pairs(theirs: nn.Module, actor: Actor) -> Iterator[Pair]:
        state = state_of(theirs)
        for path in paths:
            yield actor.sites[path]["bitfit"]["bias"], state[f"{path}.beft_bias"], 0.0

    against_peft(trunk, config, BeftConfig(target_modules=paths), pairs)


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama"])
def test_masks_are_those_of_shira(family: str) -> None:
    """At every square linear, with SHiRA's number of entries, r (in + out), at our places."""
    trunk = make_trunk(family)
    everywhere = sites_of(trunk, MaskConfig(selection="random"))
    square = [s.path for s in everywhere if s.in_features == s.out_features == 32]
    config = MaskConfig(selection="random", density=2 * 64 / 1024, targets=tuple(square))

    def pairs(theirs: nn.Module, actor: Actor) -> Iterator[Pair]:
        for path in square:
            own = actor.sites[path]["mask"]
            layer: Any = theirs.get_submodule(f"base_model.model.{path}")
            places = own["indices"]
            layer.shira_indices["default"] = torch.stack([places // 32, places % 32])
            yield own["values"], layer.shira_weight["default"], 0.0

    against_peft(trunk, config, ShiraConfig(r=2, target_modules=square), pairs)


def test_biases_that_the_base_has_are_those_of_peft() -> None:
    """``bias="all"`` of LoRA is BitFit with a LoRA beside it, which is held at zero here."""
    trunk = make_trunk("bert")
    config = BitfitConfig(biases="existing")
    sites = sites_of(trunk, config)

    def pairs(theirs: nn.Module, actor: Actor) -> Iterator[Pair]:
        state = state_of(theirs)
        for name, weight in state.items():
            weight.requires_grad_(name.endswith("bias") and "lora" not in name)
        for site in sites:
            base_layer = state.get(f"{site.path}.base_layer.bias")
            peers = state[f"{site.path}.bias"] if base_layer is None else base_layer
            yield actor.sites[site.path]["bitfit"]["bias"], peers, peers.detach().clone()

    peft_config = PeftLoraConfig(r=1, target_modules=["query"], bias="all")
    against_peft(trunk, config, peft_config, pairs)

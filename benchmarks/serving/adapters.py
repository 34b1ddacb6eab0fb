"""Adapters for the serving benchmarks: every kind, with random weights of about a trained size.

How long an answer takes does not depend on what an adapter has learned; that it is the right
answer is checked against the same adapter alone.
"""

from collections.abc import Mapping
from types import MappingProxyType

import torch

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import HeadSpec, Manifest
from peft_engine.configs.methods import (
    BitfitConfig,
    BottleneckConfig,
    Ia3Config,
    LoraConfig,
    MaskConfig,
    MethodConfig,
    PrefixConfig,
)
from peft_engine.delta import Delta, tensor_name
from peft_engine.methods.table import METHODS
from peft_engine.parts.sites import split_path
from peft_engine.parts.stacks import part_read

KINDS: Mapping[str, MethodConfig] = MappingProxyType(
    {
        "lora": LoraConfig(r=8, alpha=16),
        "bottleneck": BottleneckConfig(variant="pfeiffer", size=24),
        "bitfit": BitfitConfig(),
        "ia3": Ia3Config(),
        "mask": MaskConfig(selection="random", density=0.005),
        "prefix": PrefixConfig(length=8),
    }
)
"""Six kinds that differ in where and how they act, in the sizes that jobs get by default or near
it."""

_NOISE = 0.02
"""Spread of the random weights: enough to tell adapters apart, small enough to keep activations in
the range of a trained model."""


def make_delta(base: Base, config: MethodConfig, *, seed: int, labels: int = 8) -> Delta:
    """An adapter with random weights, and a head where the base is an encoder.

    Args:
        base: The base that it acts on.
        config: Its method.
        seed: Of its weights.
        labels: Classes of its head.

    Returns:
        The delta.
    """
    generator = torch.Generator().manual_seed(seed)
    has_head = base.architecture == "encoder"
    method = METHODS[config.type]
    tensors = {}
    for site in method.sites(part_read(base.trunk, has_head=has_head), config):
        module = base.trunk.get_submodule(split_path(site.path)[0])
        for name, value in method.create(module, site, config, generator).items():
            noise = torch.randn(value.shape, generator=generator)
            shaken = value + _NOISE * noise if value.is_floating_point() else value
            tensors[tensor_name(site.path, config.type, name)] = shaken
    names = tuple(f"class {place}" for place in range(labels)) if has_head else None
    if has_head:
        tensors["head:weight"] = torch.randn((labels, base.hidden_size), generator=generator)
        tensors["head:bias"] = torch.randn(labels, generator=generator)
    manifest = Manifest(
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        architecture=base.architecture,
        precision=base.precision,
        task="text-classification" if has_head else "text-generation",
        methods=(config,),
        labels=names,
        head=HeadSpec(pooling="mean", normalize=True, scale=10.0) if has_head else None,
        template_digest=base.template_digest,
        max_length=min(base.max_length, 256),
    )
    return Delta.of(tensors, manifest)

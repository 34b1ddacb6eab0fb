"""Deltas for tiny bases, and what a process needs for them."""

import torch

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import HeadSpec, Manifest
from peft_engine.configs.methods import LoraConfig
from peft_engine.delta import Delta, tensor_name
from peft_engine.methods.table import METHODS


def make_delta(
    base: Base, *, seed: int, rank: int = 4, labels: tuple[str, ...] = ("card", "order", "refund")
) -> Delta:
    """A random LoRA strong enough to be told from its neighbours, with a head on an encoder."""
    config = LoraConfig(r=rank, alpha=2.0 * rank)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        tensor_name(site.path, "lora", name): 0.3 * torch.randn(shape, generator=generator)
        for site in METHODS["lora"].sites(base.trunk, config)
        for name, shape in METHODS["lora"].shapes(site, config).items()
    }
    is_encoder = base.architecture == "encoder"
    if is_encoder:
        shape = (len(labels), base.hidden_size)
        tensors["head:weight"] = torch.randn(shape, generator=generator)
        tensors["head:bias"] = torch.randn(len(labels), generator=generator)
    manifest = Manifest(
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        architecture=base.architecture,
        precision=base.precision,
        task="text-classification" if is_encoder else "text-generation",
        methods=(config,),
        labels=labels if is_encoder else None,
        head=HeadSpec(pooling="mean", normalize=False, scale=1.0) if is_encoder else None,
        template_digest=base.template_digest,
        max_length=base.max_length,
    )
    return Delta.of(tensors, manifest)


def served_bytes(base: Base) -> int:
    """Memory that a process needs for a base: the fast path of writing has its linears twice."""
    if not base.generates:
        return base.bytes
    linears = [m.weight for m in base.model.modules() if isinstance(m, torch.nn.Linear)]
    return base.bytes + sum(weight.nbytes for weight in linears)

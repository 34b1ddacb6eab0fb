"""A LoRA that changes nothing: the plain base, for programs that must be asked for an adapter."""

import torch

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import Manifest
from peft_engine.configs.methods import LoraConfig
from peft_engine.delta import Delta, tensor_name
from peft_engine.methods.table import METHODS
from peft_engine.parts.sites import linear_sites


def zero_lora(base: Base) -> Delta:
    """The smallest LoRA of a base whose every number is zero.

    Args:
        base: A base that generates.

    Returns:
        A delta of rank 1 on one linear of the trunk.
    """
    path = next(iter(linear_sites(base.trunk))).path
    method, config = METHODS["lora"], LoraConfig(r=1, alpha=1, targets=(path,))
    tensors = {
        tensor_name(site.path, "lora", name): torch.zeros(shape)
        for site in method.sites(base.trunk, config)
        for name, shape in method.shapes(site, config).items()
    }
    manifest = Manifest(
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        architecture=base.architecture,
        precision=base.precision,
        task="text-generation",
        methods=(config,),
        template_digest=base.template_digest,
        max_length=base.max_length,
    )
    return Delta.of(tensors, manifest)

"""What a pruning takes away, as tensors: enough to make the pruned base from the base again.

Names are ``mask:PATH`` for a linear, (O, ceil(I / 8)) uint8 with one bit for each weight, set where
it stays; ``ffn:PATH`` for the linear that ends an FFN, ``heads:PATH`` for an attention module and
``layers:PATH`` for a stack, each (K,) int32, the places that stay, rising.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from peft_engine.compression.pruning.cutting import cut_ffn, cut_heads, cut_layers
from peft_engine.compression.pruning.described import describe_shape
from peft_engine.errors import BaseModelError
from peft_engine.parts.anatomy import ffn_inners, head_groups
from peft_engine.parts.sites import linear_sites, stack_paths, weight_of

# Legend of axes: O output width, I input width, K parts that stay.


@dataclass(frozen=True)
class PruningPlan:
    """What stays of a base.

    Attributes:
        tensors: By name, on the CPU.
    """

    tensors: Mapping[str, Tensor]

    @property
    def digest(self) -> str:
        """``sha256:…`` over names, types, shapes and values."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
        return f"sha256:{digest.hexdigest()}"

    def to_bytes(self) -> bytes:
        """The plan as a safetensors file.

        Returns:
            The file.
        """
        return save({name: tensor.contiguous() for name, tensor in self.tensors.items()})

    @classmethod
    def from_bytes(cls, data: bytes) -> "PruningPlan":
        """Read a plan.

        Args:
            data: What ``to_bytes`` gave.

        Returns:
            The plan.

        Raises:
            BaseModelError: It is no safetensors file (``base_unsupported``).
        """
        try:
            return cls(load(data))
        except SafetensorError as error:
            raise BaseModelError(
                f"the file of a pruning cannot be read: {error}", code="base_unsupported"
            ) from error


def pack_mask(kept: Tensor) -> Tensor:
    """One bit for each weight.

    Args:
        kept: (O, I) bool.

    Returns:
        (O, ceil(I / 8)) uint8.
    """
    return torch.from_numpy(np.packbits(kept.cpu().numpy(), axis=1))


def unpack_mask(packed: Tensor, width: int) -> Tensor:
    """The bits again.

    Args:
        packed: (O, ceil(I / 8)) uint8.
        width: I.

    Returns:
        (O, I) bool.
    """
    return torch.from_numpy(np.unpackbits(packed.numpy(), axis=1, count=width)).bool()


def mask_weight(linear: nn.Module, kept: Tensor) -> None:
    """Set weights to zero in place.

    Args:
        linear: The linear.
        kept: (O, I) bool, true for the weights that stay.
    """
    weight = weight_of(linear)
    with torch.no_grad():
        weight.masked_fill_(~kept.to(weight.device), 0)


def apply_plan(model: nn.Module, trunk: nn.Module, plan: PruningPlan) -> None:
    """Prune a base in place as a plan says, and its transformers configuration with it.

    Args:
        model: A model that nothing else uses, as it was loaded.
        trunk: The part of it that gives hidden states.
        plan: What stays.

    Raises:
        BaseModelError: The plan was made for another base (``base_unsupported``).
    """
    linears = {site.path for site in linear_sites(trunk)}
    names = plan.tensors.keys()
    inners = ffn_inners(trunk) if any(n.startswith("ffn:") for n in names) else ()
    heads = head_groups(trunk) if any(n.startswith("heads:") for n in names) else ()
    by_end = {inner.end.path: inner for inner in inners}
    by_module = {group.path: group for group in heads}
    stacks = {paths[0].rpartition(".")[0] for paths in stack_paths(trunk)}
    for name, tensor in plan.tensors.items():
        kind, _, path = name.partition(":")
        if kind == "mask" and path in linears:
            linear = trunk.get_submodule(path)
            mask_weight(linear, unpack_mask(tensor, weight_of(linear).shape[1]))
        elif kind == "ffn" and path in by_end:
            cut_ffn(trunk, by_end[path], tensor)
        elif kind == "heads" and path in by_module:
            cut_heads(trunk, by_module[path], tensor)
        elif kind == "layers" and path in stacks:
            cut_layers(trunk, path, tensor)
        else:
            raise BaseModelError(
                f"a pruning names {name!r}, which this base does not have", code="base_unsupported"
            )
    describe_shape(model, trunk, plan.tensors)

"""Sites: the places of a frozen model at which a method may act."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn
from transformers.pytorch_utils import Conv1D

SiteKind = Literal["linear", "norm", "sublayer", "embedding", "attention"]

# The number of the layer in `encoder.layer.3.attention…`, `model.layers.3.mlp…`, `h.3.attn…`.
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")


@dataclass(frozen=True)
class Site:
    """One place in the trunk of a base.

    Attributes:
        path: Name of the module inside the trunk.
        kind: What stands there.
        layer: Number of the layer from 0, or None outside the stack of layers.
        in_features: Width of what goes in.
        out_features: Width of what comes out.
    """

    path: str
    kind: SiteKind
    layer: int | None
    in_features: int
    out_features: int


def linear_sites(trunk: nn.Module) -> Iterator[Site]:
    """Every linear of the stack of layers: no embedding, no pooler, no language head.

    Args:
        trunk: The part of a base that gives hidden states.

    Yields:
        The sites in the order of the modules. GPT-2's ``Conv1D`` is a linear too.
    """
    for path, module in trunk.named_modules():
        found = _LAYER.search(path)
        if found is None:
            continue
        if isinstance(module, nn.Linear):
            widths = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            # Conv1D keeps its weight as (in, out)
            widths = (module.weight.shape[0], module.weight.shape[1])
        else:
            continue
        yield Site(path, "linear", int(found.group(1)), *widths)


def count_layers(trunk: nn.Module) -> int:
    """Number of layers of the stack.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        One more than the highest layer number; 0 when there is no stack.
    """
    layers = [site.layer for site in linear_sites(trunk) if site.layer is not None]
    return max(layers, default=-1) + 1

"""Taking parts out of a model: linears get narrower, stacks shorter; nothing is left behind."""

import torch
from torch import Tensor, nn

from peft_engine.parts.anatomy import HeadGroups, Inner
from peft_engine.parts.sites import weight_of

# Legend of axes: O output width, I input width.

_HEAD_COUNTS = ("num_attention_heads", "num_heads", "n_heads")
_HEAD_WIDTHS = ("all_head_size", "split_size")
"""Attributes by which attention modules know their heads; each family has one or two of them."""


def cut_ffn(trunk: nn.Module, inner: Inner, kept: Tensor) -> None:
    """Keep some inner features of an FFN.

    Args:
        trunk: The part of a base that gives hidden states.
        inner: The FFN.
        kept: Places of the features that stay, rising.
    """
    for path in inner.makers:
        _keep_outputs(trunk.get_submodule(path), kept)
    _keep_inputs(trunk.get_submodule(inner.end.path), kept)


def cut_heads(trunk: nn.Module, heads: HeadGroups, kept: Tensor) -> None:
    """Keep some heads of keys and values, with the queries that look at them.

    Args:
        trunk: The part of a base that gives hidden states.
        heads: The attention.
        kept: Places of the groups that stay, rising.
    """
    end, width = heads.end, heads.end.in_features // heads.groups
    for number, path in enumerate(heads.makers):
        linear = trunk.get_submodule(path)
        if len(heads.makers) == 1:  # queries, keys and values, all of the same width
            thirds = [_spread(kept, width) + part * end.in_features for part in range(3)]
            _keep_outputs(linear, torch.cat(thirds))
            continue
        own = len(weight_of(linear)) // heads.groups if number else width
        _keep_outputs(linear, _spread(kept, own))
    _keep_inputs(trunk.get_submodule(end.path), _spread(kept, width))
    module = trunk.get_submodule(heads.path)
    for name in _HEAD_COUNTS:
        if hasattr(module, name):
            setattr(module, name, heads.heads // heads.groups * len(kept))
    for name in _HEAD_WIDTHS:
        if hasattr(module, name):
            setattr(module, name, width * len(kept))


def cut_layers(trunk: nn.Module, stack: str, kept: Tensor) -> None:
    """Keep some layers of a stack.

    Args:
        trunk: The part of a base that gives hidden states.
        stack: Path of the list of layers.
        kept: Their numbers, rising.
    """
    parent, _, name = stack.rpartition(".")
    old = trunk.get_submodule(stack)
    layers = nn.ModuleList([old.get_submodule(str(number)) for number in kept.tolist()])
    setattr(trunk.get_submodule(parent), name, layers)
    for number, layer in enumerate(layers):
        for module in layer.modules():
            # By this number a layer finds its keys and values in the cache.
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = number  # type: ignore[assignment]


def _keep_outputs(linear: nn.Module, kept: Tensor) -> None:
    bias: Tensor | None = linear.bias  # type: ignore[assignment]
    if bias is not None:
        linear.bias = _frozen(bias[kept.long()])
    _replace(linear, weight_of(linear)[kept.long()])


def _keep_inputs(linear: nn.Module, kept: Tensor) -> None:
    _replace(linear, weight_of(linear)[:, kept.long()])


def _replace(linear: nn.Module, weight: Tensor) -> None:
    """Give a linear another weight, (O, I)."""
    height, width = weight.shape
    if isinstance(linear, nn.Linear):
        linear.weight = _frozen(weight)
        linear.out_features, linear.in_features = height, width
    else:  # Conv1D keeps its weight as (in, out)
        linear.weight = _frozen(weight.T)
        linear.nf, linear.nx = height, width  # type: ignore[assignment]


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone().contiguous(), requires_grad=False)


def _spread(groups: Tensor, width: int) -> Tensor:
    """Places of the members of groups of neighbours."""
    places = groups.long().unsqueeze(1) * width + torch.arange(width)  # (G, w)
    return places.reshape(-1)

"""The layer that some heads have before their last one, as transformers and AdapterHub build them.

Our own training never makes one; heads that are brought along keep theirs and go on learning it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, relu

from peft_engine.configs.manifest import HeadSpec, HiddenActivation

# Legend of axes: F features, D width, H width of the layer.

_ACTIVATIONS: Mapping[HiddenActivation, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"tanh": torch.tanh, "relu": relu, "gelu": gelu}
)

HIDDEN_TENSORS = ("hidden_weight", "hidden_bias")
"""(H, D) and (H,)."""


def last_features(spec: HeadSpec, tensors: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """What the last layer of a head reads.

    Args:
        spec: Specification of the head.
        tensors: Its tensors.
        features: (F, D) pooled features.

    Returns:
        (F, H), or (F, D) scaled features where there is no such layer.
    """
    scaled = features * spec.scale
    if spec.hidden is None:
        return scaled
    low = linear(scaled, tensors["hidden_weight"], tensors["hidden_bias"])
    return _ACTIVATIONS[spec.hidden](low)


def keep_hidden(tensors: Mapping[str, Tensor], fitted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A last layer that was fitted anew, with the layer before it as it was.

    Args:
        tensors: Tensors of the head before.
        fitted: ``weight`` and ``bias`` of its new last layer.

    Returns:
        All tensors.
    """
    return {name: tensors[name] for name in HIDDEN_TENSORS if name in tensors} | dict(fitted)

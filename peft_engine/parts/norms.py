"""The normalised value inside a LayerNorm or RMSNorm, computed again from its input.

Never from its output as ``(y - b) / w``: gains near zero would make that meaningless.
"""

import torch
from torch import Tensor, nn


def normalise(module: nn.Module, x: Tensor) -> Tensor:
    """What the norm multiplies by its gain.

    Args:
        module: A norm, as ``is_norm`` tells.
        x: (…, D) its input.

    Returns:
        (…, D) in fp32.

    Source: Ba et al. 2016, arXiv 1607.06450; Zhang and Sennrich 2019, arXiv 1910.07467.
    """
    wide = x.float()
    if isinstance(module, nn.LayerNorm):
        return nn.functional.layer_norm(wide, module.normalized_shape, eps=module.eps)
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + _epsilon(module, x.dtype))


def _epsilon(module: nn.Module, dtype: torch.dtype) -> float:
    for name in ("variance_epsilon", "eps"):
        found = getattr(module, name, None)
        if found is not None:
            return float(found)
    return torch.finfo(dtype).eps  # nn.RMSNorm(eps=None)

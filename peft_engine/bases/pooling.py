"""How token features become one feature of a row: read from the base, else a documented rule."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

PoolingMode = Literal["mean", "cls", "last"]

_MODES: Mapping[str, PoolingMode] = MappingProxyType(
    {
        "pooling_mode_cls_token": "cls",
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_lasttoken": "last",
    }
)
"""Those of sentence-transformers that are offered here."""

# Legend of axes: B rows, T tokens, D width.


@dataclass(frozen=True)
class Pooling:
    """The pooling that a base was trained with.

    Attributes:
        mode: ``mean`` over real tokens, the first token (``cls``), or the ``last`` real token.
        normalize: Whether the base's own features are scaled to unit length.
        declared: Whether the base says so itself: it was trained to give features of texts.
    """

    mode: PoolingMode
    normalize: bool
    declared: bool = False


def read_pooling(directory: Path, architecture: str) -> Pooling:
    """Pooling of a base.

    The sentence-transformers configuration decides when it names one of ours. Otherwise encoders
    take the mean, since an encoder trained on masked tokens has no trained [CLS] feature, and
    causal models the last token, the only one that has seen the whole row.

    Args:
        directory: Folder of the base.
        architecture: ``encoder`` or ``causal``.

    Returns:
        The pooling.
    """
    path = directory / "1_Pooling" / "config.json"
    if path.is_file():
        found = json.loads(path.read_text())
        modules = directory / "modules.json"
        normalize = modules.is_file() and "Normalize" in modules.read_text()
        declared = next((mode for name, mode in _MODES.items() if found.get(name)), None)
        if declared is not None:
            return Pooling(declared, normalize, declared=True)
    return Pooling("last" if architecture == "causal" else "mean", normalize=False)


def pool(hidden: Tensor, mask: Tensor, *, mode: PoolingMode, normalize: bool) -> Tensor:
    """One feature for each row, in fp32.

    Args:
        hidden: (B, T, D) hidden states, right-padded.
        mask: (B, T) 1 for real tokens.
        mode: See ``Pooling``.
        normalize: Scale to unit length.

    Returns:
        (B, D) features in fp32.
    """
    if mode == "mean":
        weights = mask.unsqueeze(-1).float()  # (B, T, 1)
        pooled = (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)
    elif mode == "cls":
        pooled = hidden[:, 0].float()
    else:
        last = mask.sum(1) - 1  # (B,)
        pooled = hidden[torch.arange(hidden.shape[0], device=hidden.device), last].float()
    return torch.nn.functional.normalize(pooled, dim=-1) if normalize else pooled

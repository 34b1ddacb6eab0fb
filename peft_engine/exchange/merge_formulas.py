"""Formulas by which several changes of one weight become one.

Source: as in PEFT's ``utils/merge_utils.py``, which follows Yadav et al. 2023 (arXiv 2306.01708,
algorithm 1) and Yu et al. 2023 (arXiv 2311.03099, equation 1).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from peft_engine.configs.merge import MergeSpec

# Legend of axes: N adapters; … any shape of a weight or bias.


def merge_changes(
    changes: Sequence[Tensor], weights: Sequence[float], spec: MergeSpec, generator: torch.Generator
) -> Tensor:
    """Merge the changes of one weight.

    Args:
        changes: N of (…,), fp32 on the CPU.
        weights: N factors.
        spec: Which formula.
        generator: CPU generator, for what is dropped.

    Returns:
        (…,).
    """
    stacked = torch.stack(list(changes))  # (N, …)
    factors = torch.tensor(weights).view(-1, *[1] * (stacked.dim() - 1))  # (N, 1, …)
    if spec.method.startswith("dare"):
        kept = torch.rand(stacked.shape, generator=generator) < spec.density
        stacked = stacked * kept / spec.density
    elif spec.method == "ties":
        stacked = torch.stack([_keep_largest(own, spec.density) for own in stacked])
    if spec.method in ("ties", "dare-ties"):
        return _elect(stacked, factors, spec)
    return (stacked * factors).sum(0)


def _keep_largest(values: Tensor, density: float) -> Tensor:
    count = int(density * values.numel())
    kept = torch.zeros(values.numel())
    kept[values.abs().flatten().topk(count).indices] = 1
    return values * kept.view_as(values)


def _elect(stacked: Tensor, factors: Tensor, spec: MergeSpec) -> Tensor:
    """Mean of those values whose sign is that of the majority."""
    votes = stacked if spec.majority == "total" else stacked.sign()
    winner = torch.where(votes.sum(0) >= 0, 1.0, -1.0)  # (…,)
    agree = stacked.sign() == winner  # (N, …)
    return (stacked * factors * agree).sum(0) / agree.sum(0).clamp(min=1)


def closest_pair(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The two matrices of a rank whose product is closest to a change.

    Args:
        change: (O, I).
        rank: r, or as many as there are.

    Returns:
        ``A`` (r, I) and ``B`` (O, r), padded with zeros up to r, both of the same length.

    Source: Eckart and Young 1936.
    """
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    count = min(rank, len(values))
    root = values[:count].sqrt()
    down, up = right[:count] * root.unsqueeze(1), left[:, :count] * root
    free = rank - count
    pad = torch.nn.functional.pad
    return pad(down, (0, 0, 0, free)), pad(up, (0, free))

"""Which parts of a base go: inner features of the FFN, heads, layers.

A part's score is the error that taking it away alone makes in what its sub-layer adds to the
residual stream, over the calibration rows: for inner feature j ``|a_j| |W_j|``, and for a group of
heads ``sqrt(tr(W_g G_g W_gᵀ))``, with ``G_g`` the products of what the heads give and ``W_g`` the
columns of the linear that reads them. A layer's score is how far it turns the hidden states.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# Legend of axes: N tokens, O output width, I input width, G groups of neighbouring inputs, w inputs
# of one group, D width.

_WIDTH_MULTIPLE = 8
"""Kept widths of an FFN are rounded up to this: vector units add 8 or 16 numbers at a time, and a
product over 1150 inputs is no faster than over 1152."""


class GroupContributions:
    """What groups of neighbouring inputs contribute to the output of one linear.

    Args:
        groups: G.
        width: w; 1 for single features.
    """

    def __init__(self, groups: int, width: int) -> None:
        self._shape = groups, width
        self._products = torch.zeros(groups, width, width, dtype=torch.float64)

    @classmethod
    def alike(cls, groups: int) -> "GroupContributions":
        """Single features that are all of the same size, where none has been seen.

        Args:
            groups: G.

        Returns:
            Contributions by which the weights alone decide.
        """
        found = cls(groups, 1)
        found._products += 1
        return found

    def add(self, x: Tensor) -> None:
        """Count tokens.

        Args:
            x: (N, I) inputs of N tokens, group after group.
        """
        groups, width = self._shape
        if width == 1:
            self._products += x.double().square().sum(0).cpu().view(groups, 1, 1)
            return
        grouped = x.double().view(-1, groups, width)  # (N, G, w)
        self._products += torch.einsum("ngi,ngj->gij", grouped, grouped).cpu()

    def scores(self, weight: Tensor) -> Tensor:
        """The error that each group's absence would make.

        Args:
            weight: (O, I) of the linear.

        Returns:
            (G,) fp64 on the CPU.
        """
        groups, width = self._shape
        own = weight.detach().double().cpu().view(-1, groups, width)  # (O, G, w)
        errors = torch.einsum("ogi,gij,ogj->g", own, self._products, own)
        return errors.clamp(min=0).sqrt()


def measure_turn(entered: Tensor, left: Tensor) -> float:
    """How far a layer turns the hidden states.

    Args:
        entered: (1, T, D) what enters it.
        left: (1, T, D) what leaves it.

    Returns:
        The sum over T tokens of one minus the cosine.

    Source: Men et al. 2024, arXiv 2403.03853, equation 1 (block influence).
    """
    cosines = torch.cosine_similarity(entered.double(), left.double(), dim=-1)  # (1, T)
    return float((1 - cosines).sum())


def kept_width(width: int, sparsity: float) -> int:
    """Inner features of an FFN that stay.

    Args:
        width: How many there are.
        sparsity: Share that goes.

    Returns:
        A multiple of 8, or the width.
    """
    exact = (1 - sparsity) * width
    # Rounding first keeps 0.7 * 1280 = 895.9999… from being one more than it is.
    whole = -(-round(exact) // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
    return min(width, whole)


def kept_count(count: int, sparsity: float) -> int:
    """Heads or layers that stay.

    Args:
        count: How many there are.
        sparsity: Share that goes.

    Returns:
        At least one.
    """
    return max(1, round((1 - sparsity) * count))


def keep_best(scores: Tensor | Sequence[float], count: int) -> Tensor:
    """The places with the highest scores, rising; of equals the first stays.

    Args:
        scores: (G,).
        count: How many stay.

    Returns:
        (count,) int32.
    """
    own = torch.as_tensor(scores)
    order = torch.sort(own, descending=True, stable=True).indices[:count]
    return order.sort().values.int()

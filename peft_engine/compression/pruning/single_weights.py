"""Which single weights of a matrix go: by size, or by size and what comes in (Wanda)."""

import torch
from torch import Tensor

from peft_engine.configs.pruning import PruningConfig

# Legend of axes: O output width, I input width, N tokens.

_GROUP, _KEPT_OF_GROUP = 4, 2
"""2:4, the pattern that sparse units of some processors compute twice as fast."""


class InputNorms:
    """Norms of the inputs of one linear, over all tokens seen.

    Args:
        width: I.
    """

    def __init__(self, width: int) -> None:
        # fp64: sums of a hundred thousand squares keep their digits, whatever the order of rows
        self._squares = torch.zeros(width, dtype=torch.float64)

    def add(self, x: Tensor) -> None:
        """Count tokens.

        Args:
            x: (N, I) inputs of N tokens.
        """
        self._squares += x.double().square().sum(0).cpu()

    @property
    def norms(self) -> Tensor:
        """(I,) fp32: the Euclidean norm of each input feature."""
        return self._squares.sqrt().float()


def choose_weights(weight: Tensor, norms: Tensor | None, config: PruningConfig) -> Tensor:
    """The weights that stay.

    Magnitude compares the weights of the whole matrix, Wanda those of one output row with each
    other, as in the paper; 2:4 compares four neighbours either way. Of equals the first goes.

    Args:
        weight: (O, I).
        norms: (I,) norms of the inputs for ``wanda``, else None.
        config: Pattern and sparsity.

    Returns:
        (O, I) bool on the CPU, true for those that stay.

    Source: Sun et al. 2024, arXiv 2306.11695, equation 1 and section 3.
    """
    scores = weight.detach().float().abs().cpu()
    if norms is not None:
        scores = scores * norms
    if config.pattern == "2:4":
        return _keep_of_four(scores)
    if norms is not None:
        return _keep_highest_of_rows(scores, config.sparsity)
    return keep_highest(scores, config.sparsity)


def keep_highest(scores: Tensor, sparsity: float) -> Tensor:
    """All but the lowest scores of a matrix.

    Args:
        scores: (O, I) on the CPU.
        sparsity: Share that goes; of equals the first.

    Returns:
        (O, I) bool.
    """
    return _keep_highest_of_rows(scores.reshape(1, -1), sparsity).view_as(scores)


def _keep_highest_of_rows(scores: Tensor, sparsity: float) -> Tensor:
    """All but the same number of lowest scores in each row."""
    gone = round(sparsity * scores.shape[1])
    # A stable sort decides ties in the same way everywhere.
    order = torch.sort(scores, dim=1, stable=True).indices[:, :gone]
    return torch.ones_like(scores, dtype=torch.bool).scatter_(1, order, False)


def _keep_of_four(scores: Tensor) -> Tensor:
    """Two of each four neighbours; of a last group of two or three one or two."""
    height, width = scores.shape
    spare = -width % _GROUP
    # What does not exist never stays: it is lower than any score.
    padded = torch.nn.functional.pad(scores, (0, spare), value=-1.0)
    groups = padded.view(height, -1, _GROUP)  # (O, I / 4, 4)
    gone = torch.sort(groups, dim=2, stable=True).indices[..., : _GROUP - _KEPT_OF_GROUP]
    kept = torch.ones_like(groups, dtype=torch.bool).scatter_(2, gone, False)
    return kept.view(height, -1)[:, :width]

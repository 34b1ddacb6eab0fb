"""The first head of multiple choice: as close to what the base knows as held-out questions ask for.

With one right answer in four and a thousand questions, twice as many weights as a feature has
numbers are learned by heart; the cosine of question and choice alone is then better than any of
them. How far to leave it is decided by cross-validation. Deterministic, fp32, on the CPU.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from peft_engine.parts.fits import Check, fit_listwise

# Legend of axes: N questions, F choices of all questions, D features.

FOLDS = 4
"""Parts of the questions; each is left out once for each penalty."""
INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""From close to the start to free; the next one is tried while it helps on questions left out."""


def fit_choices(
    features: Tensor,
    sizes: Sequence[int],
    targets: Sequence[int],
    *,
    start: Tensor,
    check: Check | None = None,
) -> Tensor:
    """A weight for each feature such that the right choice of a question has the highest score.

    Args:
        features: (F, D) fp32, the choices of one question one after another.
        sizes: N numbers of choices, F together.
        targets: N places of the right choice.
        start: (1, D) weights that are good without any training, of any length; or zeros.
        check: Called now and then; may raise to interrupt.

    Returns:
        (1, D) weights: the start at its best length, or beyond it where questions that were left
        out (every ``FOLDS``-th in turn) had a lower loss.
    """
    wanted = torch.tensor(targets).unsqueeze(1)  # (N, 1)
    origin = _stretch(features, sizes, wanted, start, check)
    best = _held_out_loss(features, sizes, wanted, origin, None, check)
    chosen: float | None = None
    for inverse in INVERSE_PENALTIES:
        loss = _held_out_loss(features, sizes, wanted, origin, inverse, check)
        if loss >= best:
            break
        best, chosen = loss, inverse
    if chosen is None:
        return origin
    return fit_listwise(features, sizes, wanted, start=origin, inverse_penalty=chosen, check=check)[
        "weight"
    ]


def _stretch(
    features: Tensor, sizes: Sequence[int], wanted: Tensor, start: Tensor, check: Check | None
) -> Tensor:
    """The start at the length that fits best; zeros stay zeros, and no sign turns."""
    along = linear(features, start)  # (F, 1)
    if not along.any():
        return start
    length = fit_listwise(along, sizes, wanted, check=check)["weight"]  # (1, 1)
    return start * length if float(length) > 0 else start


def _held_out_loss(
    features: Tensor,
    sizes: Sequence[int],
    wanted: Tensor,
    start: Tensor,
    inverse: float | None,
    check: Check | None,
) -> float:
    """Mean loss of questions that were left out; None: of the start itself."""
    rows = torch.split(torch.arange(len(features)), list(sizes))
    total = 0.0
    for fold in range(min(FOLDS, len(sizes))):
        held = range(fold, len(sizes), FOLDS)
        weight = start
        if inverse is not None:
            kept = [place for place in range(len(sizes)) if place % FOLDS != fold]
            if not kept:
                return float("inf")
            weight = fit_listwise(
                features[torch.cat([rows[place] for place in kept])],
                [sizes[place] for place in kept],
                wanted[kept],
                start=start,
                inverse_penalty=inverse,
                check=check,
            )["weight"]
        for place in held:
            scores = linear(features[rows[place]], weight).squeeze(-1)  # (S,)
            total += float(cross_entropy(scores, wanted[place, 0]))
    return total / len(sizes)

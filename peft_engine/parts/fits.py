"""Linear heads that fit frozen features best, in closed form or by L-BFGS: where training starts.

Deterministic: the same features give the same head. All in fp32 on the CPU.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    embedding,
    linear,
    normalize,
)

# Legend of axes: N examples, M asked examples, F features, S features of an example, D width,
# C classes, K old classes, H rows of a table, U rows that are used.

INVERSE_PENALTY = 10.0
"""``C`` of scikit-learn's logistic regression: the penalty on the weights is |W|² / (2 C N)."""
FIT_ITERATIONS = 100
_HISTORY = 100
_TABLE_HISTORY = 10
"""Steps that L-BFGS remembers, each twice as large as the weights: with 50,000 rows of a table a
hundred would take gigabytes. Nocedal and Wright advise 3 to 20."""
CENTROID_SCALE = 20.0
"""Cosine similarities times 20 are logits, as sentence encoders are trained with."""
_RIDGE_PENALTIES = tuple(float(f"1e{power}") for power in range(-4, 4))

Head = dict[str, Tensor]
Check = Callable[[], None]


def fit_head(
    features: Tensor,
    targets: Tensor,
    *,
    classes: int,
    iterations: int = FIT_ITERATIONS,
    check: Check | None = None,
) -> Head:
    """Multinomial logistic regression.

    Args:
        features: (N, D) fp32.
        targets: (N,) class numbers.
        classes: C.
        iterations: Most steps of L-BFGS.
        check: Called before each look at the loss; may raise to interrupt.

    Returns:
        ``weight`` (C, D) and ``bias`` (C,), fp32.
    """
    return _minimize(
        features,
        classes,
        len(features),
        lambda weight, bias: cross_entropy(linear(features, weight, bias), targets),
        check=check,
        iterations=iterations,
    )


def fit_table_head(
    features: Tensor,
    places: Tensor,
    targets: Tensor,
    *,
    classes: int,
    rows: int,
    strength: float,
    iterations: int = FIT_ITERATIONS,
    check: Check | None = None,
) -> Head:
    """Multinomial logistic regression with one more feature for each row of a table.

    Args:
        features: (N, D) fp32.
        places: (N,) the row of the table that an example has; its feature is ``strength``, those
            of all other rows are 0.
        targets: (N,) class numbers.
        classes: C.
        rows: H.
        strength: Above 0; the stronger, the less the penalty holds the table back.
        iterations: Most steps of L-BFGS.
        check: Called before each look at the loss; may raise to interrupt.

    Returns:
        ``weight`` (C, D), ``bias`` (C,) and ``words`` (C, H), the strength inside it; fp32.
    """
    used, own = places.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    width = features.shape[1]  # of the (U,) rows that are used, an example has its (N,) own

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        logits = linear(features, weight[:, :width], bias)  # (N, C)
        table = strength * weight[:, width:].T  # (U, C)
        return cross_entropy(logits + embedding(own, table), targets)

    found = _minimize(
        features,
        classes,
        len(features),
        loss,
        start=torch.zeros(classes, width + len(used)),
        check=check,
        iterations=iterations,
        history=_TABLE_HISTORY,
    )
    words = torch.zeros(classes, rows)
    words[:, used] = strength * found["weight"][:, width:]
    return {"weight": found["weight"][:, :width].clone(), "bias": found["bias"], "words": words}


def fit_labels(features: Tensor, targets: Tensor, *, check: Check | None = None) -> Head:
    """One logistic regression for each label.

    Args:
        features: (N, D) fp32.
        targets: (N, C) 1 where a row has the label, fp32.
        check: Called before each look at the loss; may raise to interrupt.

    Returns:
        ``weight`` (C, D) and ``bias`` (C,), fp32.
    """

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        logits = linear(features, weight, bias)  # (N, C)
        return binary_cross_entropy_with_logits(logits, targets, reduction="sum") / len(features)

    return _minimize(features, targets.shape[1], len(features), loss, check=check)


def fit_new_classes(
    features: Tensor,
    targets: Tensor,
    kept: Mapping[str, Tensor],
    *,
    classes: int,
    known_more: Tensor | None = None,
    check: Check | None = None,
) -> Head:
    """Rows for the classes that a multinomial head does not have; its own rows stay as they are.

    The new rows are fitted against the scores of the old ones. An old class that no row has is
    stood in for by the direction of its own weights: without it nothing would keep the new
    classes from taking every row.

    Args:
        features: (N, D) fp32.
        targets: (N,) class numbers; the old classes come first.
        kept: ``weight`` (K, D) and ``bias`` (K,) of the old classes.
        classes: C, more than K.
        known_more: (N, K) what the old head adds to its scores by other things than features.
        check: Called before each look at the loss; may raise to interrupt.

    Returns:
        ``weight`` (C, D) and ``bias`` (C,), fp32.
    """
    old = len(kept["weight"])
    missing = sorted(set(range(old)) - set(targets.tolist()))
    inputs = torch.cat([features, _stand_ins(features, kept["weight"][missing])])  # (N + M, D)
    wanted = torch.cat([targets, torch.tensor(missing, dtype=targets.dtype)])  # (N + M,)
    known = linear(inputs, kept["weight"], kept["bias"])  # (N + M, K)
    if known_more is not None:
        known[: len(features)] += known_more

    def loss(weight: Tensor, bias: Tensor) -> Tensor:
        return cross_entropy(torch.cat([known, linear(inputs, weight, bias)], dim=1), wanted)

    found = _minimize(inputs, classes - old, len(inputs), loss, check=check)
    return {name: torch.cat([kept[name], found[name]]) for name in ("weight", "bias")}


def fit_new_labels(
    features: Tensor,
    targets: Tensor,
    kept: Mapping[str, Tensor],
    *,
    check: Check | None = None,
) -> Head:
    """One logistic regression for each label that a head does not have; its own stay as they are.

    Args:
        features: (N, D) fp32.
        targets: (N, C) 1 where a row has the label, fp32; the old labels come first.
        kept: ``weight`` (K, D) and ``bias`` (K,) of the old labels; K is less than C.
        check: Called before each look at the loss; may raise to interrupt.

    Returns:
        ``weight`` (C, D) and ``bias`` (C,), fp32.
    """
    old = len(kept["weight"])
    missing = [label for label in range(old) if not targets[:, label].any()]
    without = _stand_ins(features, kept["weight"][missing])  # (M, D) rows with no new label
    inputs = torch.cat([features, without])
    wanted = torch.cat([targets[:, old:], torch.zeros(len(missing), targets.shape[1] - old)])
    found = fit_labels(inputs, wanted, check=check)
    return {name: torch.cat([kept[name], found[name]]) for name in ("weight", "bias")}


def _stand_ins(features: Tensor, weights: Tensor) -> Tensor:
    """(M, D) features in the directions of (M, D) weights, as long as (N, D) features are."""
    length: Tensor = features.norm(dim=-1).mean()
    return normalize(weights, dim=-1) * length


def fit_listwise(
    features: Tensor,
    sizes: Sequence[int],
    targets: Tensor,
    *,
    start: Tensor | None = None,
    inverse_penalty: float = INVERSE_PENALTY,
    check: Check | None = None,
) -> Head:
    """A score for each feature, softmax over those of one example: conditional logit.

    Args:
        features: (F, D) fp32, those of one example one after another.
        sizes: N numbers of features, F together.
        targets: (N, C) for each of C kinds of score, which feature of the example is right.
        start: (C, D) weights that are good without any training; the penalty pulls towards them.
        inverse_penalty: The smaller, the closer the weights stay to the start.
        check: Called before each look at the loss; may raise to interrupt.

    Returns:
        ``weight`` (C, D) and ``bias`` (C,), the latter zero: it cancels out.

    Source: McFadden 1974, conditional logit.
    """
    examples = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))  # (F,)
    places = torch.cat([torch.arange(size) for size in sizes])  # (F,)

    def loss(weight: Tensor, _bias: Tensor) -> Tensor:
        padded = features.new_full((len(sizes), max(sizes), targets.shape[1]), -torch.inf)
        scores = padded.index_put((examples, places), linear(features, weight))  # (N, S, C)
        return cross_entropy(scores, targets, reduction="sum") / len(sizes)

    return _minimize(
        features,
        targets.shape[1],
        len(sizes),
        loss,
        start=start,
        inverse_penalty=inverse_penalty,
        check=check,
    )


def fit_ridge(features: Tensor, targets: Tensor, *, known: int | None = None) -> Head:
    """Ridge regression, its penalty by leave-one-out error among powers of ten.

    Args:
        features: (N, D) fp32.
        targets: (N,) numbers near unit variance.
        known: Number of a feature that is good by itself: a straight line through it is fitted
            first, without penalty, and the ridge explains the rest.

    Returns:
        ``weight`` (1, D) and ``bias`` (1,), fp32.
    """
    # Imported late: it takes a second that every start of a process would wait for.
    from sklearn.linear_model import RidgeCV

    if len(targets) == 1:  # nothing is left to judge a penalty by
        return {"weight": torch.zeros(1, features.shape[1]), "bias": targets.float()}
    inputs, rest = features.double().numpy(), targets.double().numpy()
    slope = intercept = 0.0
    if known is not None and inputs[:, known].var() > 0:
        column = inputs[:, known]
        slope = float(np.cov(column, rest, bias=True)[0, 1] / column.var())
        intercept = float(rest.mean() - slope * column.mean())
        rest = rest - slope * column - intercept
    model = RidgeCV(alphas=_RIDGE_PENALTIES).fit(inputs, rest)
    weight = np.atleast_2d(model.coef_).copy()  # (1, D)
    if known is not None:
        weight[0, known] += slope
    bias = torch.tensor([float(model.intercept_) + intercept])
    return {"weight": torch.from_numpy(weight).float(), "bias": bias}


def centroid_logits(features: Tensor, targets: Tensor, asked: Tensor, *, classes: int) -> Tensor:
    """Nearest class centroid: what the untuned base itself knows of the classes.

    Args:
        features: (N, D) training features of unit length.
        targets: (N,) class numbers.
        asked: (M, D) features to classify.
        classes: C.

    Returns:
        (M, C) scaled cosine similarities.
    """
    sums = torch.zeros(classes, features.shape[1]).index_add_(0, targets, features)  # (C, D)
    centroids = normalize(sums, dim=-1)
    return CENTROID_SCALE * asked @ centroids.T


@torch.enable_grad()
def _minimize(
    features: Tensor,
    classes: int,
    count: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    start: Tensor | None = None,
    inverse_penalty: float = INVERSE_PENALTY,
    check: Check | None = None,
    iterations: int = FIT_ITERATIONS,
    history: int = _HISTORY,
) -> Head:
    """L-BFGS from ``start`` or zero; the penalty is |W - start|² / (2 C count)."""
    origin = torch.zeros(classes, features.shape[1]) if start is None else start  # (C, D)
    weight = origin.clone().requires_grad_()  # (C, D)
    bias = torch.zeros(classes, requires_grad=True)  # (C,)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        history_size=history,
        line_search_fn="strong_wolfe",
    )
    penalty = 1 / (2 * inverse_penalty * count)

    def closure() -> Tensor:
        if check is not None:
            check()
        optimizer.zero_grad()
        total = loss(weight, bias) + penalty * (weight - origin).square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return {"weight": weight.detach(), "bias": bias.detach()}

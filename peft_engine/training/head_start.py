"""The head that fits the frozen base best: where training starts, and the floor it must beat.

Features of the frozen base are computed once per data set and kept, since the base never changes.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.bases.pooling import pool
from peft_engine.configs.manifest import HeadSpec
from peft_engine.parts.batching import Example, batches_by_length, collate

# Legend of axes: N examples, D width, C classes.

INVERSE_PENALTY = 10.0
"""``C`` of scikit-learn's logistic regression: the penalty on the weights is |W|² / (2 C N)."""
_FIT_ITERATIONS = 100
_FEATURE_BATCH_ROWS = 64
_CENTROID_SCALE = 20.0
"""Cosine similarities times 20 are logits, as sentence encoders are trained with."""


class FeatureStore:
    """Frozen features of the last few data sets on one base.

    Args:
        limit_bytes: Oldest features leave when all together are larger.
    """

    def __init__(self, limit_bytes: int = 256 << 20) -> None:
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, base: Base, examples: Sequence[Example], *, check: Callable[[], None]) -> Tensor:
        """Pooled features of the frozen base.

        Args:
            base: The base.
            examples: N examples.
            check: Called before each forward; may raise to interrupt.

        Returns:
            (N, D) fp32 on the CPU.
        """
        key = _key(base, examples)
        if key not in self._kept:
            self._kept[key] = frozen_features(base, examples, check=check)
        self._kept.move_to_end(key)
        while (
            len(self._kept) > 1 and sum(t.nbytes for t in self._kept.values()) > self._limit_bytes
        ):
            self._kept.popitem(last=False)
        return self._kept[key]


@torch.no_grad()
def frozen_features(
    base: Base, examples: Sequence[Example], *, check: Callable[[], None]
) -> Tensor:
    """One forward of the plain base over all examples.

    Args:
        base: The base.
        examples: N examples.
        check: Called before each forward; may raise to interrupt.

    Returns:
        (N, D) features of unit length, fp32, on the CPU.
    """
    found = torch.zeros(len(examples), base.hidden_size)  # (N, D)
    for rows in batches_by_length(examples, batch_size=_FEATURE_BATCH_ROWS):
        check()
        batch = collate([examples[r] for r in rows], pad_id=base.text.pad_id, device=base.device)
        hidden = hidden_states(base, batch)
        found[rows] = pool(hidden, batch.mask, mode=base.pooling.mode, normalize=True).cpu()
    return found


def head_spec(base: Base) -> HeadSpec:
    """The head's view of the base: its own pooling, features of unit length.

    Args:
        base: The base.

    Returns:
        The specification.
    """
    return HeadSpec(pooling=base.pooling.mode, normalize=True, scale=1.0)


@torch.enable_grad()
def fit_head(features: Tensor, targets: Tensor, *, classes: int) -> dict[str, Tensor]:
    """Multinomial logistic regression on frozen features by L-BFGS.

    Args:
        features: (N, D) fp32.
        targets: (N,) class numbers.
        classes: C.

    Returns:
        ``weight`` (C, D) and ``bias`` (C,), fp32.
    """
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)  # (C, D)
    bias = torch.zeros(classes, requires_grad=True)  # (C,)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=_FIT_ITERATIONS, line_search_fn="strong_wolfe"
    )
    penalty = 1 / (2 * INVERSE_PENALTY * len(features))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(linear(features, weight, bias), targets)
        loss = loss + penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return {"weight": weight.detach(), "bias": bias.detach()}


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
    centroids = torch.nn.functional.normalize(sums, dim=-1)
    return _CENTROID_SCALE * asked @ centroids.T


def _key(base: Base, examples: Sequence[Example]) -> str:
    digest = hashlib.sha256(f"{base.fingerprint}|{base.precision}|{base.device}".encode())
    for example in examples:
        digest.update(f"{example.input_ids}{example.type_ids}".encode())
    return digest.hexdigest()

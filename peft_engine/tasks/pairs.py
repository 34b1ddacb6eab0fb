"""Two texts compared: read in one row, or in one row each.

A base that was trained to give features of texts (its pooling is declared, as that of sentence
encoders is) already knows what is alike: there each text has a row of its own, and the head sees
``[√D · u∘v ; √D · |u - v| ; u·v]`` of the two unit features, among them the cosine itself. Other
bases read both texts in one row, and the head sees that row's feature.

Source: InferSent (Conneau et al. 2017, arXiv 1705.02364) for ``u∘v`` and ``|u - v|``;
Sentence-BERT (Reimers and Gurevych 2019, arXiv 1908.10084) for one row each.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.bases.pooling import PoolingMode, pool
from peft_engine.configs.manifest import AnyHeadSpec, Reading
from peft_engine.parts.batching import Batch, Example
from peft_engine.tasks.passes import encode_rows
from peft_engine.tasks.protocol import Frozen, HeadTask

# Legend of axes: B rows, P pairs, T tokens, D width.


def reading_of(base: Base) -> Reading:
    """How this base reads two texts.

    Args:
        base: The base.

    Returns:
        ``apart`` for an encoder whose pooling is declared, else ``joined``.
    """
    return "apart" if base.pooling.declared and base.architecture == "encoder" else "joined"


def join_texts(base: Base, first: str, second: str) -> str | tuple[str, str]:
    """Two texts for one row.

    Args:
        base: Encoders have a template for pairs; causal bases have none.
        first: The first text.
        second: The second text.

    Returns:
        A pair, or for causal bases one text of two lines.
    """
    return f"{first}\n{second}" if base.architecture == "causal" else (first, second)


def unit_features(hidden: Tensor, batch: Batch, *, mode: PoolingMode) -> Tensor:
    """Pooled features of unit length.

    Args:
        hidden: (B, T, D).
        batch: The same rows.
        mode: How tokens are pooled.

    Returns:
        (B, D) fp32.
    """
    return pool(hidden, batch.mask, mode=mode, normalize=True)


def pair_features(first: Tensor, second: Tensor) -> Tensor:
    """What the head sees of two texts that were read apart.

    Args:
        first: (P, D) unit features.
        second: (P, D) unit features.

    Returns:
        (P, 2D + 1); the root of D keeps the entries as large as those of a unit feature.
    """
    scale = first.shape[1] ** 0.5
    product = first * second
    apart = (first - second).abs()
    return torch.cat([scale * product, scale * apart, product.sum(-1, keepdim=True)], dim=-1)


def text_features(
    frozen: Frozen, task: HeadTask, spec: AnyHeadSpec, texts: Sequence[str], *, max_length: int
) -> Tensor:
    """Features of single texts by the plain base.

    Args:
        frozen: The plain base.
        task: A task whose features of a single row are the pooled ones under ``spec``.
        spec: The specification.
        texts: P texts.
        max_length: Longest row in tokens.

    Returns:
        (P, D) of unit length.
    """
    rows = encode_rows(frozen.base, texts, max_length=max_length)
    return frozen.features(task, spec, [Example((row,), layout=1) for row, _ in rows])

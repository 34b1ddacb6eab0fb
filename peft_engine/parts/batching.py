"""Rows of token ids to padded batches, and the order in which training sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Legend of axes: B rows, T tokens.

_BUCKET_BATCHES = 20
"""Rows are shuffled, then sorted by length inside windows of this many batches: batches are nearly
free of padding and still differ from epoch to epoch."""


@dataclass(frozen=True)
class Example:
    """One record as tokens.

    Attributes:
        input_ids: Token ids.
        type_ids: 0 or 1 for each token where the base tells two texts apart, else None.
        target: What is to be learned, in the form of the task.
        cut_tokens: Tokens that did not fit.
    """

    input_ids: Sequence[int]
    type_ids: Sequence[int] | None
    target: Any
    cut_tokens: int = 0


@dataclass(frozen=True)
class Batch:
    """Examples padded on the right.

    Attributes:
        input_ids: (B, T) int64.
        mask: (B, T) int64, 1 for real tokens.
        type_ids: (B, T) int64 or None.
        targets: One target for each row.
        tokens: Number of real tokens.
    """

    input_ids: Tensor
    mask: Tensor
    type_ids: Tensor | None
    targets: list[Any]
    tokens: int

    @property
    def rows(self) -> int:
        """B."""
        return self.input_ids.shape[0]


def collate(examples: Sequence[Example], *, pad_id: int, device: torch.device) -> Batch:
    """Pad examples to one length.

    Args:
        examples: At least one.
        pad_id: Id that fills up.
        device: Where the tensors go.

    Returns:
        The batch, rows in order.
    """
    longest = max(len(example.input_ids) for example in examples)
    has_types = examples[0].type_ids is not None
    ids = torch.full((len(examples), longest), pad_id, dtype=torch.int64)  # (B, T)
    mask = torch.zeros_like(ids)  # (B, T)
    types = torch.zeros_like(ids) if has_types else None  # (B, T)
    for row, example in enumerate(examples):
        length = len(example.input_ids)
        ids[row, :length] = torch.tensor(example.input_ids)
        mask[row, :length] = 1
        if types is not None and example.type_ids is not None:
            types[row, :length] = torch.tensor(example.type_ids)
    return Batch(
        ids.to(device),
        mask.to(device),
        None if types is None else types.to(device),
        [example.target for example in examples],
        int(mask.sum()),
    )


def batches_by_length(examples: Sequence[Example], *, batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, for a pass in which order does not matter.

    Args:
        examples: The examples.
        batch_size: Rows in a batch.

    Returns:
        Batches of indices, longest first, so that running out of memory shows at once.
    """
    order = sorted(range(len(examples)), key=lambda i: (-len(examples[i].input_ids), i))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def epoch_batches(
    examples: Sequence[Example], *, batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Order of one epoch of training: a function of seed and epoch alone, so it can be resumed.

    Args:
        examples: The training examples.
        batch_size: Rows in a batch; the last batch may be smaller.
        seed: The job's seed.
        epoch: Number of the epoch from 0.

    Returns:
        Batches of indices; every index stands in exactly one.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(len(examples), generator=generator).tolist()
    window = batch_size * _BUCKET_BATCHES
    batches: list[list[int]] = []
    for start in range(0, len(order), window):
        part = sorted(order[start : start + window], key=lambda i: len(examples[i].input_ids))
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in shuffled]

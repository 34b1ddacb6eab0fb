"""Rows of token ids to padded batches, and the order in which training sees them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_engine.parts.packing import Packing

# Legend of axes: B rows, N examples, T tokens, U tokens of the decoder.

_BUCKET_BATCHES = 20
"""Rows are shuffled, then sorted by length inside windows of this many batches: batches are nearly
free of padding and still differ from epoch to epoch."""


@dataclass(frozen=True)
class TokenRow:
    """One row of a forward as tokens.

    Attributes:
        input_ids: Token ids.
        type_ids: 0 or 1 for each token where the base tells two texts apart, else None.
        decoder_ids: Token ids of the decoder, its start token first, where a base has one and the
            task reads it; else None.
    """

    input_ids: Sequence[int]
    type_ids: Sequence[int] | None = None
    decoder_ids: Sequence[int] | None = None

    @property
    def tokens(self) -> int:
        """Tokens of both stacks."""
        return len(self.input_ids) + len(self.decoder_ids or ())

    @property
    def final_ids(self) -> Sequence[int]:
        """Token ids that hidden states stand for: the decoder's where there are any."""
        return self.input_ids if self.decoder_ids is None else self.decoder_ids


@dataclass(frozen=True)
class Example:
    """One record, or one window of it, as tokens. A batch never splits an example.

    Attributes:
        rows: One or more rows of the forward: one for most tasks, one a choice for others.
        target: What is to be learned, in the form of the task.
        cut_tokens: Tokens that did not fit.
        record: Index of the record in its split; several windows may share one.
        layout: Where things stand in the tokens, in the form of the task, as far as it can be
            known without the target.
    """

    rows: tuple[TokenRow, ...]
    target: Any = None
    cut_tokens: int = 0
    record: int = 0
    layout: Any = None

    @property
    def input_ids(self) -> Sequence[int]:
        """Token ids of the first row, the only one of most tasks."""
        return self.rows[0].input_ids

    @property
    def longest_tokens(self) -> int:
        """Tokens of its longest row."""
        return max(row.tokens for row in self.rows)

    @property
    def tokens(self) -> int:
        """Tokens of all its rows."""
        return sum(row.tokens for row in self.rows)


@dataclass(frozen=True)
class Batch:
    """Rows of examples padded on the right.

    Attributes:
        input_ids: (B, T) int64.
        mask: (B, T) int64, 1 for real tokens.
        type_ids: (B, T) int64 or None.
        examples: N examples, whose rows stand one after another.
        tokens: Number of real tokens.
        decoder_ids: (B, U) int64 or None.
        packing: How the base is given the rows as one, if it is; all of them are under one delta.
    """

    input_ids: Tensor
    mask: Tensor
    type_ids: Tensor | None
    examples: Sequence[Example]
    tokens: int
    decoder_ids: Tensor | None = None
    packing: Packing | None = None

    @property
    def final_ids(self) -> Tensor:
        """(B, T or U) ids that hidden states stand for: the decoder's where there are any."""
        return self.input_ids if self.decoder_ids is None else self.decoder_ids

    @property
    def rows(self) -> int:
        """B."""
        return self.input_ids.shape[0]

    @property
    def forward_rows(self) -> int:
        """Rows that a plan is made for."""
        return self.rows if self.packing is None else 1

    @property
    def targets(self) -> list[Any]:
        """One target for each example."""
        return [example.target for example in self.examples]

    @property
    def first_rows(self) -> list[int]:
        """Number of the first row of each example."""
        sizes = [len(example.rows) for example in self.examples]
        return [0, *itertools.accumulate(sizes)][:-1]

    def part(self, first: int, last: int) -> "Batch":
        """Some of the examples, with their rows and as much padding as before.

        Args:
            first: First example.
            last: Example after the last.

        Returns:
            A batch of views.
        """
        lo = sum(len(example.rows) for example in self.examples[:first])
        examples = self.examples[first:last]
        rows = slice(lo, lo + sum(len(example.rows) for example in examples))
        types = None if self.type_ids is None else self.type_ids[rows]
        decoded = None if self.decoder_ids is None else self.decoder_ids[rows]
        tokens = sum(example.tokens for example in examples)
        return Batch(self.input_ids[rows], self.mask[rows], types, examples, tokens, decoded)


def collate(examples: Sequence[Example], *, pad_id: int, device: torch.device) -> Batch:
    """Pad the rows of examples to one length.

    Args:
        examples: At least one.
        pad_id: Id that fills up.
        device: Where the tensors go.

    Returns:
        The batch, rows in order.
    """
    rows = [row for example in examples for row in example.rows]
    ids = _pad([row.input_ids for row in rows], pad_id)  # (B, T)
    mask = _pad([[1] * len(row.input_ids) for row in rows], 0)  # (B, T)
    types = _pad_known([row.type_ids for row in rows], 0)  # (B, T)
    decoded = _pad_known([row.decoder_ids for row in rows], pad_id)  # (B, U)
    return Batch(
        ids.to(device),
        mask.to(device),
        None if types is None else types.to(device),
        list(examples),
        sum(row.tokens for row in rows),
        None if decoded is None else decoded.to(device),
    )


def _pad(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """(B, longest) int64, filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])


def _pad_known(rows: Sequence[Sequence[int] | None], filler: int) -> Tensor | None:
    """The same for what all rows have, or none."""
    known = [row for row in rows if row is not None]
    return _pad(known, filler) if known else None


def batches_by_length(examples: Sequence[Example], *, batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, for a pass in which order does not matter.

    Args:
        examples: The examples.
        batch_size: Most rows in a batch; an example with more rows than that stands alone.

    Returns:
        Batches of indices, longest first, so that running out of memory shows at once.
    """
    order = sorted(range(len(examples)), key=lambda i: (-examples[i].longest_tokens, i))
    batches: list[list[int]] = []
    rows = batch_size
    for index in order:
        own = len(examples[index].rows)
        if rows + own > batch_size:
            batches.append([])
            rows = 0
        batches[-1].append(index)
        rows += own
    return batches


def epoch_batches(
    examples: Sequence[Example], *, batch_size: int, seed: int, epoch: int
) -> list[list[int]]:
    """Order of one epoch of training: a function of seed and epoch alone, so it can be resumed.

    Args:
        examples: The training examples.
        batch_size: Examples in a batch; the last batch may be smaller.
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
        part = sorted(order[start : start + window], key=lambda i: examples[i].longest_tokens)
        batches += [part[i : i + batch_size] for i in range(0, len(part), batch_size)]
    shuffled = torch.randperm(len(batches), generator=generator).tolist()
    return [batches[i] for i in shuffled]

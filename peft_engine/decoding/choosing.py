"""Which token comes next, for every row of a batch in its own way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_engine.decoding.row import DecodingRow, TokenChoice
from peft_engine.errors import RowError
from peft_engine.generation import token_shares

# Legend of axes: B rows, V vocabulary.

_BLOCK_TOKENS = 1024
"""The largest value of a block is found with vector instructions, its place is not. Measured on one
core, 32 rows of 49,152: 0.25 ms in blocks of 1,024 against 2.4 ms for the place among all."""


@dataclass(frozen=True)
class Scored:
    """Rows whose next token can be chosen: from here on nothing fails any more.

    Attributes:
        rows: B rows; none of them has changed yet.
        logits: (B, V) fp32.
        best: The likeliest token of each row.
    """

    rows: Sequence[DecodingRow]
    logits: Tensor
    best: Sequence[int]

    @classmethod
    def of(cls, logits: Tensor, rows: Sequence[DecodingRow]) -> "Scored":
        """Look at scores before any random number is drawn for them.

        Args:
            logits: (B, V) fp32; not changed.
            rows: B rows.

        Returns:
            The rows with their scores.

        Raises:
            RowError: The scores of a row are no numbers (``answer_not_finite``): an adapter may be
                made to overflow. On a GPU a draw from them would end the process.
        """
        best = likeliest(logits)
        highest = logits.gather(1, best.unsqueeze(1)).squeeze(1)  # (B,); NaN where any score is
        if not all(math.isfinite(value) for value in highest.tolist()):
            raise RowError(
                "the scores of the next token are not finite: the adapter's numbers overflow",
                code="answer_not_finite",
            )
        return cls(rows, logits, best.tolist())

    def take(self, *, end_id: int | None) -> None:
        """Choose one token for each row, from its own scores, tokens and random numbers alone.

        Args:
            end_id: The base's end token.
        """
        for place, row in enumerate(self.rows):
            row.take(_choose(self.logits[place], row, self.best[place]), end_id=end_id)


def likeliest(logits: Tensor) -> Tensor:
    """As ``logits.argmax(-1)``, of equals the first, what is no number above all; quicker on a CPU.

    Args:
        logits: (B, V).

    Returns:
        (B,).
    """
    whole = logits.shape[1] // _BLOCK_TOKENS * _BLOCK_TOKENS
    if not whole:
        return logits.argmax(-1)
    blocks = logits[:, :whole].view(len(logits), -1, _BLOCK_TOKENS)  # (B, V / block, block)
    block = blocks.amax(-1).argmax(-1)  # (B,)
    rows = torch.arange(len(logits), device=logits.device)
    own = blocks[rows, block]  # (B, block)
    best = own.argmax(-1)
    found = block * _BLOCK_TOKENS + best
    if whole == logits.shape[1]:
        return found
    rest = logits[:, whole:].argmax(-1)
    last = logits[rows, whole + rest]
    is_better = (last > own[rows, best]) | last.isnan()
    return torch.where(is_better, whole + rest, found)


def _choose(logits: Tensor, row: DecodingRow, likeliest: int) -> TokenChoice:
    sampling = row.sampling
    token = likeliest
    if sampling.penalizes:
        logits_now = penalize(logits, row)
        token = int(logits_now.argmax())
    else:
        logits_now = logits
    if sampling.draws:
        shares = token_shares(logits_now / sampling.temperature, sampling)
        token = int(torch.multinomial(shares, 1, generator=row.generator))
    if sampling.logprobs is None:
        return TokenChoice(token)
    return _with_logprobs(token, logits, sampling.logprobs)


def _with_logprobs(token: int, logits: Tensor, count: int) -> TokenChoice:
    logprobs = logits.log_softmax(-1)
    best = logprobs.topk(min(count, logits.shape[-1])) if count else None
    top = (
        () if best is None else tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    )
    return TokenChoice(token, float(logprobs[token]), top)


def penalize(logits: Tensor, row: DecodingRow) -> Tensor:
    """Make tokens that stand there already less likely.

    Args:
        logits: (V,) fp32; not changed.
        row: Its prompt counts for ``repetition_penalty`` only.

    Returns:
        (V,).

    Source: repetition: Keskar et al. 2019, arXiv 1909.05858, section 4.1, as transformers has it;
        presence and frequency: the OpenAI API, ``logit - count · frequency - (count > 0) ·
        presence`` over the tokens that were written.
    """
    sampling = row.sampling
    found = logits.clone()
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*row.prompt, *row.ids}), device=logits.device)
        own = found[seen]
        penalty = sampling.repetition_penalty
        found[seen] = torch.where(own < 0, own * penalty, own / penalty)
    if row.choices and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = torch.bincount(torch.tensor(row.ids, device=logits.device), minlength=len(found))
        found -= (counts > 0) * sampling.presence_penalty + counts * sampling.frequency_penalty
    return found

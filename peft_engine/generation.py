"""Token by token: prompts in, continuations out, each row with its own way of choosing.

The plan in force decides which delta acts on which row; this file knows no deltas.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from peft_engine.bases.base import Base
from peft_engine.parts.stacks import TwoStacks

# Legend of axes: B rows, T tokens of the longest prompt, D width, V vocabulary.

_LOWEST_TEMPERATURE = 1e-5
"""Below it logits divided by the temperature may be infinite, and a thousandth between two of them
decides anyway: the likeliest token is taken, as vLLM does."""


@dataclass(frozen=True)
class Sampling:
    """How one row chooses its tokens.

    Attributes:
        max_new_tokens: Most tokens to add.
        temperature: 0 takes the most likely token.
        top_p: Smallest set of tokens whose probability reaches this share.
        top_k: Only so many most likely tokens; 0: all.
        stop: Texts that end the row; they are cut off.
        seed: Start of the row's own random numbers.
        repetition_penalty: Above 1 makes tokens of prompt and text less likely; 1: none.
        presence_penalty: Taken from the logits of tokens that the text holds already.
        frequency_penalty: The same, times how often.
        logprobs: So many of the likeliest tokens are told with every token; None: nothing is.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logprobs: int | None = None

    @property
    def draws(self) -> bool:
        """Whether chance has a part in the choice."""
        return self.temperature >= _LOWEST_TEMPERATURE

    @property
    def penalizes(self) -> bool:
        """Whether any penalty is in force."""
        neutral = (1.0, 0.0, 0.0)
        own = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return own != neutral


@dataclass(frozen=True)
class Generated:
    """What one row became.

    Attributes:
        text: The continuation without control tokens.
        ids: Its token ids, the end token included if it came.
        finish_reason: ``stop`` (end token or stop text) or ``length``.
    """

    text: str
    ids: list[int]
    finish_reason: str


class _Row:
    """A row while it is being continued."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self.ids: list[int] = []
        self.reason: str | None = None
        self.text: str | None = None
        self.generator = torch.Generator(device).manual_seed(sampling.seed)

    def choose(self, logits: Tensor, likeliest: int) -> int:
        """Next token from (V,) fp32 logits, of which the place of the largest is known."""
        if not self.sampling.draws:
            return likeliest
        shares = token_shares(logits / self.sampling.temperature, self.sampling)
        return int(torch.multinomial(shares, 1, generator=self.generator))

    def add(self, token: int, base: Base) -> None:
        """Take a token and decide whether the row is over."""
        self.ids.append(token)
        if token == base.text.eos_id or (self.sampling.stop and self._stops(base)):
            self.reason = "stop"
        elif len(self.ids) >= self.sampling.max_new_tokens:
            self.reason = "length"

    def _stops(self, base: Base) -> bool:
        text = base.text.decode(self.ids)
        found = [text.find(stop) for stop in self.sampling.stop if stop in text]
        if found:
            self.text = text[: min(found)]
        return bool(found)


@torch.inference_mode()
def generate(
    base: Base,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    *,
    check: Callable[[], None] = lambda: None,
) -> list[Generated]:
    """Continue every prompt.

    Args:
        base: A base that generates.
        prompts: Token ids of each row, at least one each.
        samplings: How each row chooses.
        check: Called before every token; may raise to interrupt.

    Returns:
        One continuation for each row, in order.
    """
    rows = [_Row(sampling, base.device) for sampling in samplings]
    writer = _writer(base, prompts)
    hidden = writer.start()  # (B, D)
    while True:
        check()
        logits = base.vocabulary_logits(hidden)  # (B, V)
        likeliest = logits.argmax(-1).tolist()  # a device is waited for once, not for each row
        tokens = [
            0 if row.reason else row.choose(logits[i], likeliest[i]) for i, row in enumerate(rows)
        ]
        for row, token in zip(rows, tokens, strict=True):
            if row.reason is None:
                row.add(token, base)
        if all(row.reason for row in rows):
            break
        hidden = writer.advance(torch.tensor(tokens, device=base.device).unsqueeze(1))
    return [_finish(row, base) for row in rows]


class _Writer(Protocol):
    """A base with the keys and values of what it has read."""

    def start(self) -> Tensor:
        """(B, D) hidden state from which the first new token is chosen."""

    def advance(self, ids: Tensor) -> Tensor:
        """(B, D) hidden state after one more token (B, 1) of every row."""


def _writer(base: Base, prompts: Sequence[Sequence[int]]) -> _Writer:
    if isinstance(base.trunk, TwoStacks):
        return _TwoStackWriter(base, base.trunk, prompts)
    return _CausalWriter(base, prompts)


class _CausalWriter:
    """Prompts and answers are one row, padded on the left."""

    def __init__(self, base: Base, prompts: Sequence[Sequence[int]]) -> None:
        self._trunk = base.trunk
        self._ids, self._mask = _pad(prompts, base, left=True)  # (B, T)
        self._cache = DynamicCache()

    def start(self) -> Tensor:
        return self._read(self._ids, (self._mask.cumsum(1) - 1).clamp(min=0))

    def advance(self, ids: Tensor) -> Tensor:
        self._mask = torch.cat([self._mask, torch.ones_like(ids)], dim=1)
        return self._read(ids, self._mask.sum(1, keepdim=True) - 1)

    def _read(self, ids: Tensor, positions: Tensor) -> Tensor:
        output = self._trunk(
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
        )
        last: Tensor = output.last_hidden_state[:, -1]
        return last


class _TwoStackWriter:
    """The encoder reads the prompts once; every row of the decoder starts at position 0."""

    def __init__(self, base: Base, trunk: TwoStacks, prompts: Sequence[Sequence[int]]) -> None:
        self._trunk = trunk
        ids, self._mask = _pad(prompts, base, left=False)  # (B, T)
        self._prompt = trunk.encode(input_ids=ids, attention_mask=self._mask)  # (B, T, D)
        self._first = ids.new_tensor(base.text.answer_start).expand(len(prompts), -1)  # (B, U)
        # Keys and values of the prompt are computed at the first token and kept.
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def start(self) -> Tensor:
        return self.advance(self._first)

    def advance(self, ids: Tensor) -> Tensor:
        hidden = self._trunk.decode(
            ids,
            prompt=self._prompt,
            prompt_mask=self._mask,
            past_key_values=self._cache,
            use_cache=True,
        )
        return hidden[:, -1]


def _pad(prompts: Sequence[Sequence[int]], base: Base, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and mask (B, T) of prompts."""
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), base.text.pad_id, dtype=torch.int64)  # (B, T)
    mask = torch.zeros_like(ids)  # (B, T)
    for row, prompt in enumerate(prompts):
        first = longest - len(prompt) if left else 0
        ids[row, first : first + len(prompt)] = torch.tensor(prompt)
        mask[row, first : first + len(prompt)] = 1
    return ids.to(base.device), mask.to(base.device)


def token_shares(logits: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities with everything outside top-k and top-p at zero.

    Args:
        logits: (V,) divided by the temperature.
        sampling: ``top_k``, then ``top_p`` of what is left.

    Returns:
        (V,), not normalised.

    Source: Holtzman et al. 2020, arXiv 1904.09751.
    """
    if sampling.top_k:
        kept = logits.topk(min(sampling.top_k, logits.shape[-1]))
        logits = torch.full_like(logits, -torch.inf).scatter(-1, kept.indices, kept.values)
    shares = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, index = shares.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        shares = shares.scatter(-1, index, ordered.masked_fill(outside, 0))
    return shares


def _finish(row: _Row, base: Base) -> Generated:
    text = row.text if row.text is not None else base.text.decode(row.ids)
    return Generated(text, row.ids, row.reason or "length")

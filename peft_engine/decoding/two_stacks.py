"""The decoding batch of a base with two stacks: one reads a prompt once, the other writes.

Rows whose prompts are read together are a cohort: they stand at the same token of their answers
until they end, so that no row needs a position of its own, which T5 and BART do not take. A step
gives each cohort one forward; rows that come in one by one are cohorts of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from peft_engine.bases.base import Base
from peft_engine.decoding.choosing import Scored
from peft_engine.decoding.decoder import DecodingLimits, InForce
from peft_engine.decoding.row import DecodingRow
from peft_engine.parts.stacks import TwoStacks

# Legend of axes: B rows of a cohort, T tokens of their longest prompt, U tokens of a forward of the
# decoder, D width.


@dataclass(eq=False)
class _Cohort:
    """Rows at the same token of their answers.

    Attributes:
        rows: B rows.
        prompt: (B, T, D) hidden states of their prompts.
        mask: (B, T) 1 for real tokens.
        cache: Keys and values of prompts and answers; None: to be made again from the tokens.
    """

    rows: list[DecodingRow]
    prompt: Tensor
    mask: Tensor
    cache: EncoderDecoderCache | None = None

    def select(self, rows: Sequence[DecodingRow]) -> "_Cohort":
        """Some of the rows, without a cache."""
        places = torch.tensor([self.rows.index(row) for row in rows], device=self.mask.device)
        return _Cohort(list(rows), self.prompt[places], self.mask[places])

    def keep(self, rows: Sequence[DecodingRow]) -> "_Cohort":
        """Some of the rows with what is cached of them; this cohort is used up."""
        kept = self.select(rows)
        if self.cache is not None:
            places = [self.rows.index(row) for row in rows]
            self.cache.batch_select_indices(torch.tensor(places, device=self.mask.device))
            kept.cache = self.cache
        return kept

    @property
    def bytes(self) -> int:
        """Memory of hidden states, keys and values."""
        held = [self.prompt]
        for cache in () if self.cache is None else self.cache:
            held += [tensor for tensor in cache if isinstance(tensor, Tensor)]
        return sum(tensor.nbytes for tensor in held)


class TwoStackDecoder:
    """Continues rows of one base with two stacks; used by the thread that owns the base.

    Args:
        base: A base whose trunk is ``TwoStacks``.
        trunk: That trunk.
        in_force: Puts deltas in force.
        limits: Bounds of the batch.
    """

    def __init__(
        self, base: Base, trunk: TwoStacks, in_force: InForce, limits: DecodingLimits
    ) -> None:
        self._base = base
        self._trunk = trunk
        self._in_force = in_force
        self._limits = limits
        self._waiting: list[DecodingRow] = []
        self._cohorts: list[_Cohort] = []

    @property
    def rows(self) -> Sequence[DecodingRow]:
        """Rows that have begun and not ended."""
        return (*(row for cohort in self._cohorts for row in cohort.rows), *self._waiting)

    @property
    def cache_bytes(self) -> int:
        """Memory of prompts, keys and values, in bytes."""
        return sum(cohort.bytes for cohort in self._cohorts)

    @property
    def kernel(self) -> str:
        """Always those of the base's own modules."""
        return "general"

    @property
    def layout_bytes(self) -> int:
        """Nothing is laid out."""
        return 0

    def lay_out(self) -> None:
        """Nothing: the base's own modules are ready."""

    def has_room(self, longest_tokens: int) -> bool:
        """Whether a row can join now.

        Args:
            longest_tokens: Tokens of its prompt and of its longest answer.

        Returns:
            True within the limits, and always when the batch is empty.
        """
        return self._limits.leave_room(self.rows, longest_tokens)

    def join(self, row: DecodingRow) -> None:
        """Take a row in; the next step begins to read its prompt.

        Args:
            row: A row that has not begun.
        """
        self._waiting.append(row)

    def cancel(self, row: DecodingRow) -> None:
        """Let a row go; the others are not touched.

        Args:
            row: A row; one that is not in the batch is left as it is.
        """
        if row in self.rows:
            row.cancel()
            self._leave()

    @torch.inference_mode()
    def step(self, only: Sequence[DecodingRow] | None = None) -> list[DecodingRow]:
        """Write one token for every row that has been read, and read prompts within the bound.

        A step that fails has changed nothing but caches, which are made again.

        Args:
            only: Rows of the batch that take part, the others wait; None: all.

        Returns:
            Rows that got a token or ended, in no particular order; the ended ones have left.
        """
        if only is not None:
            self._set_apart(only)
        cohorts = [own for own in self._cohorts if only is None or own.rows[0] in only]
        waiting = [row for row in self._waiting if only is None or row in only]
        if waiting:
            cohorts.append(self._read_prompts(waiting))
        scored = [(cohort, *self._score(cohort)) for cohort in cohorts]
        # Nothing above has changed a row's answer, and nothing below fails.
        for cohort, cache, rows in scored:
            cohort.cache = cache
            rows.take(end_id=self._base.text.eos_id)
        moved = [row for _, _, rows in scored for row in rows.rows]
        self._leave()
        return moved

    def _read_prompts(self, waiting: Sequence[DecodingRow]) -> _Cohort:
        """A cohort of as many rows as fit into one forward, at least one.

        Prompts are read whole: a token of an encoder looks at all others.
        """
        rows: list[DecodingRow] = []
        for row in waiting:
            longest = max(len(own.prompt) for own in (*rows, row))
            if rows and (len(rows) + 1) * longest > self._limits.prefill_tokens:
                break
            rows.append(row)
        longest = max(len(row.prompt) for row in rows)
        ids = torch.full((len(rows), longest), self._base.text.pad_id)  # (B, T)
        mask = torch.zeros_like(ids)  # (B, T)
        for line, row in enumerate(rows):
            ids[line, : len(row.prompt)] = torch.tensor(row.prompt)
            mask[line, : len(row.prompt)] = 1
        ids, mask = ids.to(self._base.device), mask.to(self._base.device)
        with self._in_force([row.owner for row in rows]):
            prompt = self._trunk.encode(input_ids=ids, attention_mask=mask)  # (B, T, D)
        cohort = _Cohort(rows, prompt, mask)
        for row in rows:
            row.cached = len(row.prompt)
            self._waiting.remove(row)
        self._cohorts.append(cohort)
        return cohort

    def _score(self, cohort: _Cohort) -> tuple[EncoderDecoderCache, Scored]:
        """What the next token of every row is chosen by, and the cache that it is then part of."""
        # Taken away while it is written: what a failed step leaves of it is never used.
        cache, cohort.cache = cohort.cache, None
        if cache is None:
            cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
            start = list(self._base.text.answer_start or ())
            tokens = [start + row.ids for row in cohort.rows]
        else:
            tokens = [row.ids[-1:] for row in cohort.rows]
        ids = torch.tensor(tokens, device=self._base.device)  # (B, U)
        with self._in_force([row.owner for row in cohort.rows]):
            hidden = self._trunk.decode(
                ids,
                prompt=cohort.prompt,
                prompt_mask=cohort.mask,
                past_key_values=cache,
                use_cache=True,
            )  # (B, U, D)
        logits = self._base.vocabulary_logits(hidden[:, -1])  # (B, V)
        return cache, Scored.of(logits, cohort.rows)

    def _set_apart(self, only: Sequence[DecodingRow]) -> None:
        """Rows that shall go on without their cohort get one of their own."""
        for cohort in list(self._cohorts):
            own = [row for row in cohort.rows if row in only]
            others = [row for row in cohort.rows if row not in only]
            if own and others:
                self._cohorts.remove(cohort)
                self._cohorts += [cohort.select(own), cohort.keep(others)]

    @torch.inference_mode()
    def _leave(self) -> None:
        """Take rows out that have ended."""
        self._waiting = [row for row in self._waiting if row.finish_reason is None]
        running: list[_Cohort] = []
        for cohort in self._cohorts:
            rows = [row for row in cohort.rows if row.finish_reason is None]
            if len(rows) == len(cohort.rows):
                running.append(cohort)
            elif rows:
                running.append(cohort.keep(rows))
        self._cohorts = running

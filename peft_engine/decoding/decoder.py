"""The decoding batch: rows join when there is room, every step gives each of them a token.

A step writes one token for every row whose prompt is read, and then reads at most
``prefill_tokens`` of waiting prompts, so that a long prompt does not hold up the rows that are being
written.
Which delta acts on which row is the caller's: ``in_force`` puts it in force for a forward.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.decoding.choosing import choose_tokens
from peft_engine.decoding.row import DecodingRow
from peft_engine.decoding.slots import KeyValueSlots, SlotCache, SlotWindow

# Legend of axes: B rows of a forward, T tokens of a forward, D width, V vocabulary.

InForce = Callable[[Sequence[Any]], AbstractContextManager[None]]
"""Puts the deltas of the owners in force: the batch's rows in this order."""


@dataclass(frozen=True)
class DecodingLimits:
    """Bounds of a decoding batch.

    Attributes:
        rows: Most rows at once.
        cache_tokens: Most tokens of keys and values, rows times the longest row.
        prefill_tokens: Most prompt tokens read in one step, padding counted.
    """

    rows: int = 32
    cache_tokens: int = 32 * 2048
    prefill_tokens: int = 512


class Decoder:
    """Continues rows of one causal base; used by the thread that owns the base.

    Args:
        base: A causal base.
        in_force: Puts deltas in force.
        limits: Bounds of the batch.
    """

    def __init__(self, base: Base, in_force: InForce, limits: DecodingLimits) -> None:
        self._base = base
        self._in_force = in_force
        self._limits = limits
        self._slots = KeyValueSlots()
        self._rows: list[DecodingRow] = []  # place = slot; those that still read stand among them

    @property
    def rows(self) -> Sequence[DecodingRow]:
        """Rows that have begun and not ended, in the order of their slots."""
        return tuple(self._rows)

    @property
    def cache_bytes(self) -> int:
        """Memory of keys and values, in bytes."""
        return self._slots.bytes

    def has_room(self, row: DecodingRow) -> bool:
        """Whether a row can join now.

        Args:
            row: A row that has not begun.

        Returns:
            True within the limits, and always when the batch is empty.
        """
        if not self._rows:
            return True
        longest = max(other.longest_tokens for other in (*self._rows, row))
        rows = len(self._rows) + 1
        return rows <= self._limits.rows and rows * longest <= self._limits.cache_tokens

    def join(self, row: DecodingRow) -> None:
        """Take a row in; the next step begins to read its prompt.

        Args:
            row: A row that has not begun.
        """
        self._rows.append(row)

    def cancel(self, row: DecodingRow) -> None:
        """Let a row go; the others are not touched.

        Args:
            row: A row; one that is not in the batch is left as it is.
        """
        if row in self._rows:
            row.text.close()
            row.finish_reason = "cancelled"
            self._leave([row])

    @torch.inference_mode()
    def step(self) -> list[DecodingRow]:
        """Write one token for every row that has been read, and read prompts within the bound.

        Returns:
            Rows that got a token or ended, in no particular order; the ended ones have left.
        """
        moved = [row for row in self._rows if not row.is_prefilling]
        if moved:
            self._write(moved)
        if any(row.is_prefilling for row in self._rows):
            moved = moved + self._read_prompts()
        self._leave([row for row in moved if row.finish_reason is not None])
        return moved

    def _read_prompts(self) -> list[DecodingRow]:
        """One forward over the next parts of prompts; rows that are read to the end get a token."""
        chunk = self._next_chunk()
        places = [place for place, _ in chunk]
        rows = [self._rows[place] for place in places]
        size = max(tokens for _, tokens in chunk)
        ids = torch.full((len(rows), size), self._base.text.pad_id)  # (B, T)
        for line, (row, (_, tokens)) in enumerate(zip(rows, chunk, strict=True)):
            ids[line, :tokens] = torch.tensor(row.prompt[row.cached : row.cached + tokens])
        start = torch.tensor([row.cached for row in rows])  # (B,)
        # Padding may reach beyond the context, where no position stands. The last position is free:
        # a prompt leaves room for a token.
        last = self._base.max_length - 1
        positions = (start.unsqueeze(1) + torch.arange(size)).clamp(max=last)  # (B, T)
        window = SlotWindow(
            self._slots,
            torch.tensor(places, device=self._base.device),
            positions.to(self._base.device),
            int(positions.max()) + 1,
        )
        # What stands behind the end of a shorter part is overwritten before anything looks at it.
        self._slots.reserve(slots=len(self._rows), tokens=window.tokens)
        hidden = self._forward(rows, ids, window)  # (B, T, D)
        done: list[int] = []
        for line, (row, (_, tokens)) in enumerate(zip(rows, chunk, strict=True)):
            row.cached += tokens
            if not row.is_prefilling:
                done.append(line)
        if done:
            ends = [chunk[line][1] - 1 for line in done]
            self._choose(hidden[done, ends], [rows[line] for line in done])
        return [rows[line] for line in done]

    def _next_chunk(self) -> list[tuple[int, int]]:
        """Places of rows and how many tokens of each prompt are read next, in order of arrival."""
        chunk: list[tuple[int, int]] = []
        longest = 0
        for place, row in enumerate(self._rows):
            if not row.is_prefilling:
                continue
            wanted = min(len(row.prompt) - row.cached, self._limits.prefill_tokens)
            if chunk and (len(chunk) + 1) * max(longest, wanted) > self._limits.prefill_tokens:
                break
            chunk.append((place, wanted))
            longest = max(longest, wanted)
        return chunk

    def _write(self, writing: Sequence[DecodingRow]) -> None:
        """One token for every row, those that still read left out of the choice."""
        rows = self._rows[: 1 + max(self._rows.index(row) for row in writing)]
        # A row that is still reading takes part with a token that nobody looks at: it is written
        # to the place of its next prompt token, which overwrites it.
        tokens = [row.choices[-1].token if row.choices else row.prompt[row.cached] for row in rows]
        positions = torch.tensor([[row.cached] for row in rows], device=self._base.device)  # (B, 1)
        window = SlotWindow(self._slots, len(rows), positions, int(positions.max()) + 1)
        self._slots.reserve(slots=len(self._rows), tokens=window.tokens)
        hidden = self._forward(rows, torch.tensor(tokens).unsqueeze(1), window)  # (B, 1, D)
        places = [place for place, row in enumerate(rows) if not row.is_prefilling]
        for place in places:
            rows[place].cached += 1
        self._choose(hidden[places, 0], [rows[place] for place in places])

    def _choose(self, hidden: Tensor, rows: Sequence[DecodingRow]) -> None:
        """A token for each of B rows from (B, D) hidden states."""
        logits = self._base.vocabulary_logits(hidden)  # (B, V)
        for row, choice in zip(rows, choose_tokens(logits, rows), strict=True):
            row.take(choice, end_id=self._base.text.eos_id)

    def _forward(self, rows: Sequence[DecodingRow], ids: Tensor, window: SlotWindow) -> Tensor:
        """(B, T, D) hidden states of (B, T) tokens."""
        weight = self._base.trunk.get_input_embeddings().weight  # type: ignore[operator]
        with self._in_force([row.owner for row in rows]):
            output = self._base.trunk(
                input_ids=ids.to(self._base.device),
                attention_mask=window.mask(weight.dtype),
                position_ids=window.positions,
                past_key_values=SlotCache(window),
                use_cache=True,
            )
        hidden: Tensor = output.last_hidden_state
        return hidden

    @torch.inference_mode()
    def _leave(self, ended: Sequence[DecodingRow]) -> None:
        """Take rows out; the last row moves into each gap."""
        for row in ended:
            place = self._rows.index(row)
            last = self._rows.pop()
            if last is not row:
                self._slots.move(len(self._rows), place)
                self._rows[place] = last
        if not self._rows:
            self._slots.release()

"""The decoding batch: rows join when there is room, every step gives each of them a token.

A step writes one token for every row whose prompt is read, and then reads at most
``prefill_tokens`` of waiting prompts, so that a long prompt does not hold up those that write.
Which delta acts on which row is the caller's: ``in_force`` puts it in force for a forward.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.decoding.choosing import Scored
from peft_engine.decoding.fast import DecodingForward
from peft_engine.decoding.forward import Part, Stages
from peft_engine.decoding.row import DecodingRow
from peft_engine.decoding.slots import KeyValueSlots

# Legend of axes: B rows of a forward, D width, V vocabulary.

InForce = Callable[[Sequence[Any]], AbstractContextManager[Stages]]
"""Puts the deltas of the owners in force, the rows in this order, and tells what they do."""


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

    def leave_room(self, rows: Sequence[DecodingRow], longest_tokens: int) -> bool:
        """Whether one more row fits.

        Args:
            rows: Rows in the batch.
            longest_tokens: Tokens of the new row's prompt and of its longest continuation.

        Returns:
            True within the limits, and always when the batch is empty.
        """
        if not rows:
            return True
        longest = max(longest_tokens, *(row.longest_tokens for row in rows))
        count = len(rows) + 1
        return count <= self.rows and count * longest <= self.cache_tokens


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
        self._forward = DecodingForward(base, self._slots)
        self._rows: list[DecodingRow] = []  # place = slot; those that still read stand among them

    @property
    def rows(self) -> Sequence[DecodingRow]:
        """Rows that have begun and not ended, in the order of their slots."""
        return tuple(self._rows)

    @property
    def cache_bytes(self) -> int:
        """Memory of keys and values, in bytes."""
        return self._slots.bytes

    @property
    def kernel(self) -> str:
        """By which products texts are written."""
        return self._forward.kernel

    @property
    def layout_bytes(self) -> int:
        """Memory of the weights as they are laid out, beside the base's own."""
        return self._forward.layout_bytes

    def lay_out(self) -> None:
        """Lay out the weights, which the first row does otherwise."""
        self._forward.prepare()

    def has_room(self, longest_tokens: int) -> bool:
        """Whether a row can join now.

        Args:
            longest_tokens: Tokens of its prompt and of its longest continuation.

        Returns:
            True within the limits, and always when the batch is empty.
        """
        return self._limits.leave_room(self._rows, longest_tokens)

    def join(self, row: DecodingRow) -> None:
        """Take a row in; the next step begins to read its prompt.

        Args:
            row: A row that has not begun.
        """
        self._forward.prepare()
        self._rows.append(row)

    def cancel(self, row: DecodingRow) -> None:
        """Let a row go; the others are not touched.

        Args:
            row: A row; one that is not in the batch is left as it is.
        """
        if row in self._rows:
            row.cancel()
            self._leave([row])

    @torch.inference_mode()
    def step(self, only: Sequence[DecodingRow] | None = None) -> list[DecodingRow]:
        """Write one token for every row that has been read, and read prompts within the bound.

        A step that fails has changed nothing but slots that the next try overwrites.

        Args:
            only: Rows of the batch that take part, the others wait; None: all.

        Returns:
            Rows that got a token or ended, in no particular order; the ended ones have left.
        """
        places = [place for place, row in enumerate(self._rows) if only is None or row in only]
        writing = [place for place in places if not self._rows[place].is_prefilling]
        reading = [place for place in places if self._rows[place].is_prefilling]
        scored: list[Scored] = []
        chunk: list[tuple[DecodingRow, Part]] = []
        if writing:
            scored.append(self._score_next(writing, whole=only is None))
        if reading:
            chunk = self._next_chunk(reading)
            scored += self._read_prompts(chunk)
        # Nothing above has changed a row, and nothing below fails.
        for row in scored[0].rows if writing else ():
            row.cached += 1
        for row, part in chunk:
            row.cached = part.end
        for rows in scored:
            rows.take(end_id=self._base.text.eos_id)
        moved = [row for rows in scored for row in rows.rows]
        self._leave([row for row in moved if row.finish_reason is not None])
        return moved

    def _read_prompts(self, chunk: Sequence[tuple[DecodingRow, Part]]) -> list[Scored]:
        """One forward over the next parts of prompts; rows that it reads to the end are scored."""
        hidden = self._read([row for row, _ in chunk], [part for _, part in chunk])  # (B, D)
        done = [line for line, (row, part) in enumerate(chunk) if part.end == len(row.prompt)]
        return [self._score(hidden[done], [chunk[line][0] for line in done])] if done else []

    def _next_chunk(self, waiting: Sequence[int]) -> list[tuple[DecodingRow, Part]]:
        """The rows at some places that are read next, and which part of each prompt."""
        chunk: list[tuple[DecodingRow, Part]] = []
        longest = 0
        for place in waiting:
            row = self._rows[place]
            wanted = min(len(row.prompt) - row.cached, self._limits.prefill_tokens)
            if chunk and (len(chunk) + 1) * max(longest, wanted) > self._limits.prefill_tokens:
                break
            ids = row.prompt[row.cached : row.cached + wanted]
            chunk.append((row, Part(place, row.cached, ids)))
            longest = max(longest, wanted)
        return chunk

    def _score_next(self, writing: Sequence[int], *, whole: bool) -> Scored:
        """Scores of the next token for every row at the given places."""
        # Views of the first slots spare a copy of all keys and values, so rows that still read take
        # part with their next prompt token: it is written where reading will overwrite it.
        places = range(writing[-1] + 1) if whole else writing
        rows = [self._rows[place] for place in places]
        tokens = [row.choices[-1].token if row.choices else row.prompt[row.cached] for row in rows]
        parts = [
            Part(place, row.cached, [token])
            for place, row, token in zip(places, rows, tokens, strict=True)
        ]
        hidden = self._read(rows, parts)  # (B, D)
        lines = [line for line, row in enumerate(rows) if not row.is_prefilling]
        own = hidden if len(lines) == len(rows) else hidden[lines]
        return self._score(own, [rows[line] for line in lines])

    def _score(self, hidden: Tensor, rows: Sequence[DecodingRow]) -> Scored:
        """What a token of each of B rows is chosen by, from (B, D) hidden states."""
        return Scored.of(self._forward.logits(hidden), rows)  # (B, V)

    def _read(self, rows: Sequence[DecodingRow], parts: Sequence[Part]) -> Tensor:
        """(B, D) hidden state of the last token of each part, under the deltas of the rows."""
        self._slots.reserve(slots=len(self._rows), tokens=max(part.end for part in parts))
        with self._in_force([row.owner for row in rows]) as stages:
            return self._forward.hidden(parts, stages)

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
            self._forward.release()
            return
        for freed in range(len(self._rows), len(self._rows) + len(ended)):
            self._slots.clear(freed)

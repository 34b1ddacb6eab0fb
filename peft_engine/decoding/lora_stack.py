"""LoRA of many deltas on one row each or on a few: two batched products for all of them.

The low-rank matrices of the deltas at one fused site stand in one tensor, a delta a slot, and rows
are sorted by slot for the two products. A delta that stays in the batch keeps its slot, so that a
row that joins or leaves costs the copy of one delta and not of all.

Measured on one core, 32 rows, r = 8, cost relative to the fused product of the base itself (576 to
3072; 576 to 576): 8 deltas 0.06 and 0.18 against 0.25 and 0.31 for one product over the ranks of
all deltas with the columns of others blanked; 32 deltas 0.12 and 0.14 against 1.21 and 0.98.

Beside a base in bf16 on a CPU they stay fp32, as deltas are stored: batched products of bf16 spend
more on each small matrix than they save (32 rows of 32 deltas, one layer: 516 microseconds in bf16,
254 in fp32).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_engine.decoding.llama import Fused
from peft_engine.methods.lora import plain_factors
from peft_engine.parts.segments import Segment

# Legend of axes: B rows, S deltas, M most rows of a delta, I input width, O output width, R largest
# sum of ranks of a delta over the linears of the site.


@dataclass(frozen=True)
class Acting:
    """The LoRA of one delta at a fused site.

    Attributes:
        parts: Number of each linear that it acts on, and its tensors there.
        rows: Its rows.
    """

    parts: tuple[tuple[int, Segment], ...]
    rows: tuple[int, ...]

    @property
    def key(self) -> tuple[tuple[int, int], ...]:
        """What tells deltas apart: their tensors, each the same object as long as it lives."""
        return tuple((part, id(segment.params)) for part, segment in self.parts)

    @property
    def rank(self) -> int:
        """Sum of its ranks."""
        return sum(len(segment.params["A"]) for _, segment in self.parts)


class LoraStack:
    """Matrices of the deltas that act at one fused site.

    Args:
        fused: The site.
        like: A tensor of the type and on the device of the base.
    """

    def __init__(self, fused: Fused, like: Tensor) -> None:
        self._fused = fused
        self._dtype = torch.float32 if like.device.type == "cpu" else like.dtype
        self._held: list[Acting] = []  # place = slot; keeps the tensors behind the keys alive
        self._down: Tensor | None = None  # (S, R, I)
        self._up: Tensor | None = None  # (S, R, O)

    def arrange(self, wanted: Sequence[Acting]) -> list[Acting]:
        """Let the first slots hold just these deltas.

        Args:
            wanted: The deltas, each once.

        Returns:
            The same in the order of their slots.
        """
        self._reserve(wanted)
        held = {acting.key: slot for slot, acting in enumerate(self._held[: len(wanted)])}
        slots = [held.get(acting.key, -1) for acting in wanted]
        free = sorted(set(range(len(wanted))) - set(slots))
        # Nothing is held while slots are written: after a failure all are written again.
        self._held = []
        for number, slot in enumerate(slots):
            if slot < 0:
                slots[number] = free.pop(0)
                self._write(slots[number], wanted[number])
        by_slot = dict(zip(slots, wanted, strict=True))
        self._held = [by_slot[slot] for slot in range(len(wanted))]
        return list(self._held)

    def matrices(self, count: int) -> tuple[Tensor, Tensor]:
        """What the first slots hold.

        Args:
            count: S.

        Returns:
            (S, I, R) and (S, R, O).

        Raises:
            AssertionError: Nothing was arranged: a fault of the calling code.
        """
        if self._down is None or self._up is None:
            raise AssertionError("no delta was arranged")
        return self._down[:count].transpose(1, 2), self._up[:count]

    def _reserve(self, wanted: Sequence[Acting]) -> None:
        slots, rank = len(wanted), max(acting.rank for acting in wanted)
        have = (0, 0) if self._down is None else (self._down.shape[0], self._down.shape[1])
        if slots <= have[0] and rank <= have[1]:
            return
        # By doubling, so that a batch that fills up row by row is not copied at every row.
        slots = max(have[0], 1 << (slots - 1).bit_length())
        rank = max(have[1], rank)
        weight = wanted[0].parts[0][1].params["A"]
        outputs = self._fused.bounds[-1][1]
        self._held = []
        self._down = weight.new_zeros(slots, rank, weight.shape[1], dtype=self._dtype)
        self._up = weight.new_zeros(slots, rank, outputs, dtype=self._dtype)

    def _write(self, slot: int, acting: Acting) -> None:
        down, up = self.matrices(slot + 1)
        down, up = down[slot].T.zero_(), up[slot].zero_()  # (R, I), (R, O)
        row = 0
        for part, segment in acting.parts:
            a, b = plain_factors(segment)  # (r, I), (O of this linear, r)
            lo, hi = self._fused.bounds[part]
            down[row : row + len(a)] = a
            up[row : row + len(a), lo:hi] = b.T
            row += len(a)


class LoraGroups:
    """Which rows of a batch go through which slot.

    Args:
        stack: The matrices.
        actings: The deltas of the batch at this site, as ``arrange`` gives them.
        rows: B.
        order: The row at each place of the forward; None: place ``i`` has row ``i``.
        indices: Those that were made for other sites of the batch, which mostly need the same: each
            one costs a device a copy that it waits for. Added to.
    """

    def __init__(
        self,
        stack: LoraStack,
        actings: Sequence[Acting],
        *,
        rows: int,
        order: Sequence[int] | None,
        indices: dict[tuple[int, ...], Tensor],
    ) -> None:
        # Views: the stack stays as it is until the batch changes, and then this is made anew.
        self._down, self._up = stack.matrices(len(actings))
        place_of = range(rows) if order is None else sorted(range(rows), key=order.__getitem__)
        places = [[place_of[row] for row in acting.rows] for acting in actings]
        self._count, self._most = len(actings), max(map(len, places))
        # A delta with fewer rows than another computes its first one again; nobody reads that.
        taken = [p for own in places for p in (*own, *own[:1] * (self._most - len(own)))]
        used = [s * self._most + i for s, own in enumerate(places) for i in range(len(own))]
        targets = [place for own in places for place in own]
        self._first = len(targets) if targets == list(range(len(targets))) else None
        self._is_even = len(used) == len(taken)

        def index(numbers: list[int]) -> Tensor:
            key = tuple(numbers)
            if key not in indices:
                indices[key] = torch.tensor(numbers, device=self._down.device)
            return indices[key]

        self._taken = index(taken)  # (S · M,)
        self._used, self._targets = index(used), index(targets)  # (rows with a delta,)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add each row's own update.

        Args:
            x: (B, I) input of the site.
            y: (B, O) its output; changed in place.
        """
        x = x.to(self._down.dtype)
        if self._first is not None and self._is_even:
            low = torch.bmm(x[: self._first].view(self._count, self._most, -1), self._down)
            changed = y[: self._first].view(self._count, self._most, -1)
            if changed.dtype == low.dtype:
                changed.baddbmm_(low, self._up)
            else:
                changed.add_(torch.bmm(low, self._up))
            return
        own = x.index_select(0, self._taken).view(self._count, self._most, -1)
        found = torch.bmm(torch.bmm(own, self._down), self._up).to(y.dtype)  # (S, M, O)
        found = found.view(self._count * self._most, -1)
        if not self._is_even:
            found = found.index_select(0, self._used)
        if self._first is not None:
            y[: self._first].add_(found)
        else:
            y.index_add_(0, self._targets, found)

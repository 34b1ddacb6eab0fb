"""How the tokens of a forward stand one after the other on the fast path."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from peft_engine.decoding.forward import Part, in_order

# Legend of axes: B rows, T tokens of the longest row, N tokens, R real tokens, K tokens that are
# looked at, H heads, G heads of keys and values.


@dataclass(frozen=True)
class Layout:
    """Tokens of all rows: packed, or each row padded to the longest.

    Attributes:
        parts: B rows.
        width: T when rows are padded (or all equally long), 0 when they are packed.
        device: Where the tensors are made.
        order: Rows of one token each: the part that stands at each place, where that is another
            order than that of the parts.
    """

    parts: tuple[Part, ...]
    width: int
    device: torch.device
    order: tuple[int, ...] | None = None

    @classmethod
    def of(
        cls,
        parts: Sequence[Part],
        *,
        packed: bool,
        device: torch.device,
        order: tuple[int, ...] | None = None,
    ) -> "Layout":
        """Lay rows out.

        Args:
            parts: The rows.
            packed: Whether they stand without padding.
            device: Where the tensors are made.
            order: The part at each place, of rows of one token; None: as they are given.

        Returns:
            The layout.
        """
        longest = max(len(part.ids) for part in parts)
        equal = all(len(part.ids) == longest for part in parts)
        return cls(tuple(parts), longest if equal or not packed else 0, device, order)

    @property
    def is_one_token(self) -> bool:
        """Whether every row has one token, as when all write."""
        return self.width == 1

    @property
    def ends(self) -> list[int]:
        """Number of the token after the real ones of each row, with 0 before them; packed."""
        found = [0]
        for part in self.parts:
            found.append(found[-1] + len(part.ids))
        return found

    @cached_property
    def spans(self) -> list[tuple[int, int]]:
        """First real token of each row, and the one after its last."""
        if not self.width:
            ends = self.ends
            return list(itertools.pairwise(ends))
        firsts = [row * self.width for row in range(len(self.parts))]
        return [(lo, lo + len(part.ids)) for lo, part in zip(firsts, self.parts, strict=True)]

    @cached_property
    def longest_end(self) -> int:
        """K of the longest row."""
        return max(part.end for part in self.parts)

    @cached_property
    def ids(self) -> Tensor:
        """(N,) token ids; padding repeats the row's last."""
        return self._tensor([list(part.ids) for part in self._placed])

    @cached_property
    def positions(self) -> Tensor:
        """(N,) positions."""
        return self._tensor([list(range(part.start, part.end)) for part in self._placed])

    @cached_property
    def slots(self) -> Tensor:
        """(R,) slot of each real token."""
        found = [part.slot for part in self._placed for _ in part.ids]
        return torch.tensor(found, device=self.device)

    @cached_property
    def real(self) -> Tensor | None:
        """(R,) numbers of the tokens that are no padding; None when all are real."""
        if not self.width or all(len(part.ids) == self.width for part in self.parts):
            return None
        found = [token for lo, hi in self.spans for token in range(lo, hi)]
        return torch.tensor(found, device=self.device)

    @cached_property
    def last(self) -> Tensor | None:
        """(B,) number of each row's last token; None when each has one token."""
        if self.is_one_token:
            return None
        return torch.tensor([hi - 1 for _, hi in self.spans], device=self.device)

    @cached_property
    def rows(self) -> Tensor | int:
        """What ``KeyValueSlots.read`` takes."""
        if in_order(self.parts):
            return len(self.parts)
        return torch.tensor([part.slot for part in self.parts], device=self.device)

    @cached_property
    def there(self) -> Tensor | None:
        """(B,) the part at each place; None when they stand as they were given."""
        return None if self.order is None else torch.tensor(self.order, device=self.device)

    @cached_property
    def back(self) -> Tensor | None:
        """(B,) the place of each part; None when they stand as they were given."""
        if self.order is None:
            return None
        places = sorted(range(len(self.order)), key=self.order.__getitem__)
        return torch.tensor(places, device=self.device)

    @property
    def _placed(self) -> Sequence[Part]:
        """The parts in the order of their places."""
        return self.parts if self.order is None else [self.parts[part] for part in self.order]

    def mask(self, dtype: torch.dtype, *, groups: int, queries: int, tokens: int) -> Tensor:
        """Where rows of one token may look, heads that share keys side by side.

        Args:
            dtype: Type of the scores.
            groups: G.
            queries: H / G.
            tokens: K, at least those of the longest row.

        Returns:
            (B · G, H / G, K), 0 where they may, the lowest number where not; in the order of the
            parts, as keys stand.
        """
        starts = torch.tensor([part.start for part in self.parts], device=self.device)  # (B,)
        places = torch.arange(tokens, device=self.device)  # (K,)
        hidden = places > starts.unsqueeze(1)  # (B, K)
        blank = torch.zeros(hidden.shape, dtype=dtype, device=self.device)
        rows = blank.masked_fill_(hidden, torch.finfo(dtype).min).view(len(self.parts), 1, 1, -1)
        return rows.expand(-1, groups, queries, -1).reshape(-1, queries, tokens)

    def _tensor(self, rows: list[list[int]]) -> Tensor:
        if self.width:
            rows = [row + row[-1:] * (self.width - len(row)) for row in rows]
        return torch.tensor([value for row in rows for value in row], device=self.device)

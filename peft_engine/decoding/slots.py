"""Keys and values of the rows that are being written, in slots that rows take and leave.

Place ``i`` of a decoding batch is slot ``i``: the active rows always stand in the first slots, so
that attention reads plain slices and nothing is gathered. A row that leaves is replaced by the last
one, which costs one copy of that row.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

# Legend of axes: L layers, S slots, C tokens of capacity, H heads of keys and values, W width of a
# head, B rows of a forward, T tokens of a forward, K tokens that attention looks at.

_SMALLEST_CAPACITY_TOKENS = 64


class KeyValueSlots:
    """Keys and values of every layer and slot; grows by doubling, keeps nothing when empty.

    Not made before the first row arrives: heads and widths are those of the first keys it sees.
    """

    def __init__(self) -> None:
        self._keys: list[Tensor] = []  # L of (S, H, C, W)
        self._values: list[Tensor] = []
        self._slots = 0
        self._capacity = 0

    @property
    def bytes(self) -> int:
        """Memory that is held now, in bytes."""
        return sum(tensor.nbytes for tensor in (*self._keys, *self._values))

    def reserve(self, *, slots: int, tokens: int) -> None:
        """Make room; what is there stays.

        Args:
            slots: Slots that will be in use.
            tokens: Tokens of the longest of them.
        """
        slots = max(self._slots, _next_power(slots))
        capacity = max(self._capacity, _next_power(max(tokens, _SMALLEST_CAPACITY_TOKENS)))
        if (slots, capacity) == (self._slots, self._capacity):
            return
        self._slots, self._capacity = slots, capacity
        self._keys = [self._grown(tensor) for tensor in self._keys]
        self._values = [self._grown(tensor) for tensor in self._values]

    def tokens_to_read(self, tokens: int, *, like: Tensor) -> int:
        """How many tokens of each slot attention had best look at.

        Batched products of bf16 on a CPU copy what is not contiguous: 289 microseconds a layer for
        32 rows of 80 tokens in slots of 128, and 143 for all 128, those behind a row masked.

        Args:
            tokens: Tokens of the longest row.
            like: A tensor of the type and on the device of the keys.

        Returns:
            At least ``tokens``; the whole capacity where it is no more than twice as much.
        """
        copies = like.dtype == torch.bfloat16 and like.device.type == "cpu"
        return self._capacity if copies and self._capacity <= 2 * tokens else tokens

    def release(self) -> None:
        """Give all memory back; only when no slot is in use."""
        self._keys, self._values = [], []
        self._slots = self._capacity = 0

    def move(self, source: int, target: int) -> None:
        """Copy a row to another slot.

        Args:
            source: Slot of the row.
            target: Slot that it gets; what was there is lost.
        """
        if source >= self._slots:  # it has joined and not been read yet
            self.clear(target)
            return
        for tensor in (*self._keys, *self._values):
            tensor[target].copy_(tensor[source])

    def clear(self, slot: int) -> None:
        """Forget a row that has left.

        Attention gives the places behind a row's own tokens a share of 0, and 0 times what is no
        number is none: the next row in this slot would meet the numbers of one that overflowed.

        Args:
            slot: Its slot.
        """
        if slot < self._slots:
            for tensor in (*self._keys, *self._values):
                tensor[slot].zero_()

    def write(
        self, layer: int, keys: Tensor, values: Tensor, *, slots: Tensor, positions: Tensor
    ) -> None:
        """Write the tokens of one forward.

        Args:
            layer: Number of the layer.
            keys: (*P, H, W) for tokens in any arrangement P.
            values: The same.
            slots: The slot of each token; broadcasts to P.
            positions: P, the position of each token in its slot.
        """
        if layer == len(self._keys):
            shape = (self._slots, keys.shape[-2], self._capacity, keys.shape[-1])
            self._keys.append(keys.new_zeros(shape))
            self._values.append(values.new_zeros((*shape[:3], values.shape[-1])))
        # An index on both sides of a slice puts the indexed axes first: (*P, H, W)
        self._keys[layer][slots, :, positions] = keys
        self._values[layer][slots, :, positions] = values

    def of_slot(self, layer: int, slot: int, *, tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one row.

        Args:
            layer: Number of the layer.
            slot: Its slot.
            tokens: K: so many, counted from the first.

        Returns:
            (H, K, W) each; views.
        """
        return self._keys[layer][slot, :, :tokens], self._values[layer][slot, :, :tokens]

    def read(self, layer: int, *, slots: Tensor | int, tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values of some rows.

        Args:
            layer: Number of the layer.
            slots: (B,) slots of the rows, which are copied; or B, for the first B slots, of which
                views are given.
            tokens: K: so many, counted from the first.

        Returns:
            (B, H, K, W) each.
        """
        keys, values = self._keys[layer], self._values[layer]
        if isinstance(slots, int):
            return keys[:slots, :, :tokens], values[:slots, :, :tokens]
        return keys[slots, :, :tokens], values[slots, :, :tokens]

    def _grown(self, old: Tensor) -> Tensor:
        shape = (self._slots, old.shape[1], self._capacity, old.shape[3])
        new = old.new_zeros(shape)
        new[: old.shape[0], :, : old.shape[2]] = old
        return new


@dataclass
class SlotWindow:
    """What one forward reads and writes of the slots.

    Attributes:
        slots: The slots.
        rows: (B,) slot of each row; or B: the first B slots in order.
        positions: (B, T) position of each token in its slot.
        tokens: K: the longest row once the tokens are written.
    """

    slots: KeyValueSlots
    rows: Tensor | int
    positions: Tensor
    tokens: int
    _index: Tensor = field(init=False)

    def __post_init__(self) -> None:
        device = self.positions.device
        rows = self.rows
        self._index = torch.arange(rows, device=device) if isinstance(rows, int) else rows

    def mask(self, dtype: torch.dtype) -> Tensor:
        """Which tokens each token may look at: those of its own row up to itself.

        Args:
            dtype: Type of the scores.

        Returns:
            (B, 1, T, K), 0 where it may, the lowest number where not.
        """
        places = torch.arange(self.tokens, device=self.positions.device)  # (K,)
        hidden = places > self.positions.unsqueeze(-1)  # (B, T, K)
        lowest = torch.finfo(dtype).min
        blank = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
        return blank.masked_fill_(hidden, lowest).unsqueeze(1)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the tokens of this forward and read what they may look at.

        Args:
            layer: Number of the layer.
            keys: (B, H, T, W).
            values: The same.

        Returns:
            Keys and values (B, H, K, W).
        """
        # (B, H, T, W) to (B, T, H, W)
        keys, values = keys.transpose(1, 2), values.transpose(1, 2)
        rows = self._index.unsqueeze(1)  # (B, 1)
        self.slots.write(layer, keys, values, slots=rows, positions=self.positions)
        return self.slots.read(layer, slots=self.rows, tokens=self.tokens)


class SlotCache(Cache):
    """The face of a window that models of transformers know.

    Args:
        window: What this forward reads and writes.
    """

    def __init__(self, window: SlotWindow) -> None:
        super().__init__(layers=[])
        self._window = window

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, Tensor]:
        """Write and read one layer.

        Args:
            key_states: (B, H, T, W).
            value_states: The same.
            layer_idx: Number of the layer.

        Returns:
            Keys and values (B, H, K, W).
        """
        return self._window.update(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002  of transformers
        """Tokens before this forward; positions are always given, so nobody relies on it.

        Args:
            layer_idx: Not needed.

        Returns:
            The number for the longest row.
        """
        return self._window.tokens - self._window.positions.shape[1]


def _next_power(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()

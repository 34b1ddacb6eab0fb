"""One forward of a decoding batch: tokens of some rows in, the hidden state of each row's last out.

Two implementations stand behind one face: ``GeneralForward`` goes through the base's own modules
and knows every base; ``LlamaForward`` computes what llama-like bases compute with fewer and faster
products. Both read and write the same slots, so that a batch may go now through one, now through
the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.decoding.slots import KeyValueSlots, SlotCache, SlotWindow
from peft_engine.methods.protocol import Method
from peft_engine.parts.segments import Segments
from peft_engine.runtime import DTYPES

# Legend of axes: B rows of a forward, T tokens of the longest part, D width, V vocabulary.


class Stage(Protocol):
    """What one method does at one site in this batch; see ``peft_engine.plan``."""

    @property
    def method(self) -> Method:
        """The method."""

    @property
    def segments(self) -> Segments:
        """Rows of each delta."""


Stages = Mapping[str, Sequence[Stage]]
"""Stages of each site, in the fixed order of the methods; rows are those of the forward."""


@dataclass(frozen=True)
class Part:
    """The next tokens of one row.

    Attributes:
        slot: Its slot.
        start: Position of the first of them.
        ids: The tokens, at least one.
    """

    slot: int
    start: int
    ids: Sequence[int]

    @property
    def end(self) -> int:
        """Position after the last of them."""
        return self.start + len(self.ids)


class GeneralForward:
    """Through the base's own modules; deltas act in the hooks of its router.

    Args:
        base: A causal base.
        slots: Keys and values of its rows.
    """

    def __init__(self, base: Base, slots: KeyValueSlots) -> None:
        self._base = base
        self._slots = slots

    def hidden(self, parts: Sequence[Part], stages: Stages) -> Tensor:  # noqa: ARG002  hooks know
        """Read tokens, padded to the longest part: their keys and values are in the slots then.

        Args:
            parts: B rows, each once; where they are the first B slots in order, nothing is copied.
            stages: Not looked at: a plan with the same stages is in force on the router.

        Returns:
            (B, D) hidden state of the last token of each part.
        """
        device = self._base.device
        size = max(len(part.ids) for part in parts)
        ids = torch.full((len(parts), size), self._base.text.pad_id)  # (B, T)
        for row, part in enumerate(parts):
            ids[row, : len(part.ids)] = torch.tensor(part.ids)
        start = torch.tensor([part.start for part in parts])  # (B,)
        # Padding may reach beyond the context, where no position stands. The last position is free:
        # a prompt leaves room for a token. What is written behind the end of a shorter part is
        # overwritten before anything looks at it.
        last = self._base.max_length - 1
        positions = (start.unsqueeze(1) + torch.arange(size)).clamp(max=last)  # (B, T)
        tokens = int(positions.max()) + 1
        used = [part.slot for part in parts]
        self._slots.reserve(slots=max(used) + 1, tokens=tokens)
        places = len(used) if in_order(parts) else torch.tensor(used, device=device)
        window = SlotWindow(self._slots, places, positions.to(device), tokens)
        output = self._base.trunk(
            input_ids=ids.to(device),
            attention_mask=window.mask(DTYPES[self._base.precision]),
            position_ids=window.positions,
            past_key_values=SlotCache(window),
            use_cache=True,
        )
        ends = torch.tensor([len(part.ids) - 1 for part in parts], device=device)
        hidden: Tensor = output.last_hidden_state[torch.arange(len(parts), device=device), ends]
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token, by the base's own projection.

        Args:
            hidden: (N, D) hidden states.

        Returns:
            (N, V) fp32.
        """
        return self._base.vocabulary_logits(hidden)


def in_order(parts: Sequence[Part]) -> bool:
    """Whether rows are the first slots in their order.

    Args:
        parts: The rows.

    Returns:
        True when part ``i`` has slot ``i``.
    """
    return all(part.slot == place for place, part in enumerate(parts))

"""Joining: batches of several jobs as one forward, each with the very numbers that it has alone.

The places of all batches stand in one column, job after job, so that products, norms and
activations of the base run over all of them at once, without padding one job to another's length.
Whatever looks at more than one place (attention, and what methods add at a site) is given each
batch in the shape that it has alone. A sum over one row of a product does not depend on the other
rows where the machine's products are what ``peft_engine.training.joining`` proves them to be; so
every loss and gradient is that of the job alone, bit for bit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from peft_engine.parts.batching import Batch
from peft_engine.parts.packing import Packing

# Legend of axes: B rows and T tokens of one batch (1 row of N nodes where it is packed), P places
# of all batches.


@dataclass(frozen=True)
class Strip:
    """The places of one batch.

    Attributes:
        shape: (B, T): how the base is given the batch when it is alone; (1, N) where it is packed.
        mask: (B, T) int64, 1 for real tokens of a padded batch.
        packing: How a packed batch is laid out.
    """

    shape: tuple[int, int]
    mask: Tensor
    packing: Packing | None

    @property
    def places(self) -> int:
        """How many places it has."""
        return self.shape[0] * self.shape[1]

    def fold(self, values: Tensor) -> Tensor:
        """Values of its places in the shape that the batch has alone.

        Args:
            values: (places, 1, …).

        Returns:
            (B, T, …), or (1, N, …).
        """
        return values.reshape(*self.shape, *values.shape[2:])


@dataclass(frozen=True)
class Joint:
    """Several batches as one column of places.

    Attributes:
        strips: One for each batch, in order.
        input_ids: (P, 1) int64.
        positions: (P, 1) int64, the place of each token in its row.
        type_ids: (P, 1) int64 where any batch has them; zero is what others are taken for.
        masks: Attention mask of each strip, as the base makes it for the batch alone.
    """

    strips: tuple[Strip, ...]
    input_ids: Tensor
    positions: Tensor
    type_ids: Tensor | None
    masks: list[Tensor | None] = field(default_factory=list)

    @property
    def sizes(self) -> list[int]:
        """Places of each strip."""
        return [strip.places for strip in self.strips]

    @property
    def places(self) -> int:
        """P."""
        return self.input_ids.shape[0]

    def parts(self, values: Tensor) -> list[Tensor]:
        """Values of each batch in the shape that it has alone.

        Args:
            values: (P, 1, …).

        Returns:
            (B, T, …) of each strip.
        """
        own = torch.split(values, self.sizes)  # one node of the graph: its backward is one copy
        return [strip.fold(part) for strip, part in zip(self.strips, own, strict=True)]


def join(batches: Sequence[Batch]) -> Joint:
    """Put batches into one column.

    Args:
        batches: At least one; none with a decoder's tokens.

    Returns:
        The column, without masks.
    """
    strips, ids, positions, types = [], [], [], []
    for batch in batches:
        packing = batch.packing
        own = batch.input_ids if packing is None else packing.input_ids
        strips.append(Strip((own.shape[0], own.shape[1]), batch.mask, packing))
        ids.append(own.reshape(-1, 1))
        places = (
            torch.arange(own.shape[1], device=own.device).expand(own.shape)
            if packing is None
            else packing.positions
        )
        positions.append(places.reshape(-1, 1))
        types.append(batch.type_ids)
    known = [own for own in types if own is not None]
    return Joint(
        tuple(strips),
        torch.cat(ids),
        torch.cat(positions),
        _column(types, ids) if known else None,
    )


def _column(types: Sequence[Tensor | None], ids: Sequence[Tensor]) -> Tensor:
    """(P, 1) token types; a base takes a batch without any for zeros."""
    own = [
        torch.zeros_like(column) if given is None else given.reshape(-1, 1)
        for given, column in zip(types, ids, strict=True)
    ]
    return torch.cat(own)


def apart(joint: Joint, values: Tensor, change: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Change the values of each batch by itself.

    Args:
        joint: The batches.
        values: (P, 1, …).
        change: From the number of a strip and its (B, T, …) to new values, (B, T, …).

    Returns:
        (P, 1, …), a new tensor.
    """
    new = [change(place, part) for place, part in enumerate(joint.parts(values))]
    return torch.cat([part.reshape(-1, 1, *part.shape[2:]) for part in new])

"""How one function per delta is applied to the rows of a mixed batch.

Rows outside every segment keep their values bit by bit.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from peft_engine.parts.segments import Segment, Segments

# Legend of axes: B rows, W width of a feature vector.

_SHARED_COLUMNS_LIMIT = 256
_SHARED_TOKENS_LIMIT = 2
"""Tokens of a row up to which, on a CPU, one product over the ranks of all deltas beats a loop over
them. Measured on one core, 6 layers 384 wide, 32 rows, r = 8, cost of the whole forward relative to
the base: 16 deltas 1.70 against 2.16 at one token, 1.61 against 1.49 at four, 1.42 against 1.13 at
32; 4 deltas 1.23 against 1.36, 1.21 against 1.24, 1.20 against 1.17."""


def shares_product(segments: Segments, x: Tensor, *, columns: int) -> bool:
    """Whether narrow products of all deltas are worth being computed as one, for all rows.

    Args:
        segments: Rows of each delta.
        x: (B, …, W) what they read.
        columns: Sum of the ranks, or of the widths of bottlenecks.

    Returns:
        True for many deltas on few tokens, without gradients; elsewhere than on a CPU, where
        starting a product is what costs, on many tokens too.
    """
    if len(segments) <= 2 or torch.is_grad_enabled() or columns > _SHARED_COLUMNS_LIMIT:
        return False
    tokens = x[0, ..., 0].numel()
    return tokens <= _SHARED_TOKENS_LIMIT or x.device.type != "cpu"


def adds_in_place(segments: Segments, y: Tensor) -> bool:
    """Whether a method may let its last product add to the rows of ``y`` while it is written.

    In training it must not, even without gradients: sums in another order differ in the last bit
    from those of the forward that is computed again for the gradients.

    Args:
        segments: Rows of each delta.
        y: (B, …, W) what is added to.

    Returns:
        True for deltas that only answer, on values whose tokens stand one after the other.
    """
    return segments.frozen and not torch.is_grad_enabled() and y.is_contiguous()


_ROW_LOOP_SEGMENTS = 4
"""Stretches of rows up to which vectors meet them one after the other and other rows are not even
read. Measured on one core, 32 rows of 32 tokens, 1536 wide: five of the rows 0.03 ms, against 0.25
to 0.30 ms for a sum with a vector for each row; four stretches of all rows 0.16, with 32 rows of
one token 0.019 against 0.013, and from 8 stretches on starting the loops costs more."""


def meet_row_vectors(
    segments: Segments,
    values: Tensor,
    vector: Callable[[Segment], Tensor],
    meet: Callable[[Tensor, Tensor], Tensor],
) -> bool:
    """Let one vector of each delta meet its rows in place, where that is allowed and quicker.

    Args:
        segments: Rows of each delta.
        values: (B, …, W).
        vector: (w,) of a segment; a narrower one meets the last values.
        meet: Changes (rows, …, w) in place by (w,).

    Returns:
        Whether it was done.
    """
    if len(segments) > _ROW_LOOP_SEGMENTS or not adds_in_place(segments, values):
        return False
    for segment in segments:
        own = vector(segment).to(values.dtype)
        meet(values[segment.rows][..., values.shape[-1] - len(own) :], own)
    return True


def add_to_rows(segments: Segments, y: Tensor, update: Callable[[Segment], Tensor]) -> Tensor:
    """Add each segment's own update to its rows.

    Args:
        segments: Rows of each delta.
        y: (B, …, W).
        update: Gives (rows, …, W) for a segment.

    Returns:
        (B, …, W): ``y`` itself, changed in place, or a new tensor when gradients are wanted.
    """
    sole = segments.sole
    if torch.is_grad_enabled():
        if sole is not None:
            return y + update(sole)
        return replace_rows(segments, y, lambda segment, own: own + update(segment))
    for segment in segments:
        # Not `+=` on an index, which copies the sum once more to where it stands already.
        y[segment.rows].add_(update(segment))
    return y


def replace_rows(
    segments: Segments, y: Tensor, change: Callable[[Segment, Tensor], Tensor]
) -> Tensor:
    """Put each segment's own values in the place of its rows.

    Args:
        segments: Rows of each delta.
        y: (B, …, W); never changed in place.
        change: From a segment and its (rows, …, W) to its new (rows, …, W).

    Returns:
        (B, …, W), a new tensor.
    """
    sole = segments.sole
    if sole is not None:
        return change(sole, y)
    parts: list[Tensor] = []
    done = 0
    for segment in segments:
        parts.append(y[done : segment.lo])
        parts.append(change(segment, y[segment.rows]))
        done = segment.hi
    parts.append(y[done:])
    return torch.cat(parts)


def row_vectors(
    segments: Segments,
    name: str,
    like: Tensor,
    vector: Callable[[Segment], Tensor],
    *,
    fill: float,
) -> Tensor:
    """One vector for each row.

    Args:
        segments: Rows of each delta.
        name: Name of the vectors, so that they are made once for a plan.
        like: (B, …, any) the values that they will meet.
        vector: (W,) of a segment.
        fill: For rows of no segment: what changes nothing.

    Returns:
        (B, 1, …, W) in the type of ``like``.
    """

    def build(all_: Segments) -> Tensor:
        own = {segment.lo: (segment, vector(segment).to(like.dtype)) for segment in all_}
        width = next(iter(own.values()))[1].shape[0]
        neutral = torch.full((1, width), fill, dtype=like.dtype, device=like.device)
        parts: list[Tensor] = []
        done = 0
        for segment, values in own.values():
            parts.append(neutral.expand(segment.lo - done, width))
            parts.append(values.expand(segment.hi - segment.lo, width))
            done = segment.hi
        parts.append(neutral.expand(all_.rows - done, width))
        return torch.cat(parts)  # (B, W)

    if torch.is_grad_enabled():
        rows = build(segments)
    else:
        rows = segments.stack(f"{name}|{like.dtype}", build)
    return rows.view(rows.shape[0], *[1] * (like.dim() - 2), rows.shape[1])

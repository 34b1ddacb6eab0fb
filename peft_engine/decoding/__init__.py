"""Continuous batching: rows join and leave a running batch at every token."""

from peft_engine.bases.base import Base
from peft_engine.decoding.decoder import Decoder, DecodingLimits, InForce
from peft_engine.decoding.forward import Stages
from peft_engine.decoding.row import DecodingRow, TokenChoice
from peft_engine.decoding.two_stacks import TwoStackDecoder
from peft_engine.parts.stacks import TwoStacks


def make_decoder(
    base: Base, in_force: InForce, limits: DecodingLimits
) -> Decoder | TwoStackDecoder:
    """The decoding batch that fits a base.

    Args:
        base: A base that generates.
        in_force: Puts deltas in force.
        limits: Bounds of the batch.

    Returns:
        The batch, empty.
    """
    if isinstance(base.trunk, TwoStacks):
        return TwoStackDecoder(base, base.trunk, in_force, limits)
    return Decoder(base, in_force, limits)


__all__ = [
    "Decoder",
    "DecodingLimits",
    "DecodingRow",
    "Stages",
    "TokenChoice",
    "TwoStackDecoder",
    "make_decoder",
]

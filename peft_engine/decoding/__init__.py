"""Continuous batching: rows join and leave a running batch at every token."""

from peft_engine.decoding.decoder import Decoder, DecodingLimits
from peft_engine.decoding.row import DecodingRow

__all__ = ["Decoder", "DecodingLimits", "DecodingRow"]

"""Rows of our side as ``transformers`` takes them: the very same tokens and labels."""

from typing import Any

from peft_engine.bases.text import TextEncoder
from peft_engine.parts.batching import Example

IGNORED = -100
"""Label that cross entropy leaves out."""


def encoder_of(tokenizer: Any) -> TextEncoder:
    """How our side encodes text, without the weights of a base."""
    return TextEncoder(tokenizer, vocabulary=len(tokenizer))


def features_of(example: Example) -> dict[str, Any]:
    """An example as Trainer's collators take it; what is not learned is ``IGNORED``."""
    row = example.rows[0]
    found: dict[str, Any] = {"input_ids": list(row.input_ids)}
    found["attention_mask"] = [1] * len(row.input_ids)
    if row.type_ids is not None:
        found["token_type_ids"] = list(row.type_ids)
    if isinstance(example.target, list):
        pairs = zip(row.input_ids, example.target, strict=True)
        found["labels"] = [token if learned else IGNORED for token, learned in pairs]
    else:
        found["labels"] = example.target
    return found

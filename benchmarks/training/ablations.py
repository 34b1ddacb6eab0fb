"""What each technique brings: one function a technique that switches it off in this process.

Each returns settings of the job, and may put the plain form in the place of a part of the engine.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from peft_engine.parts.packing import pack
from peft_engine.tasks.protocol import LossSum

Settings = dict[str, object]


def _replace(target: str, value: Any) -> None:
    mock.patch(target, value).start()  # for the life of the process


def without_packing() -> Settings:
    """Rows are padded to the longest of their batch."""
    return {"packing": False}


def without_shared_beginnings() -> Settings:
    """Packed rows leave out padding alone: every row computes all of its own tokens."""
    _replace(
        "peft_engine.training.batches.pack",
        lambda rows, *, share, device: pack(rows, share=False, device=device),  # noqa: ARG005
    )
    return {"packing": True}


def without_length_buckets() -> Settings:
    """Rows of a step are drawn at random instead of being of similar length."""
    _replace("peft_engine.parts.batching._BUCKET_BATCHES", 1)
    return {}


def without_length_buckets_and_packing() -> Settings:
    """Rows drawn at random and padded, as in the peer."""
    return without_length_buckets() | without_packing()


def without_selected_logits() -> Settings:
    """The vocabulary projection is computed at every position, as in the peer."""

    def loss(_: Any, base: Any, __: Any, hidden: Tensor, batch: Any, **___: Any) -> LossSum:
        labels = torch.full_like(batch.input_ids, -100)  # (B, T)
        for row, learned in enumerate(batch.targets):
            marks = torch.tensor(learned)
            labels[row, : len(learned)][marks] = batch.input_ids[row, : len(learned)][marks]
        logits = base.vocabulary_logits(hidden[:, :-1].flatten(0, 1))
        labels = labels[:, 1:].flatten()
        count = int((labels != -100).sum())
        return LossSum(cross_entropy(logits, labels, reduction="sum"), count)

    _replace("peft_engine.tasks.text_generation.TextGeneration.loss", loss)
    return {}


ABLATIONS: dict[str, Callable[[], Settings]] = {
    "packing": without_packing,
    "shared-beginnings": without_shared_beginnings,
    "length-buckets": without_length_buckets,
    "length-buckets-and-packing": without_length_buckets_and_packing,
    "selected-logits": without_selected_logits,
}

OF_ENCODERS = frozenset({"length-buckets"})
"""The others are techniques of bases that write."""

"""Text generation by ``transformers``: the very tokens and labels of our side, a causal model.

Loss is ours in definition (nats per learned token over the whole split), texts are the model's own
greedy ``generate``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.peer_rows import IGNORED, encoder_of, features_of
from benchmarks.quality.peer_tasks import Features, PeerTask
from peft_engine.bases.text import TextEncoder
from peft_engine.parts.texts import evaluate_texts
from peft_engine.tasks.text_generation import (
    MAX_EVALUATION_TOKENS,
    TextGeneration,
    answered_rows,
    record_messages,
    references_of,
)

_ROWS = 32
"""Prompts that are answered at once."""


@dataclass(frozen=True)
class _Tokens:
    """The part of our base that encoding needs, without its weights."""

    text: TextEncoder
    name: str = "peer"


class PeerText(PeerTask):
    """Labels on completions alone, the vocabulary at every position."""

    auto = "AutoModelForCausalLM"
    peft_type = "CAUSAL_LM"
    max_length = TextGeneration.max_length_tokens
    chooses_by = "loss"
    in_bf16 = torch.cuda.is_available()

    def find_labels(self, records: Sequence[Mapping[str, Any]]) -> list[str]:  # noqa: ARG002
        """None."""
        return []

    def model(self, directory: Path) -> Any:
        """The base as it is."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)

    def encode(self, records: Sequence[Mapping[str, Any]]) -> Features:
        """Tokens as our side has them; what is not learned has no label."""
        examples = TextGeneration().encode(
            self._base,  # type: ignore[arg-type]  # only its tokenizer is asked for
            records,
            labels=None,
            max_length=self.max_length,
        )
        return [features_of(example) for example in examples]

    def collate(self, features: Features) -> dict[str, torch.Tensor]:
        """A padded batch with padded labels."""
        from transformers import DataCollatorForSeq2Seq

        return dict(DataCollatorForSeq2Seq(self.tokenizer)(features))

    @staticmethod
    def reduce_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, 2): each row's loss in nats and its learned tokens; logits would fill the memory.

        Args:
            logits: (B, T, V).
            labels: (B, T).

        Returns:
            The sums.
        """
        own = labels[:, 1:]  # the token at t + 1 is predicted at t
        losses = cross_entropy(
            logits[:, :-1].float().transpose(1, 2), own, ignore_index=IGNORED, reduction="none"
        )
        return torch.stack([losses.sum(1), (own != IGNORED).sum(1).float()], 1)

    def score(self, split: str, predictions: Any) -> dict[str, float]:  # noqa: ARG002
        """Nats per learned token."""
        total, tokens = predictions.sum(0)
        return {"loss": float(total / tokens)}

    @torch.inference_mode()
    def score_texts(self, model: Any, count: int) -> dict[str, float]:
        """BLEU and its kin of the same rows that our side answers."""
        rows = answered_rows(self.records["test"], count) if count else []
        if not rows:
            return {}
        prompts = [
            TextGeneration().encode_input(
                self._base,  # type: ignore[arg-type]
                {"messages": record_messages(row)[:-1]},
                max_length=self.max_length,
            )
            for row in rows
        ]
        model.eval()
        texts: list[str] = []
        for start in range(0, len(prompts), _ROWS):
            texts += self._answer(model, prompts[start : start + _ROWS])
        return dict(evaluate_texts(texts, [references_of(row) for row in rows]).metrics)

    def _answer(self, model: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
        batch = self.tokenizer.pad(
            {"input_ids": list(prompts)}, padding_side="left", return_tensors="pt"
        ).to(model.device)  # (B, T)
        found = model.generate(
            **batch,
            max_new_tokens=MAX_EVALUATION_TOKENS,
            do_sample=False,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        written = found[:, batch["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]

    @cached_property
    def _base(self) -> _Tokens:
        return _Tokens(encoder_of(self.tokenizer))

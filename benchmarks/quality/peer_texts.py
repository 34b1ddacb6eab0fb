"""Text generation by ``transformers``: the very tokens and labels of our side, a causal model.

Loss is ours in definition (nats per learned token over the whole split), texts are the model's own
greedy ``generate``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.quality.peer_tasks import IGNORED, Features, PeerTask
from peft_engine.bases.text import TextEncoder
from peft_engine.parts.texts import evaluate_texts
from peft_engine.tasks.text_generation import MAX_EVALUATION_TOKENS, TextGeneration

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
            self._base,  # type: ignore[arg-type]  only its tokenizer is asked for
            records,  # type: ignore[arg-type]
            labels=None,
            max_length=self.max_length,
        )
        made = []
        for example in examples:
            ids = list(example.rows[0].input_ids)
            learned = zip(ids, example.target, strict=True)
            labels = [token if own else IGNORED for token, own in learned]
            made.append({"input_ids": ids, "labels": labels})
        return made

    def collate(self, features: Features) -> dict[str, torch.Tensor]:
        """A batch padded on the right."""
        longest = max(len(feature["labels"]) for feature in features)
        pad = self.tokenizer.pad_token_id or 0

        def fill(name: str, value: int) -> torch.Tensor:
            own = [f[name] + [value] * (longest - len(f[name])) for f in features]
            return torch.tensor(own)  # (B, T)

        mask = [[1] * len(f["labels"]) + [0] * (longest - len(f["labels"])) for f in features]
        return {
            "input_ids": fill("input_ids", pad),
            "labels": fill("labels", IGNORED),
            "attention_mask": torch.tensor(mask),
        }

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
        rows = [r for r in self.records["test"] if "completion" in r or r.get("messages")]
        rows = rows[:: max(1, len(rows) // count)][:count] if count else []
        if not rows:
            return {}
        messages = [_messages(row) for row in rows]
        prompts = [
            TextGeneration().encode_input(
                self._base,  # type: ignore[arg-type]
                {"messages": own[:-1]},
                max_length=self.max_length,
            )
            for own in messages
        ]
        references = [
            row.get("references") or [own[-1]["content"]]
            for row, own in zip(rows, messages, strict=True)
        ]
        model.eval()
        texts: list[str] = []
        for start in range(0, len(prompts), _ROWS):
            texts += self._answer(model, prompts[start : start + _ROWS])
        return dict(evaluate_texts(texts, references).metrics)

    def _answer(self, model: Any, prompts: Sequence[Sequence[int]]) -> list[str]:
        longest = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])  # (B, T)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        found = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=MAX_EVALUATION_TOKENS,
            do_sample=False,
            pad_token_id=pad,
        )
        texts = self.tokenizer.batch_decode(found[:, longest:], skip_special_tokens=True)
        return [text.strip() for text in texts]

    @property
    def _base(self) -> _Tokens:
        return _Tokens(TextEncoder(self.tokenizer))


def _messages(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "messages" in record:
        return list(record["messages"])
    return [
        {"role": "user", "content": str(record["prompt"])},
        {"role": "assistant", "content": str(record["completion"])},
    ]

"""How ``transformers`` has each task: its model class, its features, and our metrics of its scores.

Each is the standard form of the library's own examples: one row for a text or a pair, labels at the
first token of a word, start and end of an answer, one row a choice.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from benchmarks.peer_rows import IGNORED
from benchmarks.quality.rows import Records
from peft_engine.parts.classes import evaluate_logits
from peft_engine.parts.entities import evaluate_tags
from peft_engine.parts.words import join_tokens
from peft_engine.tasks.multiple_choice import evaluate_choices
from peft_engine.tasks.question_answering import evaluate_answers
from peft_engine.tasks.regression import evaluate_values
from peft_engine.tasks.relation_extraction import mark_spans

Features = list[dict[str, Any]]


class PeerTask:
    """Features of the three splits, and the score of predictions.

    Args:
        tokenizer: Of the base.
        splits: Canonical records.
    """

    auto = "AutoModelForSequenceClassification"
    peft_type: str | None = "SEQ_CLS"
    label_names: tuple[str, ...] = ("labels",)
    max_length = 256
    chooses_by: str | None = None
    """Metric of validation that decides which pass is kept; None: the one that is compared."""
    reduce_logits: Callable[[Any, Any], Any] | None = None
    """From a batch's logits and labels to what is kept of them; None: the logits."""
    in_bf16 = False
    """Whether products are in bf16 under autocast, as large models are trained."""

    def __init__(self, tokenizer: Any, splits: Records) -> None:
        self.tokenizer = tokenizer
        self.records = splits
        self.labels = self.find_labels(splits["train"])
        self.features = {name: self.encode(own) for name, own in splits.items()}

    def find_labels(self, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """Class names of the training records."""
        return sorted({str(record["label"]) for record in records})

    def model(self, directory: Path) -> Any:
        """The base with a random head."""
        import transformers

        return getattr(transformers, self.auto).from_pretrained(
            directory, num_labels=max(1, len(self.labels)), **self.settings()
        )

    def settings(self) -> dict[str, Any]:
        """Further settings of the model."""
        return {}

    def encode(self, records: Sequence[Mapping[str, Any]]) -> Features:
        """Texts or pairs with the number of their class."""
        numbers = {label: place for place, label in enumerate(self.labels)}
        return [
            {**self.tokens(r["text"], r.get("text_pair")), "labels": numbers[str(r["label"])]}
            for r in records
        ]

    def tokens(self, first: str, second: str | None = None, **more: Any) -> dict[str, Any]:
        """Token ids of a text or a pair, cut to the longest row."""
        found = self.tokenizer(first, second, truncation=True, max_length=self.max_length, **more)
        return dict(found)

    def collate(self, features: Features) -> dict[str, torch.Tensor]:
        """A padded batch."""
        labels = [feature["labels"] for feature in features]
        inputs = [{k: v for k, v in f.items() if k in _INPUTS} for f in features]
        batch = dict(self.tokenizer.pad(inputs, return_tensors="pt"))
        return batch | {"labels": torch.tensor(labels)}

    def score(self, split: str, predictions: Any) -> dict[str, float]:
        """Our metrics of the model's scores."""
        targets = np.array([feature["labels"] for feature in self.features[split]])
        return dict(
            evaluate_logits(torch.as_tensor(predictions), targets, labels=self.labels).metrics
        )

    def score_texts(self, model: Any, count: int) -> dict[str, float]:  # noqa: ARG002
        """Metrics of texts, of tasks that write some.

        Args:
            model: The trained model.
            count: Test rows that are answered in full.

        Returns:
            Nothing here.
        """
        return {}


class PeerRelation(PeerTask):
    """Marks around both spans, as plain text."""

    def encode(self, records: Sequence[Mapping[str, Any]]) -> Features:
        """Marked texts."""
        marked = [
            {**r, "text": mark_spans(r["text"], _span(r["head"]), _span(r["tail"]))[0]}
            for r in records
        ]
        return super().encode(marked)


class PeerRegression(PeerTask):
    """One output, squared error on the values themselves."""

    def find_labels(self, records: Sequence[Mapping[str, Any]]) -> list[str]:  # noqa: ARG002
        """None."""
        return []

    def settings(self) -> dict[str, Any]:
        """Squared error."""
        return {"problem_type": "regression"}

    def encode(self, records: Sequence[Mapping[str, Any]]) -> Features:
        """Texts or pairs with their value."""
        return [
            {**self.tokens(r["text"], r.get("text_pair")), "labels": float(r["value"])}
            for r in records
        ]

    def score(self, split: str, predictions: Any) -> dict[str, float]:
        """Correlations and errors."""
        wanted = np.array([feature["labels"] for feature in self.features[split]])
        found = np.asarray(predictions, dtype=np.float64).reshape(-1)
        return dict(evaluate_values(found, wanted, spread=1.0).metrics)


class PeerTags(PeerTask):
    """A tag at the first token of each word."""

    auto = "AutoModelForTokenClassification"
    peft_type = "TOKEN_CLS"

    def find_labels(self, records: Sequence[Mapping[str, Any]]) -> list[str]:
        """Tags of the training records."""
        return sorted({tag for record in records for tag in record["tags"]})

    def encode(self, records: Sequence[Mapping[str, Any]]) -> Features:
        """Words with their tags."""
        numbers = {label: place for place, label in enumerate(self.labels)}
        made = []
        for record in records:
            _, spans = join_tokens(record["tokens"])
            found = self.tokenizer(
                record["tokens"],
                is_split_into_words=True,
                truncation=True,
                max_length=self.max_length,
            )
            words, seen = found.word_ids(), set[int]()
            labels = [IGNORED] * len(words)
            for place, word in enumerate(words):
                if word is not None and word not in seen:
                    seen.add(word)
                    labels[place] = numbers.get(record["tags"][word], numbers["O"])
            made.append({**found, "labels": labels, "words": words, "count": len(spans)})
        return made

    def collate(self, features: Features) -> dict[str, torch.Tensor]:
        """A padded batch with padded labels."""
        longest = max(len(feature["labels"]) for feature in features)
        padded = [
            {**f, "labels": f["labels"] + [IGNORED] * (longest - len(f["labels"]))}
            for f in features
        ]
        return super().collate(padded)

    def score(self, split: str, predictions: Any) -> dict[str, float]:
        """Entity by entity."""
        given = []
        for feature, scores in zip(self.features[split], predictions, strict=True):
            tags = ["O"] * feature["count"]
            for place, word in enumerate(feature["words"]):
                if word is not None and feature["labels"][place] != IGNORED:
                    tags[word] = self.labels[int(scores[place].argmax())]
            given.append(tags)
        wanted = [record["tags"] for record in self.records[split]]
        return dict(evaluate_tags(given, wanted, [()] * len(wanted)).metrics)


class PeerAnswers(PeerTask):
    """Start and end of the first answer; contexts of these sets fit in one row."""

    auto = "AutoModelForQuestionAnswering"
    peft_type = "QUESTION_ANS"
    label_names = ("start_positions", "end_positions")
    max_length = 384

    def find_labels(self, records: Sequence[Mapping[str, Any]]) -> list[str]:  # noqa: ARG002
        """Start and end."""
        return ["start", "end"]

    def encode(self, records: Sequence[Mapping[str, Any]]) -> Features:
        """Question and context, with the tokens of the first answer."""
        made = []
        for record in records:
            found = self.tokenizer(
                record["question"],
                record["context"],
                truncation="only_second",
                max_length=self.max_length,
                return_offsets_mapping=True,
            )
            own = [place for place, side in enumerate(found.sequence_ids()) if side == 1]
            offsets = found.pop("offset_mapping")
            made.append(
                {
                    **found,
                    "labels": _answer_tokens(record["answers"], own, offsets),
                    "own": own,
                    "offsets": offsets,
                }
            )
        return made

    def collate(self, features: Features) -> dict[str, torch.Tensor]:
        """A padded batch with both positions."""
        batch = super().collate(features)
        start, end = batch.pop("labels").unbind(1)
        return batch | {"start_positions": start, "end_positions": end}

    def score(self, split: str, predictions: Any) -> dict[str, float]:
        """Exact match and F1 of the best span of at most 64 tokens."""
        starts, ends = predictions[:2]
        given = []
        for feature, record, start, end in zip(
            self.features[split], self.records[split], starts, ends, strict=True
        ):
            own = feature["own"]
            sums = start[own][:, None] + end[own][None, :]
            allowed = np.tril(np.triu(np.ones_like(sums)), 63) > 0
            first, last = np.unravel_index(np.where(allowed, sums, -np.inf).argmax(), sums.shape)
            span = feature["offsets"][own[first]][0], feature["offsets"][own[last]][1]
            given.append(record["context"][span[0] : span[1]].strip())
        return dict(evaluate_answers(given, self.records[split]).metrics)


class PeerChoice(PeerTask):
    """Question and choice in one row, one row a choice."""

    auto = "AutoModelForMultipleChoice"
    peft_type = None

    def find_labels(self, records: Sequence[Mapping[str, Any]]) -> list[str]:  # noqa: ARG002
        """None: choices are no classes."""
        return []

    def model(self, directory: Path) -> Any:
        """The base with one score."""
        from transformers import AutoModelForMultipleChoice

        return AutoModelForMultipleChoice.from_pretrained(directory)

    def encode(self, records: Sequence[Mapping[str, Any]]) -> Features:
        """Rows of each question."""
        return [
            {
                "rows": [self.tokens(r["question"], choice) for choice in r["choices"]],
                "labels": int(r["answer"]),
            }
            for r in records
        ]

    def collate(self, features: Features) -> dict[str, torch.Tensor]:
        """(N, S, T) with as many choices for each question; missing ones repeat the last."""
        most = max(len(feature["rows"]) for feature in features)
        rows = [f["rows"][min(i, len(f["rows"]) - 1)] for f in features for i in range(most)]
        batch = self.tokenizer.pad(rows, return_tensors="pt")
        shaped = {name: own.view(len(features), most, -1) for name, own in batch.items()}
        return shaped | {"labels": torch.tensor([feature["labels"] for feature in features])}

    def score(self, split: str, predictions: Any) -> dict[str, float]:
        """Accuracy."""
        own = self.features[split]
        scores = [
            torch.as_tensor(found[: len(feature["rows"])])
            for found, feature in zip(predictions, own, strict=True)
        ]
        return dict(evaluate_choices(scores, [feature["labels"] for feature in own]).metrics)


_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids"})

PEER_TASKS: Mapping[str, Callable[[Any, Records], PeerTask]] = MappingProxyType(
    {
        "text-classification": PeerTask,
        "relation-extraction": PeerRelation,
        "regression": PeerRegression,
        "token-classification": PeerTags,
        "question-answering": PeerAnswers,
        "multiple-choice": PeerChoice,
    }
)
"""By task; text generation has a module of its own."""


def _span(found: Mapping[str, Any]) -> tuple[int, int]:
    return int(found["start"]), int(found["end"])


def _answer_tokens(
    answers: Sequence[Mapping[str, Any]], own: Sequence[int], offsets: Sequence[Sequence[int]]
) -> list[int]:
    """First and last token of the first answer; the first token of the row where it was cut."""
    start = int(answers[0]["start"])
    end = start + len(str(answers[0]["text"]))
    inside = [p for p in own if offsets[p][1] > start and offsets[p][0] < end]
    return [inside[0], inside[-1]] if inside else [0, 0]

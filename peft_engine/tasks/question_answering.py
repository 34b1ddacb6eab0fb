"""Extractive question answering: which piece of a context answers a question, or that none does.

A linear head scores every token of a row as start and as end; the first token stands for "no answer
here". A context that does not fit is read in overlapping windows, each with the whole question;
the best span over all windows is the answer.

Source: Devlin et al. 2019, arXiv 1810.04805, sections 4.2 and 4.3.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from peft_engine.bases.base import Base
from peft_engine.bases.text import PlacedText
from peft_engine.configs.manifest import AnyHeadSpec, SpanHeadSpec
from peft_engine.errors import RowError
from peft_engine.parts.batching import Batch, Example, TokenRow
from peft_engine.parts.fits import fit_listwise
from peft_engine.parts.squad import score_answer
from peft_engine.parts.statistics import (
    Evaluation,
    Floats,
    RowStatistics,
    calibration_error,
    evaluation_of,
    mean_of_rows,
    ratio_of_sums,
)
from peft_engine.parts.words import Span, align_spans, is_mark
from peft_engine.tasks.passes import batch_logits, evaluate_with_head, read_object
from peft_engine.tasks.protocol import (
    Baseline,
    Encoded,
    FeatureSource,
    Forward,
    Frozen,
    Head,
    LossSum,
    Record,
    spec_of,
)

# Legend of axes: N windows of a batch, T tokens, D width, F tokens of all windows, S tokens of a
# context in one window.

MAX_OVERLAP_TOKENS = 128
MAX_ANSWER_TOKENS = 64
MAX_WINDOWS = 256
"""Most windows of one input of a prediction."""
MAX_FIT_WINDOWS = 256
"""Most windows from which the first head is fitted, evenly spaced."""
BEFORE_SENTENCE = "the sentence of the context that shares most words with the question, no model"
BEFORE_NOTHING = "no answer to any question, no model"
_NOWHERE = (0, 0)
"""Start and end where a window holds no answer: its first token."""
_SHAPE = '{"question", "context"}'
# Blanks, and invisible characters that say how a text is laid out and nothing of what it says. The
# others (joiners, tags of flags) are part of the sign before.
_BLANKS = re.compile(r"[\s\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]*")
_SENTENCE = re.compile(r"[^.!?\n]+(?:[.!?]+|\n|$)")


@dataclass(frozen=True)
class Window:
    """Where the context stands in a row.

    Attributes:
        context: The user's context, whole.
        first: Number of the first token of the context.
        offsets: Start and end of each token of the context, in characters of the context, with
            the marks behind it that no token stands for.
    """

    context: str
    first: int
    offsets: tuple[Span, ...]


class QuestionAnswering:
    """A piece of a context, or no answer."""

    name = "question-answering"
    kind = "span"
    metric = "f1"
    metrics: tuple[str, ...] = ("loss", "exact_match", "f1", "ece")
    weighs_classes = False
    max_length_tokens = 384

    def find_labels(self, records: Sequence[Record]) -> None:  # noqa: ARG002  protocol
        """Answers are no classes; see ``Task.find_labels``."""
        return

    def encode(
        self,
        base: Base,
        records: Sequence[Record],
        *,
        labels: tuple[str, ...] | None,  # noqa: ARG002  protocol
        max_length: int,
    ) -> list[Example]:
        """One example a window; see ``Task.encode``.

        Neighbours share a third of a window, at most 128 tokens, so that an answer of no more than
        that stands whole in one of them. The first answer is learned where it does; all count when
        metrics are computed.
        """
        overlap = min(MAX_OVERLAP_TOKENS, max_length // 3)
        tells_apart = base.tells_texts_apart
        examples = []
        for number, record in enumerate(records):
            context = str(record["context"])
            places = base.text.place_windows(
                str(record["question"]), context, max_length=max_length, overlap_tokens=overlap
            )
            marks = _lone_marks(context, places)
            for found in places:
                row = TokenRow(found.input_ids, found.type_ids if tells_apart else None)
                window = _window(context, found, marks)
                target = _target(window, record.get("answers", ()))
                examples.append(Example((row,), target, found.cut_tokens, number, window))
        return examples

    def encode_input(
        self,
        base: Base,
        value: Any,
        *,
        max_length: int,
        spec: AnyHeadSpec | None = None,  # noqa: ARG002  protocol
    ) -> list[Example]:
        """``{"question", "context"}``; see ``HeadTask.encode_input``.

        Raises:
            RowError: The question fills the window, or the context more than 256 of them.
        """
        record = read_object(value, _SHAPE, texts=("question", "context"))
        examples = self.encode(base, [record], labels=None, max_length=max_length)
        if examples[0].cut_tokens:
            raise RowError(
                f"the question leaves no room for the context in {max_length} tokens",
                code="too_long",
                param="input.question",
            )
        if len(examples) > MAX_WINDOWS:
            raise RowError(
                f"the context needs {len(examples)} windows; at most {MAX_WINDOWS} are read",
                code="too_long",
                param="input.context",
            )
        return examples

    def first_head(
        self,
        frozen: Frozen,
        examples: Sequence[Example],
        *,
        labels: tuple[str, ...] | None,  # noqa: ARG002  protocol
    ) -> Head:
        """Conditional logits of start and end over tokens; see ``HeadTask.first_head``."""
        own = examples[:: -(-len(examples) // MAX_FIT_WINDOWS)]
        abstains = _abstains(examples)
        raw = frozen.features(self, SpanHeadSpec(scale=1.0, abstains=abstains), own)  # (F, D)
        scale = 1 / max(float(raw.norm(dim=-1).mean()), 1e-6)
        sizes = [self.count_features(example) for example in own]
        fitted = fit_listwise(
            raw * scale,
            sizes,
            torch.tensor([e.target for e in own]),
            check=frozen.check,
        )
        return Head(SpanHeadSpec(scale=scale, abstains=abstains), fitted, ())

    def extend_head(
        self,
        tuned: FeatureSource,  # noqa: ARG002  protocol
        head: Head,
        examples: Sequence[Example],
        *,
        labels: tuple[str, ...] | None,  # noqa: ARG002  protocol
    ) -> Head:
        """Abstain when a question has no answer; see ``GrowingTask.extend_head``.

        Nothing is fitted: windows without their answer have taught the head its score for none.
        """
        spec = spec_of(head.spec, SpanHeadSpec)
        if spec.abstains or not _abstains(examples):
            return head
        return replace(head, spec=spec.model_copy(update={"abstains": True}))

    def features(self, spec: AnyHeadSpec, hidden: Tensor, batch: Batch) -> Tensor:  # noqa: ARG002
        """(F, D) hidden states of real tokens; see ``HeadTask.features``."""
        return hidden[batch.mask.bool()].float()

    def count_features(self, example: Example) -> int:
        """Its tokens; see ``HeadTask.count_features``."""
        return example.tokens

    def logits(self, head: Head, features: Tensor) -> Tensor:
        """(F, 2) scores as start and end; see ``HeadTask.logits``."""
        scale = spec_of(head.spec, SpanHeadSpec).scale
        return linear(features * scale, head.tensors["weight"], head.tensors["bias"])

    def loss(
        self,
        base: Base,  # noqa: ARG002  protocol
        head: Head | None,
        hidden: Tensor,
        batch: Batch,
        *,
        label_smoothing: float,  # noqa: ARG002  protocol
        class_weights: Tensor | None = None,  # noqa: ARG002  protocol
    ) -> LossSum:
        """Mean cross entropy of start and end, summed over windows; see ``Task.loss``."""
        scores = batch_logits(self, head, hidden, batch)  # (F, 2)
        padded = scores.new_full((*batch.mask.shape, 2), -torch.inf)  # (N, T, 2)
        padded = padded.masked_scatter(batch.mask.bool().unsqueeze(-1), scores)
        targets = torch.tensor(batch.targets, device=hidden.device)  # (N, 2)
        # cross_entropy over three axes has no CUDA kernel that adds in the same order every time
        chosen = padded.log_softmax(1).gather(1, targets.unsqueeze(1))  # (N, 1, 2)
        return LossSum(-chosen.sum() / 2, batch.rows)

    def evaluate(
        self,
        forward: Forward,
        head: Head | None,
        examples: Sequence[Example],
        records: Sequence[Record],
        *,
        batch_size: int,
        generate_rows: int,  # noqa: ARG002  protocol
    ) -> Evaluation:
        """See ``score`` and ``Task.evaluate``."""
        return evaluate_with_head(self, forward, head, examples, records, batch_size=batch_size)

    def score(
        self,
        head: Head,
        examples: Sequence[Example],
        records: Sequence[Record],
        logits: Sequence[Tensor],
    ) -> Evaluation:
        """Loss, exact match, F1 and calibration error; see ``HeadTask.score``."""
        sums = np.zeros((len(records), 2))  # losses, windows
        windows: dict[int, list[int]] = {}
        for place, (example, own) in enumerate(zip(examples, logits, strict=True)):
            target = torch.tensor([example.target])  # (1, 2)
            loss = cross_entropy(own.double().unsqueeze(0), target, reduction="sum") / 2
            sums[example.record] += (float(loss), 1)
            windows.setdefault(example.record, []).append(place)
        answers = [
            self.answer(head, [examples[i] for i in own], [logits[i] for i in own])
            for own in (windows[record] for record in range(len(records)))
        ]
        sure = np.array([answer["score"] for answer in answers])
        found = evaluate_answers([answer["answer"] for answer in answers], records, sure=sure)
        loss_rows = ratio_of_sums(sums[:, 0], sums[:, 1])
        return evaluation_of({"loss": loss_rows, **found.rows}, details=found.details)

    def baselines(
        self,
        frozen: Frozen,  # noqa: ARG002  protocol
        head: Head,
        train: Encoded,  # noqa: ARG002  protocol
        asked: Encoded,
    ) -> tuple[Baseline, ...]:
        """The sentence with most words of the question; see ``HeadTask.baselines``."""
        records = asked.records
        guesses = {
            BEFORE_SENTENCE: [
                nearest_sentence(str(r["question"]), str(r["context"])) for r in records
            ]
        }
        if spec_of(head.spec, SpanHeadSpec).abstains:
            guesses[BEFORE_NOTHING] = [""] * len(records)
        return tuple(
            Baseline(evaluate_answers(given, records), what, len(records))
            for what, given in guesses.items()
        )

    def answer(
        self, head: Head, examples: Sequence[Example], logits: Sequence[Tensor]
    ) -> dict[str, Any]:
        """``answer``, ``start``, ``end`` and ``score``; see ``HeadTask.answer``.

        Without an answer ``answer`` is "", ``start`` and ``end`` are null.
        """
        abstains = spec_of(head.spec, SpanHeadSpec).abstains
        best: tuple[float, Span | None] = (-torch.inf, None)
        masses, nothing = [], torch.inf
        for example, own in zip(examples, logits, strict=True):
            nothing = min(nothing, float(own[0].double().sum()))
            scores = span_scores(own.double(), example.layout)  # (S, S)
            if not (scores != -torch.inf).any():
                continue
            masses.append(scores.flatten().logsumexp(0))
            place = int(scores.argmax())
            score = float(scores.flatten()[place])
            if score > best[0]:
                start, end = divmod(place, scores.shape[1])
                offsets = example.layout.offsets
                best = score, _trim(example.layout.context, offsets[start][0], offsets[end][1])
        if abstains or not masses:
            masses.append(torch.tensor(nothing, dtype=torch.float64))
        if best[1] is None or (abstains and nothing > best[0]):
            best = nothing, None
        share = float(np.exp(best[0] - float(torch.stack(masses).logsumexp(0))))
        if best[1] is None:
            return {"answer": "", "start": None, "end": None, "score": share}
        start, end = best[1]
        text = examples[0].layout.context[start:end]
        return {"answer": text, "start": start, "end": end, "score": share}

    def count_classes(self, examples: Sequence[Example], *, classes: int) -> Tensor:  # noqa: ARG002
        """Answers are no classes; see ``HeadTask.count_classes``."""
        return torch.zeros(0)


def span_scores(logits: Tensor, window: Window) -> Tensor:
    """Scores of all spans of a window's context.

    Args:
        logits: (T, 2) scores as start and end.
        window: Where the context stands.

    Returns:
        (S, S) start + end; -inf where the end lies before the start or 64 tokens or more after it,
        and where a token at either end has nothing but blanks: no answer is blank.
    """
    own = slice(window.first, window.first + len(window.offsets))
    scores = logits[own, 0].unsqueeze(1) + logits[own, 1].unsqueeze(0)  # (S, S)
    allowed = torch.ones_like(scores, dtype=torch.bool).triu().tril(MAX_ANSWER_TOKENS - 1)
    blank = [_is_blank(window.context[low:high]) for low, high in window.offsets]
    blanks = torch.tensor(blank, dtype=torch.bool)  # (S,)
    allowed &= ~(blanks.unsqueeze(1) | blanks.unsqueeze(0))
    return scores.masked_fill(~allowed, -torch.inf)


def evaluate_answers(
    given: Sequence[str], records: Sequence[Record], *, sure: Floats | None = None
) -> Evaluation:
    """Metrics of answers.

    Args:
        given: An answer for each record, "" for none.
        records: With their right ``answers``.
        sure: (N,) probability of each answer, where there is one.

    Returns:
        ``exact_match`` and ``f1`` from 0 to 1, as SQuAD defines them, mean over records; ``ece``,
        how far probability and exact match lie apart. ``details`` has both kinds of questions by
        themselves, where the records have both.
    """
    scores = np.array(
        [
            score_answer(_bare(answer), [_bare(str(right["text"])) for right in record["answers"]])
            for answer, record in zip(given, records, strict=True)
        ]
    ).reshape(-1, 2)
    rows: dict[str, RowStatistics] = {
        "exact_match": mean_of_rows(scores[:, 0]),
        "f1": mean_of_rows(scores[:, 1]),
    }
    if sure is not None:
        rows["ece"] = calibration_error(sure, scores[:, 0])
    answered = np.array([bool(record["answers"]) for record in records], dtype=bool)
    details = {}
    if answered.any() and not answered.all():
        for name, own in (("answerable", answered), ("unanswerable", ~answered)):
            exact, f1 = scores[own].mean(0).tolist()
            details[name] = {"rows": int(own.sum()), "exact_match": exact, "f1": f1}
    return evaluation_of(rows, details=details)


def nearest_sentence(question: str, context: str) -> str:
    """The sentence with most words of the question.

    Args:
        question: The question.
        context: The context.

    Returns:
        The first such sentence, trimmed.
    """
    words = set(re.findall(r"\w+", question.lower()))
    sentences = [found.group().strip() for found in _SENTENCE.finditer(context)] or [context]
    return max(sentences, key=lambda s: len(words & set(re.findall(r"\w+", s.lower()))))


def _lone_marks(context: str, places: Sequence[PlacedText]) -> dict[int, int]:
    """Start to end of marks that no token of any window stands for: BERT strips accents."""
    if context.isascii():
        return {}
    covered = {at for found in places for span in _own_offsets(found) for at in range(*span)}
    ends: dict[int, int] = {}
    for at in reversed(range(len(context))):
        if at not in covered and is_mark(context[at]):
            ends[at] = ends.get(at + 1, at + 1)
    return ends


def _window(context: str, found: PlacedText, marks: Mapping[int, int]) -> Window:
    offsets = tuple(
        (low, high if _is_blank(context[low:high]) else marks.get(high, high))
        for low, high in _own_offsets(found)
    )
    return Window(context, found.texts.index(1) if offsets else 0, offsets)


def _own_offsets(found: PlacedText) -> list[Span]:
    """Where the tokens of the context stand."""
    return [span for span, text in zip(found.offsets, found.texts, strict=True) if text == 1]


def _target(window: Window, answers: Sequence[Mapping[str, Any]]) -> Span:
    """First and last token of the first answer when it stands whole in this window."""
    if not answers or not window.offsets:
        return _NOWHERE
    start = int(answers[0]["start"])
    end = start + len(str(answers[0]["text"]))
    start, end = _trim(window.context, start, end)
    if start < window.offsets[0][0] or end > window.offsets[-1][1]:
        return _NOWHERE
    found = align_spans([(start, end)], window.offsets, [True] * len(window.offsets))[0]
    return _NOWHERE if found is None else (window.first + found[0], window.first + found[1])


def _trim(text: str, start: int, end: int) -> Span:
    """The span without blanks at its ends."""
    while start < end and _is_blank(text[start]):
        start += 1
    while end > start and _is_blank(text[end - 1]):
        end -= 1
    return start, end


def _bare(text: str) -> str:
    """A text without blanks at its ends."""
    start, end = _trim(text, 0, len(text))
    return text[start:end]


def _is_blank(text: str) -> bool:
    """Whether nothing is seen of it."""
    return _BLANKS.fullmatch(text) is not None


def _abstains(examples: Sequence[Example]) -> bool:
    """Whether some training question has no answer in any of its windows."""
    answered: dict[int, bool] = {}
    for example in examples:
        found = example.target != _NOWHERE
        answered[example.record] = answered.get(example.record, False) or found
    return not all(answered.values())

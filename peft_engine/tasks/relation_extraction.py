"""Relation extraction: how two marked spans of a text relate.

The head span is put between ``$`` and the tail span between ``#``, as plain text, so that every
base can read them. A linear head looks at three features of unit length: the pooled one, and the
mean over the tokens of each span.

Source: R-BERT (Wu and He 2019, arXiv 1905.08284), with the base's own pooling for [CLS].
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize

from peft_engine.bases.base import Base
from peft_engine.bases.pooling import pool
from peft_engine.bases.text import PlacedText
from peft_engine.configs.manifest import AnyHeadSpec, RelationHeadSpec
from peft_engine.errors import RowError
from peft_engine.parts.batching import Batch, Example, TokenRow
from peft_engine.parts.classes import evaluate_logits, label_answer
from peft_engine.parts.fits import fit_head
from peft_engine.parts.statistics import Evaluation
from peft_engine.parts.words import Span, align_spans, join_tokens
from peft_engine.tasks.passes import (
    check_length,
    class_baselines,
    class_loss,
    class_numbers,
    class_targets,
    evaluate_with_head,
    extend_class_head,
    read_object,
    sorted_labels,
    stack_one,
)
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

# Legend of axes: B rows of a batch, T tokens, D width, C classes.

HEAD_MARK, TAIL_MARK = "$", "#"
_SHAPE = '{"text" or "tokens", "head": {"start", "end"}, "tail": {"start", "end"}}'

Bounds = tuple[int, int] | None
"""First and last token of a span (inclusive); None where it has none."""


class RelationExtraction:
    """One class for two spans of a text."""

    name = "relation-extraction"
    kind = "relation"
    metric = "macro_f1"
    metrics: tuple[str, ...] = ("loss", "accuracy", "macro_f1", "weighted_f1", "mcc", "ece")
    weighs_classes = True
    max_length_tokens = 256

    def find_labels(self, records: Sequence[Record]) -> tuple[str, ...]:
        """Every label of the training records, sorted; see ``Task.find_labels``."""
        return sorted_labels({str(record["label"]) for record in records})

    def encode(
        self,
        base: Base,
        records: Sequence[Record],
        *,
        labels: tuple[str, ...] | None,
        max_length: int,
    ) -> list[Example]:
        """Marked texts to tokens; see ``Task.encode``.

        Of a text that is too long the end is cut, and where a span would be lost, the beginning
        up to the first span as well.
        """
        targets = class_numbers(labels, [str(record.get("label")) for record in records])
        return [
            _encode_record(base, record, place, target, max_length)
            for place, (record, target) in enumerate(zip(records, targets, strict=True))
        ]

    def encode_input(
        self,
        base: Base,
        value: Any,
        *,
        max_length: int,
        spec: AnyHeadSpec | None = None,  # noqa: ARG002  protocol
    ) -> list[Example]:
        """A record without its label; see ``HeadTask.encode_input``."""
        record = read_object(value, _SHAPE)
        within = _read_within(record)
        for name in ("head", "tail"):
            _check_span(record.get(name), name, len(within))
        check_length(base.text.count_input_tokens(mark_spans(*_spans_of(record))[0]), max_length)
        return self.encode(base, [record], labels=None, max_length=max_length)

    def first_head(
        self, frozen: Frozen, examples: Sequence[Example], *, labels: tuple[str, ...] | None
    ) -> Head:
        """Multinomial logistic regression; see ``HeadTask.first_head``."""
        spec = RelationHeadSpec(pooling=frozen.base.pooling.mode)
        features = frozen.features(self, spec, examples)  # (N, 3D)
        names = labels or ()
        targets = class_targets(examples)
        fitted = fit_head(features, targets, classes=len(names), check=frozen.check)
        return Head(spec, fitted, names)

    def extend_head(
        self,
        tuned: FeatureSource,
        head: Head,
        examples: Sequence[Example],
        *,
        labels: tuple[str, ...] | None,
    ) -> Head:
        """Rows for new relations; see ``GrowingTask.extend_head``."""
        return extend_class_head(self, tuned, head, examples, labels=labels)

    def features(self, spec: AnyHeadSpec, hidden: Tensor, batch: Batch) -> Tensor:
        """(B, 3D): pooled, head span, tail span; see ``HeadTask.features``."""
        own = spec_of(spec, RelationHeadSpec)
        pooled = pool(hidden, batch.mask, mode=own.pooling, normalize=True)  # (B, D)
        sides = [
            torch.stack(
                [_mean(hidden[row], e.layout[side]) for row, e in enumerate(batch.examples)]
            )
            for side in (0, 1)
        ]
        return torch.cat([pooled, *(normalize(side, dim=-1) for side in sides)], dim=-1)

    def count_features(self, example: Example) -> int:  # noqa: ARG002  protocol
        """One; see ``HeadTask.count_features``."""
        return 1

    def logits(self, head: Head, features: Tensor) -> Tensor:
        """(B, C) logits; see ``HeadTask.logits``."""
        return linear(features, head.tensors["weight"], head.tensors["bias"])

    def loss(
        self,
        base: Base,  # noqa: ARG002  protocol
        head: Head | None,
        hidden: Tensor,
        batch: Batch,
        *,
        label_smoothing: float,
        class_weights: Tensor | None = None,
    ) -> LossSum:
        """Cross entropy, summed over rows; see ``Task.loss``."""
        return class_loss(
            self,
            head,
            hidden,
            batch,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
        )

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
        """See ``classes.evaluate_logits`` and ``Task.evaluate``."""
        return evaluate_with_head(self, forward, head, examples, records, batch_size=batch_size)

    def score(
        self,
        head: Head,
        examples: Sequence[Example],
        records: Sequence[Record],  # noqa: ARG002  protocol
        logits: Sequence[Tensor],
    ) -> Evaluation:
        """See ``classes.evaluate_logits``."""
        targets = class_targets(examples).numpy()
        return evaluate_logits(stack_one(logits), targets, labels=head.labels)

    def baselines(
        self, frozen: Frozen, head: Head, train: Encoded, asked: Encoded
    ) -> tuple[Baseline, ...]:
        """Centroid and majority; see ``HeadTask.baselines``."""
        return class_baselines(
            normalize(frozen.features(self, head.spec, train.examples), dim=-1),
            class_targets(train.examples),
            normalize(frozen.features(self, head.spec, asked.examples), dim=-1),
            class_targets(asked.examples),
            labels=head.labels,
        )

    def answer(
        self,
        head: Head,
        examples: Sequence[Example],  # noqa: ARG002  protocol
        logits: Sequence[Tensor],
    ) -> dict[str, Any]:
        """``label``, ``score`` and ``scores``; see ``HeadTask.answer``."""
        return label_answer(head.labels, logits[0][0].softmax(-1).tolist())

    def count_classes(self, examples: Sequence[Example], *, classes: int) -> Tensor:
        """(C,) rows of each class; see ``HeadTask.count_classes``."""
        return torch.bincount(class_targets(examples), minlength=classes)


def mark_spans(text: str, head: Span, tail: Span) -> tuple[str, Span, Span]:
    """Put marks with blanks around two spans, which may touch, overlap or hold one another.

    Args:
        text: The text.
        head: Start and end of the head span.
        tail: Start and end of the tail span.

    Returns:
        The marked text, and both spans in it, without their marks.
    """
    spans = {HEAD_MARK: head, TAIL_MARK: tail}
    # At one place first what ends, then what begins: of two that begin the longer one first, of
    # two that end the shorter one.
    begins = [(start, 1, -end, mark) for mark, (start, end) in spans.items()]
    ends = [(end, 0, -start, mark) for mark, (start, end) in spans.items()]
    marked, done = "", 0
    starts: dict[str, int] = {}
    stops: dict[str, int] = {}
    for place, is_begin, _, mark in sorted([*begins, *ends]):
        marked += text[done:place]
        done = place
        if not is_begin:
            stops[mark] = len(marked)
        marked += f" {mark} "
        if is_begin:
            starts[mark] = len(marked)
    moved = [(starts[mark], stops[mark]) for mark in spans]
    return marked + text[done:], moved[0], moved[1]


def _encode_record(base: Base, record: Record, place: int, target: int, max_length: int) -> Example:
    text, head, tail = mark_spans(*_spans_of(record))
    (found,) = base.text.place_texts([text], max_length=max_length)
    cut = found.cut_tokens
    bounds = (_bounds(found, head), _bounds(found, tail))
    if cut and None in bounds:
        begin = max(0, min(head[0], tail[0]) - len(f"{HEAD_MARK} "))
        head, tail = ((s[0] - begin, s[1] - begin) for s in (head, tail))
        whole = len(found.input_ids) + cut
        (found,) = base.text.place_texts([text[begin:]], max_length=max_length)
        cut = whole - len(found.input_ids)
        bounds = (_bounds(found, head), _bounds(found, tail))
    row = TokenRow(found.input_ids, found.type_ids if base.tells_texts_apart else None)
    return Example((row,), target, cut, place, bounds)


def _bounds(found: PlacedText, span: Span) -> Bounds:
    return align_spans([span], found.offsets, [own == 0 for own in found.texts])[0]


def _mean(hidden: Tensor, bounds: Bounds) -> Tensor:
    """(D,) mean of a span's tokens from (T, D); zeros for a span without any."""
    if bounds is None:
        return hidden.new_zeros(hidden.shape[-1]).float()
    return hidden[bounds[0] : bounds[1] + 1].float().mean(0)


def _spans_of(record: Record) -> tuple[str, Span, Span]:
    """The text with both spans in characters."""
    spans = [(int(record[name]["start"]), int(record[name]["end"])) for name in ("head", "tail")]
    if "tokens" not in record:
        return str(record["text"]), spans[0], spans[1]
    text, words = join_tokens(record["tokens"])
    head, tail = ((words[start][0], words[end - 1][1]) for start, end in spans)
    return text, head, tail


def _read_within(record: Mapping[str, Any]) -> Sequence[str]:
    """What the spans point into.

    Raises:
        RowError: Tokens that are none.
    """
    tokens = record.get("tokens")
    if tokens is None:
        return str(read_object(record, _SHAPE, texts=("text",))["text"])
    if not isinstance(tokens, list) or not all(isinstance(t, str) and t for t in tokens):
        raise RowError("tokens must be a list of texts", code="bad_input", param="input.tokens")
    return tokens


def _check_span(span: Any, name: str, length: int) -> None:
    """Refuse a span that points nowhere.

    Raises:
        RowError: Not ``0 <= start < end <= length``.
    """
    bounds = [span.get(side) for side in ("start", "end")] if isinstance(span, Mapping) else []
    whole = [b for b in bounds if isinstance(b, int) and not isinstance(b, bool)]
    if len(whole) != 2 or not 0 <= whole[0] < whole[1] <= length:
        raise RowError(
            f"{name} must be {{start, end}} inside the {length} characters or tokens",
            code="bad_input",
            param=f"input.{name}",
        )

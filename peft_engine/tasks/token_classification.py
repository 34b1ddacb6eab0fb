"""Token classification (named entities): one tag a word, entities with character offsets.

A linear head over the hidden state of one token of each word: the first one on encoders, the last
one on causal bases, where only it has seen the whole word. Since many encoders read everything in
lower case, it also sees how the word and its two neighbours are written; and since a word that is
nearly always a name in training need not look like one to the base, it may learn words by heart, if
that helps on rows that were left out. The tags of a row are decided together, if that does no harm
there: which tag follows which is known from the training rows. And ``O`` counts for less than it
scores, as F1 wants it. Words without any token, cut off or invisible to the tokenizer, are
predicted as ``O``, so that what is cut counts as missed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding, linear

from peft_engine.bases.base import Base
from peft_engine.bases.text import PlacedText
from peft_engine.configs.manifest import AnyHeadSpec, TagHeadSpec
from peft_engine.errors import DataError, DeltaError, RowError
from peft_engine.parts.batching import Batch, Example, TokenRow
from peft_engine.parts.entities import OUTSIDE, evaluate_tags
from peft_engine.parts.fits import fit_new_classes
from peft_engine.parts.statistics import (
    Evaluation,
    calibration_error,
    evaluation_of,
    ratio_of_sums,
)
from peft_engine.parts.tag_choices import choose_for_tags
from peft_engine.parts.tag_paths import decide_tags, fit_transitions, grow_transitions
from peft_engine.parts.tags import (
    Tags,
    lost_words,
    name_tags,
    seen_numbers,
    tag_targets,
    tag_words,
    unreachable_types,
    wanted_tags,
)
from peft_engine.parts.word_features import (
    fit_word_head,
    size_table,
    spelling_features,
    table_logits,
    table_places,
)
from peft_engine.parts.words import Span, Words, align_spans, find_words, join_tokens
from peft_engine.tasks.passes import (
    batch_logits,
    check_length,
    class_numbers,
    evaluate_with_head,
    read_object,
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

# Legend of axes: B rows of a batch, N rows of a split, T tokens, D width, W words, S marks of
# spelling, H rows of the table of words, C tags.

MAX_FIT_WORDS = 50_000
"""Most words from which the first head is fitted: rows beyond them, evenly spaced, are left out."""
BEFORE_USUAL_TAG = "the most frequent training tag of each word, O for new words, no model"
_SHAPE = '"text" or {"tokens": [...]}'


class TokenClassification:
    """Tags of words, entities of texts."""

    name = "token-classification"
    kind = "tags"
    metric = "f1"
    metrics: tuple[str, ...] = ("loss", "f1", "precision", "recall", "accuracy", "ece")
    weighs_classes = True
    max_length_tokens = 256

    def find_labels(self, records: Sequence[Record]) -> tuple[str, ...]:
        """``O`` and, for each type, its ``B-`` and ``I-``; see ``Task.find_labels``.

        Raises:
            DataError: There is no entity.
        """
        types = {tag[2:] for r in records for tag in r.get("tags", ()) if tag != OUTSIDE}
        types |= {str(entity["label"]) for r in records for entity in r.get("entities", ())}
        if not types:
            raise DataError(
                "no training row has an entity", code="too_few_labels", param="dataset_id"
            )
        return (OUTSIDE, *(f"{mark}-{kind}" for kind in sorted(types) for mark in "BI"))

    def encode(
        self,
        base: Base,
        records: Sequence[Record],
        *,
        labels: tuple[str, ...] | None,
        max_length: int,
    ) -> list[Example]:
        """Texts to tokens and words, tags or entities to tags of words; see ``Task.encode``."""
        texts = [_words_of(record) for record in records]
        placed = base.text.place_texts([text for text, _ in texts], max_length=max_length)
        examples: list[Example] = []
        for record, (text, spans), found in zip(records, texts, placed, strict=True):
            layout = _lay_out(base, text, spans, found, given="tokens" in record)
            target = None if labels is None else _tags_of(record, text, spans, labels)
            row = TokenRow(found.input_ids, found.type_ids if base.tells_texts_apart else None)
            examples.append(Example((row,), target, found.cut_tokens, len(examples), layout))
        return examples

    def count_unnamed(
        self, examples: Sequence[Example], records: Sequence[Record], *, labels: tuple[str, ...]
    ) -> tuple[int, int]:
        """Entities that no tags of words can name; see ``NamingTask.count_unnamed``."""
        unnamed = [kind for own in unreachable_types(examples) for kind in own]
        total = sum(len(record.get("entities", ())) for record in records)
        return sum(f"B-{kind}" in labels for kind in unnamed), total

    def encode_input(
        self,
        base: Base,
        value: Any,
        *,
        max_length: int,
        spec: AnyHeadSpec | None = None,  # noqa: ARG002  protocol
    ) -> list[Example]:
        """``"text"`` or ``{"tokens"}``; see ``HeadTask.encode_input``.

        Raises:
            RowError: Neither of them.
        """
        record: Mapping[str, Any] = {"text": value} if isinstance(value, str) else value
        record = read_object(record, _SHAPE)
        tokens = record.get("tokens")
        if tokens is None:
            read_object(record, _SHAPE, texts=("text",))
        elif (
            not isinstance(tokens, list)
            or not tokens
            or not all(isinstance(token, str) and token for token in tokens)
        ):
            raise RowError("tokens must be a list of texts", code="bad_input", param="input.tokens")
        check_length(base.text.count_input_tokens(_words_of(record)[0]), max_length)
        return self.encode(base, [record], labels=None, max_length=max_length)

    def first_head(
        self, frozen: Frozen, examples: Sequence[Example], *, labels: tuple[str, ...] | None
    ) -> Head:
        """Multinomial logistic regression of words; see ``HeadTask.first_head``."""
        names = labels or ()
        own = _bounded(examples)
        token = "last" if frozen.base.architecture == "causal" else "first"
        raw = frozen.features(self, TagHeadSpec(token=token, scale=1.0), own)  # (W, D)
        scale = 1 / max(float(raw.norm(dim=-1).mean()), 1e-6)
        layouts = [example.layout for example in own]
        features = torch.cat([raw * scale, spelling_features(layouts)], dim=-1)
        rows = size_table(layouts)
        places = table_places(layouts, rows=rows)
        chosen = choose_for_tags(own, features, places, labels=names, check=frozen.check)
        fitted = fit_word_head(
            features,
            places,
            tag_targets(own),
            classes=len(names),
            rows=rows,
            strength=chosen.strength,
            check=frozen.check,
        )
        if chosen.together:
            fitted["transitions"] = _count_transitions(own, names)
        spec = TagHeadSpec(
            token=token,
            scale=scale,
            spelling=True,
            words=rows if chosen.strength else 0,
            transitions=chosen.together,
            outside_penalty=chosen.outside_penalty,
        )
        return Head(spec, fitted, names)

    def extend_head(
        self,
        tuned: FeatureSource,
        head: Head,
        examples: Sequence[Example],
        *,
        labels: tuple[str, ...] | None,
    ) -> Head:
        """Rows for the tags of new types; see ``GrowingTask.extend_head``."""
        names = labels or ()
        if names == head.labels:
            return head
        own = _bounded(examples)
        features = tuned.features(self, head.spec, own)
        spec = spec_of(head.spec, TagHeadSpec)
        known_more, more = None, dict[str, Tensor]()
        if spec.transitions:
            fresh = _count_transitions(own, names)
            more["transitions"] = grow_transitions(head.tensors["transitions"], fresh)
        if spec.words:
            # Words learned by heart say nothing of new types until training goes on.
            places, words = features[:, -1].long(), head.tensors["words"]
            known_more = embedding(places, words.T)  # (W, C)
            missing = len(names) - len(words)
            more["words"] = torch.cat([words, words.new_zeros(missing, words.shape[1])])
        fitted = fit_new_classes(
            features[:, : head.tensors["weight"].shape[1]],
            tag_targets(own),
            head.tensors,
            classes=len(names),
            known_more=known_more,
            check=tuned.check,
        )
        return Head(head.spec, {**fitted, **more}, names)

    def features(self, spec: AnyHeadSpec, hidden: Tensor, batch: Batch) -> Tensor:
        """(W, D [+ 3 S] [+ 1]): hidden states, spelling, row of the table of words.

        See ``HeadTask.features``. Numbers of rows are exact in fp32.
        """
        own = spec_of(spec, TagHeadSpec)
        rows = [row for row, e in enumerate(batch.examples) for _ in e.layout.places]
        places = [place for e in batch.examples for place in e.layout.places]
        found = [hidden[rows, places].float() * own.scale]  # (W, D)
        layouts = [example.layout for example in batch.examples]
        if own.spelling:
            found.append(spelling_features(layouts))
        if own.words:
            found.append(table_places(layouts, rows=own.words).float().unsqueeze(-1))
        return torch.cat([part.to(hidden.device) for part in found], dim=-1)

    def count_features(self, example: Example) -> int:
        """Words that have a token; see ``HeadTask.count_features``."""
        return len(example.layout.places)

    def logits(self, head: Head, features: Tensor) -> Tensor:
        """(W, C) logits; see ``HeadTask.logits``.

        Raises:
            DeltaError: The table has other rows than the words were dealt to.
        """
        rows = spec_of(head.spec, TagHeadSpec).words
        if rows:
            # on the host: an index beyond a table on a GPU ends the process, not the request
            found = head.tensors["words"].shape[1]
            if found != rows:
                raise DeltaError(
                    f"the table of words has {found} rows, not {rows}", code="delta_corrupt"
                )
            return table_logits(features[:, :-1], features[:, -1].long(), head.tensors)
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
        """Cross entropy, summed over words that have a token; see ``Task.loss``."""
        targets = tag_targets(batch.examples).to(hidden.device)  # (W,)
        total = cross_entropy(
            batch_logits(self, head, hidden, batch),
            targets,
            weight=class_weights,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
        if class_weights is None:
            return LossSum(total, len(targets))
        return LossSum(total, float(class_weights[targets].sum()))

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
        records: Sequence[Record],  # noqa: ARG002  protocol
        logits: Sequence[Tensor],
    ) -> Evaluation:
        """Loss, metrics of ``evaluate_tags``, calibration error; see ``HeadTask.score``."""
        losses = np.zeros(len(examples))
        given, sure, right = [], [], []
        for place, (example, own) in enumerate(zip(examples, logits, strict=True)):
            wanted = torch.tensor(seen_numbers(example), dtype=torch.int64)
            losses[place] = float(cross_entropy(own.double(), wanted, reduction="sum"))
            shares, best = own.double().softmax(-1).max(-1)
            sure.append(shares)
            right.append(best == wanted)
            given.append(name_tags(example, _decide(head, own.double()), head.labels))
        counts = np.array([len(example.layout.seen) for example in examples])
        found = evaluate_tags(
            given,
            wanted_tags(head.labels, examples),
            unreachable_types(examples),
            lost_words(examples),
        )
        own_rows = {
            "loss": ratio_of_sums(losses, counts.astype(np.float64)),
            **found.rows,
            "ece": calibration_error(
                torch.cat(sure).numpy(),
                torch.cat(right).double().numpy(),
                owners=np.repeat(np.arange(len(examples)), counts),
                rows=len(examples),
            ),
        }
        return evaluation_of(own_rows, values=found.metrics, details=found.details)

    def baselines(
        self,
        frozen: Frozen,  # noqa: ARG002  protocol
        head: Head,
        train: Encoded,
        asked: Encoded,
    ) -> tuple[Baseline, ...]:
        """The most frequent training tag of each word; see ``HeadTask.baselines``."""
        seen: dict[str, Counter[str]] = {}
        for example, tags in zip(
            train.examples, wanted_tags(head.labels, train.examples), strict=True
        ):
            for (start, end), tag in zip(example.layout.spans, tags, strict=True):
                seen.setdefault(example.layout.text[start:end], Counter())[tag] += 1
        usual = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
        given = [
            [usual.get(e.layout.text[start:end], OUTSIDE) for start, end in e.layout.spans]
            for e in asked.examples
        ]
        wanted = wanted_tags(head.labels, asked.examples)
        evaluation = evaluate_tags(
            given, wanted, unreachable_types(asked.examples), lost_words(asked.examples)
        )
        return (Baseline(evaluation, BEFORE_USUAL_TAG, len(asked.records)),)

    def answer(
        self, head: Head, examples: Sequence[Example], logits: Sequence[Tensor]
    ) -> dict[str, Any]:
        """``entities``, and ``tags`` where tokens were given; see ``HeadTask.answer``."""
        # Imported late: it takes a second that every start of a process would wait for.
        from seqeval.metrics.sequence_labeling import get_entities

        layout: Words = examples[0].layout
        numbers = _decide(head, logits[0])  # (W,)
        shares = logits[0].softmax(-1).gather(-1, numbers.unsqueeze(-1)).squeeze(-1)  # (W,)
        tags, sure = name_tags(examples[0], numbers, head.labels), [1.0] * len(layout.spans)
        for word, share in zip(layout.seen, shares.tolist(), strict=True):
            sure[word] = share
        entities = [
            {
                "entity_group": kind,
                "score": sum(sure[first : last + 1]) / (last + 1 - first),
                "word": layout.text[layout.spans[first][0] : layout.spans[last][1]],
                "start": layout.spans[first][0],
                "end": layout.spans[last][1],
            }
            for kind, first, last in get_entities(tags)
        ]
        return {"entities": entities} | ({"tags": tags} if layout.given else {})

    def count_classes(self, examples: Sequence[Example], *, classes: int) -> Tensor:
        """(C,) words of each tag; see ``HeadTask.count_classes``."""
        return torch.bincount(tag_targets(examples), minlength=classes)


def _words_of(record: Record) -> tuple[str, list[Span]]:
    if "tokens" in record:
        return join_tokens(record["tokens"])
    text = str(record["text"])
    return text, find_words(text)


def _lay_out(base: Base, text: str, spans: list[Span], found: PlacedText, *, given: bool) -> Words:
    aligned = align_spans(spans, found.offsets, [own == 0 for own in found.texts])
    side = 1 if base.architecture == "causal" else 0
    seen = [(word, own[side]) for word, own in enumerate(aligned) if own is not None]
    return Words(
        text, tuple(spans), tuple(w for w, _ in seen), tuple(place for _, place in seen), given
    )


def _tags_of(record: Record, text: str, spans: Sequence[Span], labels: tuple[str, ...]) -> Tags:
    """Tags of the words; entities of types that training does not know cannot be reached."""
    # Imported late: it takes a second that every start of a process would wait for.
    from seqeval.metrics.sequence_labeling import get_entities

    if "tags" in record:
        tags, unreachable, lost = [str(tag) for tag in record["tags"]], list[str](), list[int]()
    else:
        tags, unreachable, lost = tag_words(text, spans, record["entities"])
    known = set(labels)
    unreachable += [kind for kind, _, _ in get_entities(tags) if f"B-{kind}" not in known]
    lost += [word for word, tag in enumerate(tags) if tag not in known]
    own = [tag if tag in known else OUTSIDE for tag in tags]
    return Tags(tuple(class_numbers(labels, own)), tuple(unreachable), tuple(sorted(set(lost))))


def _decide(head: Head, logits: Tensor) -> Tensor:
    """(W,) tags of the words of a row by their (W, C) scores, as the head says.

    Raises:
        DeltaError: The head makes less of a tag that it does not have.
    """
    spec = spec_of(head.spec, TagHeadSpec)
    if spec.outside_penalty and OUTSIDE not in head.labels:
        raise DeltaError(f"a penalty on {OUTSIDE}, and no such tag", code="delta_corrupt")
    return decide_tags(
        logits,
        transitions=head.tensors["transitions"] if spec.transitions else None,
        outside=head.labels.index(OUTSIDE) if spec.outside_penalty else 0,
        outside_penalty=spec.outside_penalty,
    )


def _count_transitions(examples: Sequence[Example], labels: Sequence[str]) -> Tensor:
    """(C + 1, C) of the words that have a token."""
    return fit_transitions([seen_numbers(e) for e in examples], classes=len(labels))


def _bounded(examples: Sequence[Example]) -> Sequence[Example]:
    words = sum(len(example.layout.seen) for example in examples)
    step = -(-words // MAX_FIT_WORDS)
    return examples[:: max(step, 1)]

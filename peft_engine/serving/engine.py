"""Answers rows of different deltas and of the plain base in one forward over one frozen base.

One thread owns an engine; see ``prepare_row`` for what other threads may do meanwhile.
"""

import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.bases.pooling import pool
from peft_engine.decoding import DecodingLimits
from peft_engine.delta import Delta
from peft_engine.errors import PlanError, RowError
from peft_engine.parts.batching import Batch, Example, collate
from peft_engine.parts.classes import label_answer
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from peft_engine.serving.rows import LabelTexts, PreparedRow, Row, prepare_row
from peft_engine.serving.scoring import (
    FORWARD_TOKENS,
    log_likelihoods,
    packed_parts,
    share_prompt,
)
from peft_engine.serving.writing import RowWriter, Writing
from peft_engine.tasks.passes import split_logits
from peft_engine.tasks.protocol import Head

# Legend of axes: B rows, T tokens, D width, L labels.

_ZERO_SHOT_SCALE = 20.0
"""Sentence encoders are trained with cosine similarities times 20 as logits."""
_KEPT_ACTORS = 4096
_KEPT_LABEL_SETS = 64


@dataclass(frozen=True)
class Answer:
    """What one row got.

    Attributes:
        output: In the form of the task, as the HTTP contract has it.
        input_tokens: Tokens of the input.
        output_tokens: Tokens that were generated.
    """

    output: dict[str, Any]
    input_tokens: int
    output_tokens: int = 0


class Engine:
    """A base that answers.

    Args:
        base: The base.
        limits: Bounds of its decoding batch.
        router: Its router, where it has one already: hooks are put into a base once.

    Attributes:
        base: The base.
        writer: Its decoding batch.
        mixes: Whether encoder rows of different deltas share a forward; see ``calibration``.
    """

    def __init__(
        self, base: Base, *, limits: DecodingLimits | None = None, router: Router | None = None
    ) -> None:
        self.base = base
        self.mixes = True
        self._router = router or Router(base.trunk)
        self.writer = RowWriter(base, self._router, self._actor, limits or DecodingLimits())
        self._actors: OrderedDict[str, tuple[Delta, Actor]] = OrderedDict()
        self._labels: OrderedDict[tuple[str, ...], Tensor] = OrderedDict()
        self._label_texts = LabelTexts(base)

    def prepare(self, row: Row) -> PreparedRow:
        """Check and tokenise a row, in any thread; see ``prepare_row``.

        Args:
            row: The row.

        Returns:
            The row, ready.
        """
        return prepare_row(self.base, row, self._label_texts)

    @torch.inference_mode()
    def predict(self, rows: Sequence[PreparedRow]) -> list[Answer]:
        """Answer rows, whatever deltas they ask for, in as few forwards as their tasks allow.

        Args:
            rows: Prepared rows of this base.

        Returns:
            One answer for each row, in order.

        Raises:
            PlanError: A delta is on another device than the base (``wrong_device``).
            RowError: A row's numbers overflow (``answer_not_finite``); ask the others without it.
        """  # noqa: DOC502  raised below
        answers: dict[int, Answer] = {}
        apart = {"generate", "score"}
        encoded = [place for place, row in enumerate(rows) if row.kind not in apart]
        written = [place for place, row in enumerate(rows) if row.kind == "generate"]
        for places in [encoded] if self.mixes else _by_delta(encoded, rows):
            if places:
                answers |= zip(places, self._encode([rows[i] for i in places]), strict=True)
        if written:
            answers |= zip(written, self._generate([rows[i] for i in written]), strict=True)
        for place, row in enumerate(rows):
            if row.kind == "score":
                answers[place] = _run(self._score(row, most_tokens=FORWARD_TOKENS))
        return [answers[place] for place in range(len(rows))]

    @torch.inference_mode()
    def predict_in_parts(
        self, row: PreparedRow, *, most_tokens: int
    ) -> Generator[None, None, Answer]:
        """Answer one row of many windows, choices, labels or answers in forwards of a bounded size.

        Args:
            row: A prepared row of this base that is not written.
            most_tokens: Bound of one forward, padding counted; a longer token row goes alone.

        Yields:
            Nothing, after every forward: whoever else waits may be answered before the next.

        Returns:
            The answer, as ``predict`` gives it.
        """
        if row.kind == "score":
            return (yield from self._score(row, most_tokens=most_tokens))
        rows = [own for example in row.examples for own in example.rows]
        whole = self._collate(row.examples)
        hidden: Tensor | None = None
        for lo, hi in _parts([own.tokens for own in rows], most_tokens):
            part = self._collate([Example((own,)) for own in rows[lo:hi]])
            with self._router.use(Plan.build([self._actor(row.delta)] * (hi - lo))):
                found = hidden_states(self.base, part)  # (B of the part, T of the part, D)
            if hidden is None:
                hidden = found.new_zeros(*whole.final_ids.shape, found.shape[-1])  # (B, T, D)
            hidden[lo:hi, : found.shape[1]] = found
            yield
        yield from self._read_labels(row, most_tokens)
        assert hidden is not None  # noqa: S101  a row has a token row at least
        return Answer(self._outputs([row], hidden, whole)[0], row.input_tokens)

    def _score(self, row: PreparedRow, *, most_tokens: int) -> Generator[None, None, Answer]:
        """Log-likelihoods of answers, in forwards of their own; a pause after every one."""
        parts = (
            packed_parts(row.examples, prompt_tokens=row.prompt_tokens, most_tokens=most_tokens)
            if row.shares_prompt
            else _parts([example.tokens for example in row.examples], most_tokens)
        )
        found: list[float] = []
        for lo, hi in parts:
            batch = self._collate(row.examples[lo:hi])
            if row.shares_prompt:
                batch = share_prompt(batch, device=self.base.device)
            with self._router.use(Plan.build([self._actor(row.delta)] * batch.forward_rows)):
                hidden = hidden_states(self.base, batch)  # (B of the part, T of the part, D)
            scores = log_likelihoods(self.base, hidden, batch)  # (B of the part,)
            _check_numbers(scores)
            found += scores.tolist()
            yield
        return Answer({"log_likelihoods": found}, row.input_tokens)

    def _encode(self, rows: Sequence[PreparedRow]) -> list[Answer]:
        """One forward over every token row; a delta acts on all rows of its inputs."""
        owners = [place for place, row in enumerate(rows) for e in row.examples for _ in e.rows]
        plan = Plan.build([self._actor(rows[place].delta) for place in owners])
        order = list(dict.fromkeys(owners[token_row] for token_row in plan.order))
        batch = self._collate([example for place in order for example in rows[place].examples])
        with self._router.use(plan):
            hidden = hidden_states(self.base, batch)  # (B, T, D)
        answers: dict[int, Answer] = {}
        first = token_row = 0
        for places in _stretches(order, rows):
            own = [rows[place] for place in places]
            last = first + sum(len(row.examples) for row in own)
            part = batch.part(first, last)
            outputs = self._outputs(own, hidden[token_row : token_row + part.rows], part)
            for place, row, output in zip(places, own, outputs, strict=True):
                answers[place] = Answer(output, row.input_tokens)
            first, token_row = last, token_row + part.rows
        return [answers[place] for place in range(len(rows))]

    def _outputs(
        self, rows: Sequence[PreparedRow], hidden: Tensor, batch: Batch
    ) -> list[dict[str, Any]]:
        """Outputs of inputs that share a delta and a task, from (B, T, D) hidden states."""
        delta, task = rows[0].delta, rows[0].task
        if delta is None or task is None or delta.manifest.head is None:
            # an embedding is pooled as the base was trained to be, so that those of different
            # deltas and of the plain base can be compared
            mode = self.base.pooling.mode
            features = pool(hidden, batch.mask, mode=mode, normalize=True)  # (B, D)
            _check_numbers(features)
            return [self._plain_output(row, features[place]) for place, row in enumerate(rows)]
        head = Head(delta.manifest.head, delta.head, delta.manifest.labels or ())
        logits = task.logits(head, task.features(head.spec, hidden, batch)).cpu()  # (F, C)
        _check_numbers(logits)
        own = iter(split_logits(task, logits, batch.examples))
        return [
            task.answer(head, row.examples, list(itertools.islice(own, len(row.examples))))
            for row in rows
        ]

    def _plain_output(self, row: PreparedRow, feature: Tensor) -> dict[str, Any]:
        if row.kind == "embed":
            return {"embedding": feature.tolist()}
        shares = (_ZERO_SHOT_SCALE * self._label_features(row) @ feature).softmax(-1)  # (L,)
        return label_answer(row.labels, shares.tolist())

    def _label_features(self, row: PreparedRow) -> Tensor:
        """(L, D) features of the labels by the plain base, kept for the next row that asks."""
        for _ in self._read_labels(row, math.inf):
            pass
        return self._labels[row.labels]

    def _read_labels(self, row: PreparedRow, most_tokens: float) -> Iterator[None]:
        """Have the features of a zero-shot row's labels; a pause after every so many tokens."""
        if row.labels not in self._labels and row.labels:
            found, tokens = list[Tensor](), 0
            for example in row.label_examples:
                if tokens and tokens + example.tokens > most_tokens:
                    tokens = 0
                    yield
                tokens += example.tokens
                batch = self._collate([example])
                hidden = hidden_states(self.base, batch)
                mode = self.base.pooling.mode
                found.append(pool(hidden, batch.mask, mode=mode, normalize=True))
            self._labels[row.labels] = torch.cat(found)
            if len(self._labels) > _KEPT_LABEL_SETS:
                self._labels.popitem(last=False)
        if row.labels:
            self._labels.move_to_end(row.labels)

    def _generate(self, rows: Sequence[PreparedRow]) -> list[Answer]:
        return [self.written(writing) for writing in self.write(rows)]

    @torch.inference_mode()
    def write(self, rows: Sequence[PreparedRow]) -> list[Writing]:
        """Write rows to their ends, as many side by side as there is room for.

        Args:
            rows: Prepared rows that generate.

        Returns:
            What was written, in order.
        """
        writer = self.writer
        all_ = [writer.prepare(row) for row in rows]
        waiting = deque(all_)
        try:
            while waiting or writer.open:
                while waiting and writer.has_room(waiting[0].row):
                    writer.begin(waiting.popleft())
                writer.step()
        finally:
            for writing in writer.open:
                writer.cancel(writing)
        return all_

    def written(self, writing: Writing) -> Answer:
        """The answer of a row that is over.

        Args:
            writing: The row.

        Returns:
            Its answer.
        """
        tokens = writing.row.input_tokens
        return Answer(writing.output(self.base), tokens, writing.output_tokens)

    def _actor(self, delta: Delta | None) -> Actor | None:
        """The actor of a delta; the same object as long as the delta is the same object."""
        if delta is None:
            return None
        kept = self._actors.get(delta.digest)
        if kept is None or kept[0] is not delta:
            _check_device(delta, self.base)
            kept = self._actors[delta.digest] = (delta, Actor.of(delta))
        self._actors.move_to_end(delta.digest)
        if len(self._actors) > _KEPT_ACTORS:
            self._actors.popitem(last=False)
        return kept[1]

    @torch.inference_mode()
    def hidden(self, batch: Batch, delta: Delta) -> Tensor:
        """Hidden states of rows that all belong to one delta, for whoever judges it.

        Args:
            batch: B rows.
            delta: The delta, on the device of the base.

        Returns:
            (B, T, D).
        """
        with self._router.use(Plan.build([self._actor(delta)] * batch.rows)):
            return hidden_states(self.base, batch)

    def forget(self, digest: str) -> None:
        """Drop what is kept of a delta, so that its memory can go.

        Args:
            digest: Digest of a delta that has left the bank; an unknown one is ignored.
        """
        kept = self._actors.pop(digest, None)
        if kept is not None:
            self.writer.forget(kept[1])

    def _collate(self, examples: Sequence[Example]) -> Batch:
        return collate(examples, pad_id=self.base.text.pad_id, device=self.base.device)


def _check_device(delta: Delta, base: Base) -> None:
    """Refuse a delta as training returns it where the base is on a GPU.

    Raises:
        PlanError: Its tensors are elsewhere (``wrong_device``).
    """
    held = {tensor.device.type for tensor in delta.tensors.values()} - {base.device.type}
    if held:
        raise PlanError(
            f"the delta is on {held.pop()} and its base on {base.device.type}: "
            "answer with delta.to(base.device)",
            code="wrong_device",
        )


def _check_numbers(found: Tensor) -> None:
    """Refuse to make an answer of what is no number; what is ruled out (-inf) is one.

    Raises:
        RowError: The numbers of a row have overflowed (``answer_not_finite``).
    """
    if not bool((found < torch.inf).all()):
        raise RowError(
            "the answer is not finite: the adapter's numbers overflow", code="answer_not_finite"
        )


def _parts(tokens: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Stretches of token rows that make a forward within a bound, padding counted."""
    lo = longest = 0
    for place, own in enumerate(tokens):
        longest = max(longest, own)
        if place > lo and longest * (place + 1 - lo) > most:
            yield lo, place
            lo, longest = place, own
    yield lo, len(tokens)


def _run(forwards: Generator[None, None, Answer]) -> Answer:
    """The answer of a row of several forwards, one after another."""
    while True:
        try:
            next(forwards)
        except StopIteration as ended:
            answer: Answer = ended.value
            return answer


def _by_delta(places: Sequence[int], rows: Sequence[PreparedRow]) -> list[list[int]]:
    """Places in groups that share a delta."""
    found: dict[int, list[int]] = {}
    for place in places:
        found.setdefault(id(rows[place].delta), []).append(place)
    return list(found.values())


def _stretches(order: Sequence[int], rows: Sequence[PreparedRow]) -> list[list[int]]:
    """Places of inputs in sorted order, in stretches that share a delta and what reads it."""
    found: list[list[int]] = []
    for place in order:
        row = rows[place]
        before = rows[found[-1][-1]] if found else None
        if before is None or row.delta is not before.delta or row.task is not before.task:
            found.append([])
        found[-1].append(place)
    return found

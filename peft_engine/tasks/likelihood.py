"""What an untuned base that writes answers when it is asked in words: the likeliest continuation.

Each answer that is possible is put behind one prompt, or into the decoder where the encoder reads
the prompt; its score is the mean log-likelihood of its tokens, so that long answers stand no worse
than short ones. No chat template is used.

Source: Brown et al. 2020, arXiv 2005.14165, section 2.4; the prompt of multiple choice is that of
lm-evaluation-harness for ARC.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from peft_engine.bases.base import Base
from peft_engine.parts.batching import Batch, Example, TokenRow
from peft_engine.parts.spacing import evenly_spaced
from peft_engine.tasks.passes import texts_of
from peft_engine.tasks.protocol import Frozen, Record

# Legend of axes: B rows, T tokens (of the decoder where there is one), D width, V vocabulary,
# P tokens of answers, S answers of a row.

MAX_SCORED_TOKENS = 250_000
"""Most tokens of one split that are read for this. Some thousand rows of a few short answers fit;
with many classes rows are left out, evenly, since reading all would take longer than training."""
_PROJECTED_TOKENS = 512
"""Whose logits are in memory at a time: 100 MB of a vocabulary of 49,152, whatever is scored."""
BEFORE_LABEL_LIKELIHOOD = (
    "the untuned base asked in words: the label whose text is likeliest (mean log-likelihood of "
    "its tokens) after the text and 'Label:'"
)
BEFORE_CHOICE_LIKELIHOOD = (
    "the untuned base asked in words: the choice that is likeliest (mean log-likelihood of its "
    "tokens) after 'Question: … Answer:'"
)

Ids = list[int]


@dataclass(frozen=True)
class Scored:
    """Scores of the answers to some records.

    Attributes:
        rows: Which records, in order.
        scores: (S,) fp32 mean log-likelihoods of the answers to each.
    """

    rows: list[int]
    scores: list[Tensor]


def score_labels(
    frozen: Frozen, records: Sequence[Record], labels: Sequence[str], *, max_length: int
) -> Scored:
    """How likely each label is after the text (or both, a line each) and a line ``Label:``.

    Args:
        frozen: The plain base.
        records: With ``text`` and perhaps ``text_pair``.
        labels: C names; an underscore is read as a blank.
        max_length: Longest row in tokens; longer texts lose their end.

    Returns:
        C scores of each record, of evenly spaced records where all are too many.
    """
    answers = [label.replace("_", " ") for label in labels]
    bodies = []
    for record in records:
        found = texts_of(record)
        bodies.append(found if isinstance(found, str) else "\n".join(found))
    return _score(frozen, bodies, "\nLabel:", [answers] * len(records), max_length)


def score_choices(frozen: Frozen, records: Sequence[Record], *, max_length: int) -> Scored:
    """How likely each choice is after a line ``Question: …`` and a line ``Answer:``.

    Args:
        frozen: The plain base.
        records: With ``question`` and ``choices``.
        max_length: Longest row in tokens; longer questions lose their end.

    Returns:
        The scores of the choices of each record, of evenly spaced records where all are too many.
    """
    answers = [record["choices"] for record in records]
    bodies = [f"Question: {record['question']}" for record in records]
    return _score(frozen, bodies, "\nAnswer:", answers, max_length)


def mean_log_likelihoods(base: Base, hidden: Tensor, batch: Batch) -> Tensor:
    """Mean log-likelihood of the last tokens of each row.

    Args:
        base: For its language head.
        hidden: (B, T, D).
        batch: The same rows; the target of each is how many tokens are its answer.

    Returns:
        (B,) fp32.
    """
    answers = torch.tensor(batch.targets, device=hidden.device).unsqueeze(1)  # (B, 1)
    rows = [row.final_ids for example in batch.examples for row in example.rows]
    ends = torch.tensor([len(row) for row in rows], device=hidden.device).unsqueeze(1)  # (B, 1)
    ids = batch.final_ids  # (B, T)
    places = torch.arange(ids.shape[1], device=hidden.device)  # (T,)
    # the token at t + 1 is predicted at t
    predicts = (places >= ends - answers - 1) & (places < ends - 1)  # (B, T)
    before = hidden[predicts].split(_PROJECTED_TOKENS)  # type: ignore[no-untyped-call]
    after = ids[:, 1:][predicts[:, :-1]].split(_PROJECTED_TOKENS)  # type: ignore[no-untyped-call]
    losses = torch.cat(
        [
            cross_entropy(base.vocabulary_logits(own), wanted, reduction="none")
            for own, wanted in zip(before, after, strict=True)
        ]
    )  # (P,)
    owners = predicts.nonzero()[:, 0]  # (P,)
    sums = losses.new_zeros(batch.rows).index_add_(0, owners, losses)
    return -sums / answers.squeeze(1)


@dataclass(frozen=True)
class _OneRow:
    """The answer stands behind its prompt."""

    base: Base

    def around_prompts(self) -> tuple[Ids, Ids]:
        """The tokens before a prompt and after it."""
        return [] if self.base.text.bos_id is None else [self.base.text.bos_id], []

    def encode_answer(self, answer: str) -> Ids:
        return self.base.text.encode_plain(f" {answer}")

    def lay_out(self, prompt: Ids, answer: Ids) -> TokenRow:
        return TokenRow([*prompt, *answer])


@dataclass(frozen=True)
class _TwoStacks:
    """The encoder reads the prompt; the decoder ends its answer, as it was trained to."""

    base: Base

    def around_prompts(self) -> tuple[Ids, Ids]:
        (empty,) = self.base.text.encode_inputs([""], max_length=self.base.max_length)
        return list(empty.input_ids[:-1]), list(empty.input_ids[-1:])

    def encode_answer(self, answer: str) -> Ids:
        return self.base.text.encode_answer(answer)[-1].input_ids

    def lay_out(self, prompt: Ids, answer: Ids) -> TokenRow:
        return TokenRow(prompt, decoder_ids=[*(self.base.text.answer_start or ()), *answer])


def _score(
    frozen: Frozen,
    bodies: Sequence[str],
    end: str,
    answers: Sequence[Sequence[str]],
    max_length: int,
) -> Scored:
    base = frozen.base
    layout = _TwoStacks(base) if base.architecture == "encoder-decoder" else _OneRow(base)
    start, close = layout.around_prompts()
    asks = [*base.text.encode_plain(end), *close]
    most = max_length - len(start) - len(asks)
    different = {answer for own in answers for answer in own}
    encoded = {answer: layout.encode_answer(answer)[:most] for answer in different}
    cut = [[encoded[answer] for answer in own] for own in answers]
    prompts = []
    for body, own in zip(bodies, cut, strict=True):
        # tokens that the longest answer needs in the row of its prompt
        beside = max(len(layout.lay_out([], answer).input_ids) for answer in own)
        prompts.append([*start, *base.text.encode_plain(body)[: most - beside], *asks])
    rows = _affordable(prompts, cut)
    examples = [
        Example((layout.lay_out(prompts[row], answer),), len(answer))
        for row in rows
        for answer in cut[row]
    ]
    found = frozen.measure(
        examples, lambda hidden, batch: mean_log_likelihoods(base, hidden, batch)
    )
    return Scored(rows, list(torch.split(found, [len(cut[row]) for row in rows])))


def _affordable(prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]) -> list[int]:
    """Numbers of as many evenly spaced rows as may be read."""
    costs = [
        sum(len(prompt) + len(answer) for answer in own)
        for prompt, own in zip(prompts, answers, strict=True)
    ]
    count = max(1, len(costs) * MAX_SCORED_TOKENS // sum(costs))
    return evenly_spaced(len(costs), count)

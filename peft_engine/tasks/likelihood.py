"""What an untuned causal base answers when it is asked in words: the likeliest continuation.

Each answer that is possible is put behind one prompt; its score is the mean log-likelihood of its
tokens, so that long answers stand no worse than short ones. No chat template is used.

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
from peft_engine.tasks.passes import texts_of
from peft_engine.tasks.protocol import Frozen, Record

# Legend of axes: B rows, T tokens, D width, V vocabulary, P tokens of answers, S answers of a row.

MAX_SCORED_TOKENS = 250_000
"""Most tokens of one split that are read for this. Some thousand rows of a few short answers fit;
with many classes rows are left out, evenly, since reading all would take longer than training."""
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
    text = frozen.base.text
    answers = [text.encode_plain(f" {label.replace('_', ' ')}") for label in labels]
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
    text = frozen.base.text
    answers = [[text.encode_plain(f" {own}") for own in record["choices"]] for record in records]
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
    ends = batch.mask.sum(1, keepdim=True)  # (B, 1)
    answers = torch.tensor(batch.targets, device=ends.device).unsqueeze(1)  # (B, 1)
    places = torch.arange(batch.mask.shape[1], device=ends.device)  # (T,)
    # the token at t + 1 is predicted at t
    predicts = (places >= ends - answers - 1) & (places < ends - 1)  # (B, T)
    logits = base.vocabulary_logits(hidden[predicts])  # (P, V)
    losses = cross_entropy(logits, batch.input_ids[:, 1:][predicts[:, :-1]], reduction="none")
    owners = predicts.nonzero()[:, 0]  # (P,)
    sums = losses.new_zeros(batch.rows).index_add_(0, owners, losses)
    return -sums / answers.squeeze(1)


def _score(
    frozen: Frozen,
    bodies: Sequence[str],
    end: str,
    answers: Sequence[Sequence[Ids]],
    max_length: int,
) -> Scored:
    base = frozen.base
    start = [base.text.bos_id] if base.text.bos_id is not None else []
    asks = base.text.encode_plain(end)
    most = max_length - len(start) - len(asks)
    answers = [[answer[:most] for answer in own] for own in answers]
    prompts = []
    for body, own in zip(bodies, answers, strict=True):
        room = most - max(len(answer) for answer in own)
        prompts.append([*start, *base.text.encode_plain(body)[:room], *asks])
    rows = _affordable(prompts, answers)
    examples = [
        Example((TokenRow([*prompts[row], *answer]),), len(answer))
        for row in rows
        for answer in answers[row]
    ]
    found = frozen.measure(
        examples, lambda hidden, batch: mean_log_likelihoods(base, hidden, batch)
    )
    return Scored(rows, list(torch.split(found, [len(answers[row]) for row in rows])))


def _affordable(prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]) -> list[int]:
    """Numbers of as many evenly spaced rows as may be read."""
    costs = [
        sum(len(prompt) + len(answer) for answer in own)
        for prompt, own in zip(prompts, answers, strict=True)
    ]
    count = min(len(costs), max(1, len(costs) * MAX_SCORED_TOKENS // sum(costs)))
    return [place * len(costs) // count for place in range(count)]

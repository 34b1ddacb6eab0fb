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
    answers = [_encode_answer(frozen.base, label.replace("_", " ")) for label in labels]
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
    answers = [[_encode_answer(frozen.base, c) for c in record["choices"]] for record in records]
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
    if batch.decoder_ids is None:
        ids, ends = batch.input_ids, batch.mask.sum(1, keepdim=True)  # (B, T), (B, 1)
    else:
        ids, ends = batch.decoder_ids, len(base.text.answer_start or ()) + answers
    places = torch.arange(ids.shape[1], device=hidden.device)  # (T,)
    # the token at t + 1 is predicted at t
    predicts = (places >= ends - answers - 1) & (places < ends - 1)  # (B, T)
    logits = base.vocabulary_logits(hidden[predicts])  # (P, V)
    losses = cross_entropy(logits, ids[:, 1:][predicts[:, :-1]], reduction="none")
    owners = predicts.nonzero()[:, 0]  # (P,)
    sums = losses.new_zeros(batch.rows).index_add_(0, owners, losses)
    return -sums / answers.squeeze(1)


def _encode_answer(base: Base, answer: str) -> Ids:
    """Its tokens; those of a decoder end it too, as they would if it had been trained to write."""
    if base.architecture == "encoder-decoder":
        return base.text.encode_answer(answer)[-1].input_ids
    return base.text.encode_plain(f" {answer}")


def _score(
    frozen: Frozen,
    bodies: Sequence[str],
    end: str,
    answers: Sequence[Sequence[Ids]],
    max_length: int,
) -> Scored:
    base, two = frozen.base, frozen.base.architecture == "encoder-decoder"
    start, close = _around_prompts(base)
    asks = [*base.text.encode_plain(end), *close]
    most = max_length - len(start) - len(asks)
    answers = [[answer[:most] for answer in own] for own in answers]
    prompts = []
    for body, own in zip(bodies, answers, strict=True):
        room = most - (0 if two else max(len(answer) for answer in own))
        prompts.append([*start, *base.text.encode_plain(body)[:room], *asks])
    rows = _affordable(prompts, answers)
    examples = [
        Example((_lay_out(base, prompts[row], answer),), len(answer))
        for row in rows
        for answer in answers[row]
    ]
    found = frozen.measure(
        examples, lambda hidden, batch: mean_log_likelihoods(base, hidden, batch)
    )
    return Scored(rows, list(torch.split(found, [len(answers[row]) for row in rows])))


def _around_prompts(base: Base) -> tuple[Ids, Ids]:
    """The tokens before a prompt and after it."""
    if base.architecture != "encoder-decoder":
        return [] if base.text.bos_id is None else [base.text.bos_id], []
    (empty,) = base.text.encode_inputs([""], max_length=base.max_length)
    return list(empty.input_ids[:-1]), list(empty.input_ids[-1:])


def _lay_out(base: Base, prompt: Ids, answer: Ids) -> TokenRow:
    if base.architecture == "encoder-decoder":
        return TokenRow(prompt, decoder_ids=[*(base.text.answer_start or ()), *answer])
    return TokenRow([*prompt, *answer])


def _affordable(prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]]) -> list[int]:
    """Numbers of as many evenly spaced rows as may be read."""
    costs = [
        sum(len(prompt) + len(answer) for answer in own)
        for prompt, own in zip(prompts, answers, strict=True)
    ]
    count = max(1, len(costs) * MAX_SCORED_TOKENS // sum(costs))
    return evenly_spaced(len(costs), count)

"""Text generation: prompt and completion, conversations, or (on causal bases) plain text.

Only the assistant's own tokens are learned: the completion, or every assistant turn, up to and
including the token that ends it. The vocabulary projection is computed only at those positions.

A base with two stacks reads the prompt, or the conversation so far, in its encoder and writes the
answer in its decoder; a conversation is one example for each turn of the assistant.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from peft_engine.bases.base import Base
from peft_engine.bases.text import Turn
from peft_engine.errors import DataError, RowError
from peft_engine.generation import Sampling
from peft_engine.parts.batching import Batch, Example, TokenRow, batches_by_length, collate
from peft_engine.parts.spacing import evenly_spaced
from peft_engine.parts.statistics import (
    Evaluation,
    Resampled,
    RowStatistics,
    evaluation_of,
    ratio_of_sums,
)
from peft_engine.parts.texts import TEXT_METRICS, evaluate_texts
from peft_engine.records.tasks.text_generation import ROLES
from peft_engine.tasks.protocol import Forward, Head, LossSum, Record

# Legend of axes: B rows, T tokens, D width, V vocabulary, P learned positions of a batch.

MAX_EVALUATION_TOKENS = 256
"""Longest answer when text metrics are computed."""
MOST_ATTENDED = 1 << 26
"""Rows of a batch of prompts times the square of its longest. Attention masks are of this size, so
one prompt as long as the base reads (8,192 tokens) beside fifteen others would take gigabytes. A
batch of 32 rows of 1,448 tokens is below it."""
MAX_LOSS = 700.0
"""Largest loss whose exponential is a finite number."""

Target = list[bool]
"""For each token of a row: whether it is learned."""


class TextGeneration:
    """Next-token training and free text."""

    name = "text-generation"
    metric = "loss"
    metrics: tuple[str, ...] = ("loss", "perplexity", "token_accuracy", *TEXT_METRICS)
    weighs_classes = False
    max_length_tokens = 1024

    def find_labels(self, records: Sequence[Record]) -> None:  # noqa: ARG002  protocol
        """Text has no classes.

        Args:
            records: Not needed.
        """
        return

    def encode(
        self,
        base: Base,
        records: Sequence[Record],
        *,
        labels: tuple[str, ...] | None,  # noqa: ARG002  protocol
        max_length: int,
    ) -> list[Example]:
        """Records to tokens with a mark on those that are learned.

        A row that is too long loses tokens of its prompt from the left, then of its completion
        from the right. With two stacks prompt and completion are cut each for itself, the prompt
        as ``encode_prompt`` tells.

        Args:
            base: Its tokenizer and chat template are used.
            records: Canonical records.
            labels: Not needed.
            max_length: Longest row in tokens; with two stacks of each of them.

        Returns:
            One example for each record, or with two stacks one for each turn of the assistant.

        Raises:
            DataError: A record without any token to learn, or plain text for two stacks.
        """  # noqa: DOC502  raised below
        encode = _encode_row if base.text.answer_start is None else _encode_turns
        return [
            replace(example, record=place)
            for place, record in enumerate(records)
            for example in encode(base, record, max_length)
        ]

    def encode_input(self, base: Base, value: Any, *, max_length: int) -> list[int]:
        """One prompt.

        Args:
            base: Its tokenizer and chat template are used.
            value: ``"prompt"``, ``{"prompt"}`` or ``{"messages"}``.
            max_length: Most tokens of prompt and answer together.

        Returns:
            Token ids up to where the answer begins.

        Raises:
            RowError: Wrong shape (``bad_input``) or too long (``too_long``).
        """
        messages = input_messages(value)
        ids, cut = _prompt_ids(base, messages, max_length)
        if not ids:
            raise RowError("the prompt has no token", code="bad_input", param="input")
        if cut:
            raise RowError(
                f"the prompt has {len(ids) + cut} tokens and the encoder holds {max_length}",
                code="too_long",
                param="input",
            )
        if base.text.answer_start is None and len(ids) >= max_length:
            raise RowError(
                f"the prompt has {len(ids)} tokens and the context holds {max_length}",
                code="too_long",
                param="input",
            )
        return ids

    def loss(
        self,
        base: Base,
        head: Head | None,  # noqa: ARG002  protocol
        hidden: Tensor,
        batch: Batch,
        *,
        label_smoothing: float,
        class_weights: Tensor | None = None,  # noqa: ARG002  protocol
    ) -> LossSum:
        """Cross entropy of the learned tokens.

        Args:
            base: For its language head.
            head: Not needed.
            hidden: (B, T, D).
            batch: The same rows.
            label_smoothing: Mass spread over the vocabulary.
            class_weights: Without meaning: text has no classes.

        Returns:
            Sum over learned tokens.
        """
        logits, targets, _ = _learned(base, hidden, batch)
        total = cross_entropy(logits, targets, reduction="sum", label_smoothing=label_smoothing)
        return LossSum(total, len(targets))

    def evaluate(
        self,
        forward: Forward,
        head: Head | None,  # noqa: ARG002  protocol
        examples: Sequence[Example],
        records: Sequence[Record],
        *,
        batch_size: int,
        generate_rows: int,
    ) -> Evaluation:
        """Metrics of tokens on every row, of texts on evenly spaced rows that are answered in full.

        Args:
            forward: The model.
            head: Not needed.
            examples: Encoded records.
            records: The same records.
            batch_size: Rows of one forward.
            generate_rows: How many rows to answer; 0: none.

        Returns:
            ``loss`` (nats per learned token), ``perplexity`` (its exponential),
            ``token_accuracy`` (share of learned tokens that were the likeliest) and, with rows to
            answer, those of ``evaluate_texts``.
        """
        rows = _token_rows(forward, examples, len(records), batch_size)
        if generate_rows:
            texts, references = _answer_rows(forward, records, generate_rows, batch_size)
            if texts:
                rows |= evaluate_texts(texts, references).rows
        return evaluation_of(rows)


def _encode_row(base: Base, record: Record, max_length: int) -> list[Example]:
    """Prompt and answers in one row."""
    if "text" in record:
        start = [base.text.bos_id] if base.text.bos_id is not None else []
        end = [base.text.eos_id] if base.text.eos_id is not None else []
        ids = start + base.text.encode_plain(str(record["text"])) + end
        learned = [False] + [True] * (len(ids) - 1)
    else:
        ids, learned = _flatten(base.text.encode_conversation(record_messages(record)))
    surplus = max(0, len(ids) - max_length)
    prompt = learned.index(True) if True in learned else 0
    left = min(surplus, max(prompt - 1, 0))
    ids, learned = ids[left : left + max_length], learned[left : left + max_length]
    _need_target(any(learned[1:]))
    return [Example((TokenRow(ids),), learned, surplus)]


def _encode_turns(base: Base, record: Record, max_length: int) -> list[Example]:
    """Each answer in the decoder, what stands before it in the encoder.

    Raises:
        DataError: There is nothing before it: the record is plain text.
    """
    if "text" in record:
        raise DataError(
            f"{base.name} reads a prompt and writes an answer: rows need prompt and completion, or "
            "messages; rows of plain text are for causal bases",
            code="task_not_supported",
            param="dataset_id",
        )
    messages = record_messages(record)
    found = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant" or place == 0:
            continue
        prompt = base.text.encode_prompt(messages[:place], max_length=max_length)
        ids, learned = _flatten(base.text.encode_answer(str(message["content"])))
        cut = prompt.cut_tokens + max(0, len(ids) - max_length)
        row = TokenRow(prompt.input_ids, decoder_ids=ids[:max_length])
        found.append(Example((row,), learned[:max_length], cut))
    _need_target(bool(found))
    return found


def _need_target(there: bool) -> None:
    if not there:
        raise DataError(
            "a row has no token to learn: its completion or assistant turn is empty",
            code="nothing_to_learn",
            param="dataset_id",
        )


def record_messages(record: Record) -> list[dict[str, Any]]:
    """A record as a conversation.

    Args:
        record: ``messages``, or ``prompt`` and ``completion``.

    Returns:
        Messages of ``role`` and ``content``; the last one is what is to be written.
    """
    if "messages" in record:
        return list(record["messages"])
    return [
        {"role": "user", "content": str(record["prompt"])},
        {"role": "assistant", "content": str(record["completion"])},
    ]


def answered_rows(records: Sequence[Record], count: int) -> list[Record]:
    """The evenly spaced rows that an evaluation answers in full.

    Args:
        records: Canonical records.
        count: How many, at least one; plain text has nothing to answer.

    Returns:
        At most so many of them.
    """
    asked = [r for r in records if "completion" in r or r.get("messages")]
    return [asked[place] for place in evenly_spaced(len(asked), count)]


def references_of(record: Record) -> list[str]:
    """What an answer is compared with.

    Args:
        record: A canonical record that has an answer.

    Returns:
        The record's ``references``, else its own answer.
    """
    return record.get("references") or [record_messages(record)[-1]["content"]]


def input_messages(value: Any) -> list[dict[str, Any]]:
    """An input as a conversation.

    Args:
        value: ``"prompt"``, ``{"prompt"}`` or ``{"messages"}``.

    Returns:
        Messages of ``role`` and ``content``; the last one is not the assistant's.

    Raises:
        RowError: Wrong shape (``bad_input``).
    """
    if isinstance(value, dict) and isinstance(value.get("prompt"), str):
        value = value["prompt"]
    if isinstance(value, str) and value:
        return [{"role": "user", "content": value}]
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list) or not messages:
        raise RowError('expected a prompt or {"messages"}', code="bad_input", param="input")
    for place, message in enumerate(messages):
        known = isinstance(message, dict) and message.get("role") in ROLES
        if not known or not isinstance(message.get("content"), str):
            raise RowError(
                f"a message needs a role ({', '.join(ROLES)}) and a text as content",
                code="bad_input",
                param=f"input.messages.{place}",
            )
    if messages[-1]["role"] == "assistant":
        raise RowError(
            "the last message must not be the assistant's", code="bad_input", param="input.messages"
        )
    return messages


def _flatten(turns: Sequence[Turn]) -> tuple[list[int], Target]:
    ids: list[int] = []
    learned: Target = []
    for turn in turns:
        ids += turn.input_ids
        learned += [turn.learned] * len(turn.input_ids)
    return ids, learned


def _prompt_ids(
    base: Base, messages: Sequence[dict[str, Any]], max_length: int
) -> tuple[list[int], int]:
    """Tokens up to where the answer begins, and how many did not fit (never any in one row)."""
    if base.text.answer_start is None:
        return _flatten(base.text.encode_conversation(messages))[0], 0
    prompt = base.text.encode_prompt(messages, max_length=max_length)
    return prompt.input_ids, prompt.cut_tokens


def _learned(base: Base, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (P, V) and targets (P,) of the learned tokens, and the row (P,) of each."""
    ids = batch.final_ids  # (B, T)
    # Found on the CPU, where targets are: a device that is asked how many there are has to wait.
    marks = torch.zeros(ids.shape, dtype=torch.bool)  # (B, T)
    for row, learned in enumerate(batch.targets):
        marks[row, : len(learned)] = torch.tensor(learned)
    # The token at t + 1 is predicted at t.
    rows, places = (own.to(ids.device) for own in marks[:, 1:].nonzero(as_tuple=True))  # (P,)
    logits = base.vocabulary_logits(hidden[rows, places])
    return logits, ids[rows, places + 1], rows


def _token_rows(
    forward: Forward, examples: Sequence[Example], records: int, batch_size: int
) -> dict[str, Resampled]:
    sums = np.zeros((records, 3))  # losses, likeliest tokens, tokens
    for rows in batches_by_length(examples, batch_size=batch_size):
        batch = collate(
            [examples[row] for row in rows],
            pad_id=forward.base.text.pad_id,
            device=forward.base.device,
        )
        logits, targets, owner = _learned(forward.base, forward.hidden(batch), batch)
        losses = cross_entropy(logits, targets, reduction="none").double().cpu().numpy()
        right = (logits.argmax(-1) == targets).double().cpu().numpy()
        own = np.stack([losses, right, np.ones(len(losses))], 1)  # (P, 3)
        place = np.array([examples[row].record for row in rows])[owner.cpu().numpy()]
        np.add.at(sums, place, own)
    loss = ratio_of_sums(sums[:, 0], sums[:, 2])
    return {
        "loss": loss,
        "perplexity": RowStatistics(
            loss.values, lambda own: np.exp(np.minimum(loss.reduce(own), MAX_LOSS))
        ),
        "token_accuracy": ratio_of_sums(sums[:, 1], sums[:, 2]),
    }


@dataclass(frozen=True)
class AnswerBatch:
    """Prompts that are answered side by side.

    Attributes:
        places: Of the rows among all that are answered.
        prompts: Token ids up to where each answer begins.
        records: The same rows.
        most_tokens: Of an answer.
    """

    places: list[int]
    prompts: list[list[int]]
    records: list[Record]
    most_tokens: int


def answer_batches(
    base: Base, records: Sequence[Record], count: int, *, batch_size: int
) -> Iterator[AnswerBatch]:
    """How an evaluation answers evenly spaced rows in the place of their last turn.

    Rows whose prompt leaves no room for an answer are left out: serving refuses them.

    Args:
        base: Its tokenizer, template and length.
        records: Canonical records.
        count: How many to answer, at least one.
        batch_size: Most rows side by side.

    Yields:
        Rows of similar length, the longest first.
    """
    asked, prompts = list[Record](), list[list[int]]()
    for record in answered_rows(records, count):
        prompt, _ = _prompt_ids(base, record_messages(record)[:-1], base.max_length)
        if base.answer_room(len(prompt)) > 0:
            asked.append(record)
            prompts.append(prompt)
    lengths = [len(prompt) for prompt in prompts]
    most = [min(MAX_EVALUATION_TOKENS, base.answer_room(length)) for length in lengths]
    for rows in _side_by_side(lengths, most, batch_size):
        own = [prompts[row] for row in rows]
        yield AnswerBatch(rows, own, [asked[row] for row in rows], most[rows[0]])


def _answer_rows(
    forward: Forward, records: Sequence[Record], count: int, batch_size: int
) -> tuple[list[str], list[list[str]]]:
    """Greedy answers and their references, in the order of the rows."""
    found: dict[int, tuple[str, list[str]]] = {}
    for batch in answer_batches(forward.base, records, count, batch_size=batch_size):
        sampling = [Sampling(max_new_tokens=batch.most_tokens)] * len(batch.prompts)
        answers = forward.generate(batch.prompts, sampling)
        for place, record, answer in zip(batch.places, batch.records, answers, strict=True):
            found[place] = (answer.text.strip(), references_of(record))
    told = [found[place] for place in sorted(found)]
    return [text for text, _ in told], [references for _, references in told]


def _side_by_side(
    lengths: Sequence[int], most: Sequence[int], batch_size: int
) -> Iterator[list[int]]:
    """Places of prompts in batches of similar length, the longest first.

    Rows whose answers may be of ``most`` tokens stand together, so that none is cut for another.
    """
    order = sorted(range(len(lengths)), key=lambda place: -lengths[place])
    for _, alike in groupby(order, key=lambda place: most[place]):
        places = list(alike)
        start = 0
        while start < len(places):
            longest = max(1, lengths[places[start]])
            rows = max(1, min(batch_size, MOST_ATTENDED // longest**2))
            yield places[start : start + rows]
            start += rows

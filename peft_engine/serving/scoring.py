"""How likely given answers are: read behind one prompt, as in training, instead of being written.

The score of an answer is the log-likelihood of its tokens with the one that ends it, so that its
exponential is the probability that the model writes exactly this answer, at temperature 1, and the
scores of several answers can be compared whatever their lengths.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.delta import Delta
from peft_engine.errors import DataError, RowError
from peft_engine.methods.table import METHODS
from peft_engine.parts.batching import Batch, Example, TokenRow
from peft_engine.parts.packing import pack
from peft_engine.serving.options import refuse_options
from peft_engine.tasks.likelihood import mean_log_likelihoods
from peft_engine.tasks.text_generation import TextGeneration, input_messages

# Legend of axes: B answers, T tokens, D width.

ANSWERS = "answers"
"""The option that names them."""
MAX_ANSWERS = 255
MAX_COMPUTED_TOKENS = 1 << 20
"""Of one row: 255 answers to four thousand tokens where every answer reads its prompt anew."""
FORWARD_TOKENS = 1024
"""Of one forward over answers, padding counted, where nobody says otherwise."""
PACKED_TOKENS = 1 << 14
"""Answers of one packed forward, with the prompt before each and padding, since attention is given
queries, keys and values of all of these places: some hundred megabytes."""

_GENERATION = TextGeneration()


def read_answers(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Read which answers are to be scored.

    Args:
        options: As they were asked.

    Returns:
        The answers.

    Raises:
        RowError: They are no list of different texts, or other options stand beside them
            (``bad_option``).
    """
    refuse_options(options, frozenset({ANSWERS}))
    found = options[ANSWERS]
    is_list = isinstance(found, list | tuple) and 1 <= len(found) <= MAX_ANSWERS
    if not is_list or not all(isinstance(text, str) and text for text in found):
        raise RowError(
            f"{ANSWERS} must be a list of 1 to {MAX_ANSWERS} texts",
            code="bad_option",
            param=f"options.{ANSWERS}",
        )
    if len(set(found)) < len(found):
        raise RowError(
            "every answer must be there once", code="bad_option", param=f"options.{ANSWERS}"
        )
    return tuple(found)


def encode_answers(
    base: Base, value: Any, answers: tuple[str, ...], *, shares_prompt: bool
) -> tuple[tuple[Example, ...], int]:
    """Lay answers out behind their prompt.

    Args:
        base: A base that generates.
        value: ``"prompt"``, ``{"prompt"}`` or ``{"messages"}``.
        answers: What may be said.
        shares_prompt: As of ``can_share``.

    Returns:
        One example for each answer, whose target is how many of its last tokens are the answer;
        and how many tokens of each are the prompt.

    Raises:
        RowError: Wrong shape (``bad_input``), refused by the chat template (``template_refused``),
            or too long (``too_long``).
    """
    try:
        prompt = _GENERATION.encode_input(base, value, max_length=base.max_length)
        replies = _encode_replies(base, value, answers)
    except DataError as error:
        raise RowError(error.message, code=error.code, param="input") from error
    room, start = base.answer_room(len(prompt)), list(base.text.answer_start or ())
    longest = max(len(reply) for reply in replies)
    if longest > room:
        raise RowError(
            f"an answer has {longest} tokens and {room} of the context are left",
            code="too_long",
            param="input",
        )
    if base.text.answer_start is None:
        rows = [TokenRow([*prompt, *reply]) for reply in replies]
    else:
        rows = [TokenRow(prompt, decoder_ids=[*start, *reply]) for reply in replies]
    examples = [Example((row,), len(reply)) for row, reply in zip(rows, replies, strict=True)]
    total = computed_tokens(examples, prompt_tokens=len(prompt), shares_prompt=shares_prompt)
    if total > MAX_COMPUTED_TOKENS:
        raise RowError(
            f"prompt and answers come to {total} tokens, the prompt counted as often as it is "
            f"read; {MAX_COMPUTED_TOKENS} are computed: ask about fewer answers, or a shorter text",
            code="too_long",
            param="input",
        )
    return tuple(examples), len(prompt)


def can_share(base: Base, delta: Delta | None) -> bool:
    """Whether one reading of a prompt serves all of its answers.

    Args:
        base: The base.
        delta: The delta in force, if any.

    Returns:
        False where a token looks at later ones, or a method acts on attention.
    """
    methods = () if delta is None else delta.manifest.methods
    return base.packs and all(METHODS[own.type].treats_tokens_alone for own in methods)


def computed_tokens(examples: Sequence[Example], *, prompt_tokens: int, shares_prompt: bool) -> int:
    """Count what answers cost.

    Args:
        examples: Of ``encode_answers``.
        prompt_tokens: What each begins with.
        shares_prompt: As of ``can_share``.

    Returns:
        Tokens of all answers, and of the prompt once for each forward that reads it.
    """
    whole = sum(example.tokens for example in examples)
    if not shares_prompt:
        return whole
    bounds = {"prompt_tokens": prompt_tokens, "most_tokens": FORWARD_TOKENS}
    forwards = sum(1 for _ in packed_parts(examples, **bounds))
    return whole - prompt_tokens * (len(examples) - forwards)


def packed_parts(
    examples: Sequence[Example], *, prompt_tokens: int, most_tokens: int
) -> Iterator[tuple[int, int]]:
    """Deal answers that share their prompt out to forwards of a bounded size.

    Args:
        examples: Of ``encode_answers``.
        prompt_tokens: What each begins with; every forward reads it once.
        most_tokens: Of the answers of one forward; as many as the prompt has are allowed always, so
            that reading it again at most doubles the work.

    Yields:
        Stretches of examples, first and behind the last.
    """
    room = max(most_tokens, prompt_tokens)
    lo = own = longest = 0
    for place, example in enumerate(examples):
        own, longest = own + example.target, max(longest, example.tokens)
        if place > lo and (own > room or longest * (place + 1 - lo) > PACKED_TOKENS):
            yield lo, place
            lo, own, longest = place, example.target, example.tokens
    yield lo, len(examples)


def share_prompt(batch: Batch, *, device: torch.device) -> Batch:
    """Have what several answers begin with read once.

    Args:
        batch: Answers behind one prompt, under one delta that ``can_share``.
        device: Of the base.

    Returns:
        The same batch, packed.
    """
    rows = [row.input_ids for example in batch.examples for row in example.rows]
    return replace(batch, packing=pack(rows, share=True, device=device))


def log_likelihoods(base: Base, hidden: Tensor, batch: Batch) -> Tensor:
    """Score answers.

    Args:
        base: For its language head.
        hidden: (B, T, D).
        batch: Examples of ``encode_answers``.

    Returns:
        (B,) log-likelihoods in nats, fp32.
    """
    counts = torch.tensor(batch.targets, device=hidden.device)  # (B,)
    return mean_log_likelihoods(base, hidden, batch) * counts


def _encode_replies(base: Base, value: Any, answers: tuple[str, ...]) -> list[list[int]]:
    if base.text.answer_start is None:
        return base.text.encode_replies(input_messages(value), answers)
    return [base.text.encode_answer(answer)[-1].input_ids for answer in answers]

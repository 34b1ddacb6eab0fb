"""Tags of the words of a row: from entities to tags, and from numbers of tags to names and back.

Words without a token, cut off or invisible to the tokenizer, are ``O``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peft_engine.parts.batching import Example
from peft_engine.parts.entities import OUTSIDE
from peft_engine.parts.words import Span, is_mark

# Legend of axes: W words that have a token, of one row or of all.


@dataclass(frozen=True)
class Tags:
    """What is to be learned of a row.

    Attributes:
        numbers: Tag of each word, as a number.
        unreachable: Types of entities that no answer could name, since their ends do not fall on
            words or no training row has their type: they count as missed.
        lost: The words of those entities, ascending: they are ``O`` in ``numbers``, and no answer
            of them is right.
    """

    numbers: tuple[int, ...]
    unreachable: tuple[str, ...] = ()
    lost: tuple[int, ...] = ()


def tag_words(
    text: str, spans: Sequence[Span], entities: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[str], list[int]]:
    """Entities with character offsets as tags of words.

    An entity may end before the combining marks and invisible characters at the end of a word.

    Args:
        text: The text.
        spans: Where the words stand.
        entities: ``start``, ``end`` and ``label`` each, in order, without overlap.

    Returns:
        A tag for each word; the types of the entities whose ends fall inside a word or on no word
        at all, since no answer could name them exactly; and the words that these share a character
        with, which are ``O``.
    """
    tags, unreachable, lost = [OUTSIDE] * len(spans), [], list[int]()
    starts = {start: word for word, (start, _) in enumerate(spans)}
    ends = {end: word for word, span in enumerate(spans) for end in _ends(text, span)}
    for entity in entities:
        first, last = starts.get(entity["start"]), ends.get(entity["end"])
        if first is None or last is None:
            unreachable.append(str(entity["label"]))
            own = (entity["start"], entity["end"])
            lost += [w for w, (low, high) in enumerate(spans) if low < own[1] and high > own[0]]
            continue
        kind = entity["label"]
        tags[first : last + 1] = [f"B-{kind}"] + [f"I-{kind}"] * (last - first)
    return tags, unreachable, lost


def _ends(text: str, span: Span) -> range:
    """Where an entity may end that this word is the last one of."""
    start, end = span
    bare = end
    while bare > start + 1 and is_mark(text[bare - 1]):
        bare -= 1
    return range(bare, end + 1)


def seen_numbers(example: Example) -> list[int]:
    """Tags of the words of a row that have a token.

    Args:
        example: The row, its target ``Tags``.

    Returns:
        W numbers.
    """
    return [example.target.numbers[word] for word in example.layout.seen]


def tag_targets(examples: Sequence[Example]) -> Tensor:
    """Tags of the words that have a token, of all rows.

    Args:
        examples: The rows.

    Returns:
        (W,) int64.
    """
    numbers = [number for example in examples for number in seen_numbers(example)]
    return torch.tensor(numbers, dtype=torch.int64)


def name_tags(example: Example, numbers: Tensor, labels: Sequence[str]) -> list[str]:
    """A tag for each word of a row, by the numbers of those words that have a token.

    Args:
        example: The row.
        numbers: (W,) tags of the words that have a token.
        labels: Names of the tags.

    Returns:
        A name for each word.
    """
    tags = [OUTSIDE] * len(example.layout.spans)
    for word, number in zip(example.layout.seen, numbers.tolist(), strict=True):
        tags[word] = labels[number]
    return tags


def wanted_tags(labels: Sequence[str], examples: Sequence[Example]) -> list[list[str]]:
    """True tags of the words of each row.

    Args:
        labels: Names of the tags.
        examples: The rows.

    Returns:
        A name for each word.
    """
    return [[labels[number] for number in e.target.numbers] for e in examples]


def unreachable_types(examples: Sequence[Example]) -> list[tuple[str, ...]]:
    """Types of the entities of each row that no answer could name.

    Args:
        examples: The rows.

    Returns:
        See ``Tags.unreachable``.
    """
    return [example.target.unreachable for example in examples]


def lost_words(examples: Sequence[Example]) -> list[tuple[int, ...]]:
    """Words of the entities of each row that no answer could name.

    Args:
        examples: The rows.

    Returns:
        See ``Tags.lost``.
    """
    return [example.target.lost for example in examples]

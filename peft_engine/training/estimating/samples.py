"""A part of a split that stands for the whole."""

from dataclasses import replace

from peft_engine.parts.spacing import evenly_spaced
from peft_engine.tasks.protocol import Encoded


def take_rows(split: Encoded, rows: int) -> Encoded:
    """Evenly spaced rows of a split.

    Args:
        split: The split.
        rows: How many records, at least one.

    Returns:
        The same object where there are no more.
    """
    if len(split.records) <= rows:
        return split
    places = evenly_spaced(len(split.records), rows)
    number = {place: own for own, place in enumerate(places)}
    examples = [
        replace(example, record=number[example.record])
        for example in split.examples
        if example.record in number
    ]
    return Encoded([split.records[place] for place in places], examples)


def count_tokens(split: Encoded) -> int:
    """Tokens of all of its examples.

    Args:
        split: The split.

    Returns:
        Their number.
    """
    return sum(example.tokens for example in split.examples)


def count_positions(split: Encoded) -> int:
    """About the positions of a pass over it, in which rows of like length stand together.

    Args:
        split: The split.

    Returns:
        Every row at the length of the longest of its example.
    """
    return sum(example.longest_tokens * len(example.rows) for example in split.examples)

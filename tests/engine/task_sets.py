"""A tiny data set for each task that a base of random weights can learn."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.tiny_bases import WORDS

Splits = Mapping[str, Sequence[Mapping[str, Any]]]

OBJECTS = WORDS[3:6]  # card, order, money
REST = [word for word in WORDS if word not in OBJECTS]


def _words(i: int) -> tuple[str, str, str]:
    return OBJECTS[i % 3], REST[(i * 7) % len(REST)], REST[(i * 5 + 2) % len(REST)]


def _multi_label(i: int) -> dict[str, Any]:
    thing, other, third = _words(i)
    labels = [thing] + (["lost"] if i % 2 else ["late"])
    return {"text": f"{other} {thing} {'lost' if i % 2 else 'late'} {third}", "labels": labels}


def _value(i: int) -> dict[str, Any]:
    thing, other, third = _words(i)
    return {"text": f"{other} {thing} {third}", "value": 10.0 * (i % 3) + 5}


def _similarity(i: int) -> dict[str, Any]:
    thing, other, third = _words(i)
    pair = thing if i % 2 else OBJECTS[(i + 1) % 3]
    return {"text": f"{other} {thing}", "text_pair": f"{third} {pair}", "value": float(i % 2)}


def splits_of(make: Any) -> Splits:
    """Rows that are all different from split to split in their place, if not in kind."""
    return {
        "train": [make(i) for i in range(48)],
        "validation": [make(i) for i in range(50, 62)],
        "test": [make(i) for i in range(70, 88)],
    }


SETS: Mapping[str, tuple[str, Splits]] = {
    "multi-label": ("text-classification", splits_of(_multi_label)),
    "regression": ("regression", splits_of(_value)),
    "similarity": ("regression", splits_of(_similarity)),
}
"""``{set: (task, splits)}``."""

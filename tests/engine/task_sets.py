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


def _tagged(i: int) -> dict[str, Any]:
    """What is mine is an entity, with what follows when it is late; the same words else are not."""
    thing, _, third = _words(i)
    mine, late = i % 2 == 0, (i // 2) % 3 == 0
    tokens = ["where", "my" if mine else "a", thing, "late" if late else "new", third]
    tags = ["O", "O", "B-OWN" if mine else "O", "I-OWN" if mine and late else "O", "O"]
    return {"tokens": tokens, "tags": tags}


def _entities(i: int) -> dict[str, Any]:
    """The same with character offsets."""
    row = _tagged(i)
    text, entities = " ".join(row["tokens"]), []
    if "B-OWN" in row["tags"]:
        words = row["tokens"][2 : 4 if "I-OWN" in row["tags"] else 3]
        start = text.index(" ".join(words))
        end = start + len(" ".join(words))
        entities = [{"start": start, "end": end, "label": "OWN"}]
    return {"text": text, "entities": entities}


def _relation(i: int) -> dict[str, Any]:
    """Whether both spans name the same thing: no sum of the two can tell."""
    first, other, third = OBJECTS[i % 2], REST[(i * 7) % 8], REST[(i * 5 + 2) % 8]
    second = OBJECTS[(i // 2) % 2]
    text = f"{other} {first} {third} {second}"
    head = {"start": len(other) + 1, "end": len(other) + 1 + len(first)}
    tail = {"start": len(text) - len(second), "end": len(text)}
    return {"text": text, "head": head, "tail": tail, "label": "eq" if first == second else "ne"}


def _choice(i: int) -> dict[str, Any]:
    """The choice with the lost thing, whatever the question."""
    _, other, third = _words(i)
    choices = [f"{third} lost", f"{other} new", f"{other} late"][: 2 + i % 2]
    answer = (i // 2) % len(choices)
    choices[0], choices[answer] = choices[answer], choices[0]
    return {"question": f"where is {third}", "choices": choices, "answer": answer}


def _question(i: int) -> dict[str, Any]:
    """What follows "my" is the answer; where nothing is mine there is none."""
    thing = OBJECTS[i % 3]
    filler = [REST[(i + k) % 8] for k in range(2 + i % 17)]
    words = [word for word in filler if word not in ("my", "a")] + ["new"]
    if i % 4 == 3:
        return {"question": "where is", "context": " ".join([*words, "a", thing]), "answers": []}
    context = " ".join([*words, "my", thing, *words[:3]])
    start = context.index(f"my {thing}") + 3
    return {
        "question": "where is",
        "context": context,
        "answers": [{"text": thing, "start": start}],
    }


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
    "tags": ("token-classification", splits_of(_tagged)),
    "entities": ("token-classification", splits_of(_entities)),
    "relation": ("relation-extraction", splits_of(_relation)),
    "choice": ("multiple-choice", splits_of(_choice)),
    "question": ("question-answering", splits_of(_question)),
    "similarity": ("regression", splits_of(_similarity)),
}
"""``{set: (task, splits)}``."""

"""Tags of words compared entity by entity as seqeval does it, and a table of types and mistakes."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from peft_engine.parts.classes import class_table, confusion_list, micro_f1_rows
from peft_engine.parts.statistics import Evaluation, evaluation_of, ratio_of_sums

OUTSIDE = "O"

Entity = tuple[str, int, int]
"""Type, first and last word."""


def evaluate_tags(
    given: Sequence[Sequence[str]],
    wanted: Sequence[Sequence[str]],
    unreachable: Sequence[Sequence[str]],
    lost_words: Sequence[Sequence[int]] | None = None,
) -> Evaluation:
    """Metrics of tags, entity by entity.

    Args:
        given: Predicted tags of each row.
        wanted: True tags of each row.
        unreachable: Types of true entities of each row that no tags can name.
        lost_words: Words of those entities, whose tags are never right; None: there are none.

    Returns:
        ``f1``, ``precision`` and ``recall`` over entities of all rows, as seqeval has them in its
        default mode: an entity is right when type, first and last word are. ``accuracy`` over
        words. ``details`` has ``classes`` (the types) and ``confusions``.
    """
    # Imported late: it takes a second that every start of a process would wait for.
    from seqeval.metrics import f1_score, precision_score, recall_score
    from seqeval.metrics.sequence_labeling import get_entities

    lost = [[tag for kind in own for tag in (OUTSIDE, f"B-{kind}")] for own in unreachable]
    full = [[*row, *own] for row, own in zip(wanted, lost, strict=True)]
    made = [[*row, *([OUTSIDE] * len(own))] for row, own in zip(given, lost, strict=True)]
    never = [set(own) for own in lost_words or [()] * len(full)]
    counts = np.zeros((len(full), 5))  # hits, made, true, right words, words
    table = _Table()
    for place, (own, answer) in enumerate(zip(full, made, strict=True)):
        true, found = set(get_entities(own)), set(get_entities(answer))
        table.add(true, found)
        words = enumerate(zip(wanted[place], given[place], strict=True))
        right = sum(a == b and word not in never[place] for word, (a, b) in words)
        counts[place] = (len(true & found), len(found), len(true), right, len(wanted[place]))
    hits, answers, truth, right_words, all_words = counts.T
    rows = {
        "f1": micro_f1_rows(hits, answers, truth),
        "precision": ratio_of_sums(hits, answers),
        "recall": ratio_of_sums(hits, truth),
        "accuracy": ratio_of_sums(right_words, all_words),
    }
    values = {
        "f1": float(f1_score(full, made, zero_division=0)),
        "precision": float(precision_score(full, made, zero_division=0)),
        "recall": float(recall_score(full, made, zero_division=0)),
    }
    return evaluation_of(rows, values=values, details=table.as_details())


class _Table:
    """Counts by type, and which type was taken for which."""

    def __init__(self) -> None:
        self._hits: Counter[str] = Counter()
        self._made: Counter[str] = Counter()
        self._true: Counter[str] = Counter()
        self._mistakes: Counter[tuple[str, str]] = Counter()

    def add(self, true: set[Entity], found: set[Entity]) -> None:
        """Take the entities of one row into account."""
        self._hits.update(kind for kind, _, _ in true & found)
        self._made.update(kind for kind, _, _ in found)
        self._true.update(kind for kind, _, _ in true)
        wanted = {(first, last): kind for kind, first, last in true}
        given = {(first, last): kind for kind, first, last in found}
        for words in wanted.keys() | given.keys():
            pair = wanted.get(words, OUTSIDE), given.get(words, OUTSIDE)
            if pair[0] != pair[1]:
                self._mistakes[pair] += 1

    def as_details(self) -> dict[str, Any]:
        """``classes`` and ``confusions``; ``O`` stands for no entity over just those words."""
        kinds = sorted(self._true.keys() | self._made.keys())
        counts = [[own[kind] for kind in kinds] for own in (self._hits, self._made, self._true)]
        return {
            "classes": class_table(kinds, *counts),
            "confusions": confusion_list(self._mistakes),
        }

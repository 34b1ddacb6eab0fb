"""What a head of tags is given beside its features, chosen by rows left out in turn.

Words that are names wherever they stand are worth learning by heart; where names are always new
ones, a table keeps the head from learning what names look like. No fixed choice serves both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from peft_engine.parts.batching import Example
from peft_engine.parts.entities import evaluate_tags
from peft_engine.parts.fits import Check
from peft_engine.parts.tag_paths import best_path, fit_transitions
from peft_engine.parts.tags import (
    name_tags,
    seen_numbers,
    tag_targets,
    unreachable_types,
    wanted_tags,
)
from peft_engine.parts.word_features import fit_word_head, table_logits

# Legend of axes: N words that have a token, R rows that are looked at, F features, C tags.

MAX_CHOOSING_WORDS = 15_000
"""Most words, of evenly spaced rows, that are looked at: about a dozen fits."""
STRENGTHS = (0.0, 1.0, 4.0)
"""Lengths of the feature "it is this word" that are tried, where a hidden state has length 1. With
documents left out in turn 2 lay between 1 and 4, and 8 was no better (benchmarks/LOG.md)."""
_CHOOSING_ITERATIONS = 40
"""Steps of a fit that only decides between strengths: F1 is within half a point of the end then."""
_UNDECIDED = 0.01
"""F1 that some hundred names cannot tell apart: within it the strongest table is taken, since other
documents share words with those of training more surely than what stands around them."""
BLOCKS = 4
"""Parts of the training rows that are left out in turn. Rows of one document mostly stand together,
so that a part is a document, or close to it."""


@dataclass(frozen=True)
class TagChoice:
    """What a head of tags is given.

    Attributes:
        strength: Length of the feature "it is this word"; 0: no table of words.
        together: Whether the tags of a row are decided together.
    """

    strength: float
    together: bool


def choose_for_tags(
    examples: Sequence[Example],
    features: Tensor,
    places: Tensor,
    *,
    labels: Sequence[str],
    check: Check,
) -> TagChoice:
    """How much a head should trust which word it is, and which tag comes before.

    Args:
        examples: Training rows with their tags.
        features: (N, F) fp32, of their words.
        places: (N,) rows of the table.
        labels: C names of tags.
        check: May raise to interrupt.

    Returns:
        The strongest table that is about as good as the best choice in F1 over ``BLOCKS`` parts
        left out in turn, and whether deciding together is no worse with it. Neither where there
        are too few rows to tell, or where no choice finds anything.
    """
    counts = torch.tensor([len(example.layout.seen) for example in examples])
    step = max(-(-int(counts.sum()) // MAX_CHOOSING_WORDS), 1)
    own, asked = examples[::step], torch.arange(len(examples)) % step == 0  # (all rows,)
    words = asked.repeat_interleave(counts)  # (N,)
    blocks = torch.arange(len(examples))[asked] * BLOCKS // len(examples)  # (R,)
    parts = sorted(set(blocks.tolist()))
    if len(parts) < 2:
        return TagChoice(0.0, together=False)
    kept = {part: [e for e, b in zip(own, blocks, strict=True) if b != part] for part in parts}
    transitions = {
        part: fit_transitions([seen_numbers(e) for e in rows], classes=len(labels))
        for part, rows in kept.items()
    }
    wanted, unreachable = wanted_tags(labels, own), unreachable_types(own)
    values: dict[tuple[float, bool], float] = {}
    for strength in STRENGTHS:
        logits = _left_out(
            features[words],
            places[words],
            tag_targets(own),
            blocks.repeat_interleave(counts[asked]),
            classes=len(labels),
            strength=strength,
            check=check,
        )
        rows = logits.split(counts[asked].tolist())  # type: ignore[no-untyped-call]
        paths = [best_path(row, transitions[int(b)]) for row, b in zip(rows, blocks, strict=True)]
        for together, numbers in ((False, [row.argmax(-1) for row in rows]), (True, paths)):
            given = [name_tags(e, n, labels) for e, n in zip(own, numbers, strict=True)]
            values[strength, together] = evaluate_tags(given, wanted, unreachable).metrics["f1"]
    return pick_best(values)


def pick_best(values: dict[tuple[float, bool], float]) -> TagChoice:
    """Choose by F1.

    Args:
        values: F1 of each strength, decided word by word (False) and together (True).

    Returns:
        See ``choose_for_tags``.
    """
    best = max(values.values())
    if not best:
        return TagChoice(0.0, together=False)  # nothing is known, so that the smallest head will do
    strength = max(s for (s, _), value in values.items() if value >= best - _UNDECIDED)
    return TagChoice(strength, together=values[strength, True] >= values[strength, False])


def _left_out(
    features: Tensor,
    places: Tensor,
    targets: Tensor,
    blocks: Tensor,
    *,
    classes: int,
    strength: float,
    check: Check,
) -> Tensor:
    """(N, C) scores of words by heads that were fitted without their blocks."""
    found, rows = torch.zeros(len(targets), classes), int(places.max()) + 1
    for part in blocks.unique().tolist():  # type: ignore[no-untyped-call]
        held = blocks == part
        own = fit_word_head(
            features[~held],
            places[~held],
            targets[~held],
            classes=classes,
            rows=rows,
            strength=strength,
            iterations=_CHOOSING_ITERATIONS,
            check=check,
        )
        found[held] = (
            table_logits(features[held], places[held], own)
            if strength
            else linear(features[held], own["weight"], own["bias"])
        )
    return found

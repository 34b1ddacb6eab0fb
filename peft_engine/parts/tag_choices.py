"""What a head of tags is given beside its features, chosen by rows left out in turn.

Words that are names wherever they stand are worth learning by heart; where names are always new
ones, a table keeps the head from learning what names look like. No fixed choice serves both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear

from peft_engine.parts.batching import Example
from peft_engine.parts.entities import OUTSIDE, evaluate_tags
from peft_engine.parts.fits import Check
from peft_engine.parts.tag_paths import decide_tags, fit_transitions
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
        outside_penalty: How much less ``O`` counts than it scores where tags are decided.
    """

    strength: float
    together: bool
    outside_penalty: float = 0.0


def choose_for_tags(
    examples: Sequence[Example],
    features: Tensor,
    places: Tensor,
    *,
    labels: Sequence[str],
    check: Check,
) -> TagChoice:
    """How much a head should trust which word it is, which tag comes before, and ``O``.

    Args:
        examples: Training rows with their tags.
        features: (N, F) fp32, of their words.
        places: (N,) rows of the table.
        labels: C names of tags.
        check: May raise to interrupt.

    Returns:
        The strongest table that is about as good as the best choice in F1 over ``BLOCKS`` parts
        left out in turn, whether deciding together is no worse with it, and the penalty on ``O``
        that suits that F1 (``penalize_outside``) if it is no worse either. None of them where
        there are too few rows to tell, or where no choice finds anything.
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
    scores = {
        strength: _left_out(
            features[words],
            places[words],
            tag_targets(own),
            blocks.repeat_interleave(counts[asked]),
            classes=len(labels),
            strength=strength,
            check=check,
        ).split(counts[asked].tolist())  # type: ignore[no-untyped-call]
        for strength in STRENGTHS
    }
    outside = list(labels).index(OUTSIDE)

    def measure(choice: TagChoice) -> float:
        given = []
        for example, row, block in zip(own, scores[choice.strength], blocks.tolist(), strict=True):
            numbers = decide_tags(
                row,
                transitions=transitions[block] if choice.together else None,
                outside=outside,
                outside_penalty=choice.outside_penalty,
            )
            given.append(name_tags(example, numbers, labels))
        return float(evaluate_tags(given, wanted, unreachable).metrics["f1"])

    values = {(s, t): measure(TagChoice(s, together=t)) for s in STRENGTHS for t in (False, True)}
    chosen = pick_best(values)
    value = values[chosen.strength, chosen.together]
    if not value:
        return chosen
    lenient = replace(chosen, outside_penalty=penalize_outside(value))
    return lenient if measure(lenient) >= value else chosen


def penalize_outside(f1: float) -> float:
    """How much less ``O`` should count for the best F1.

    F1 is largest when what is more probable than half of that F1 is answered, not what is more
    probable than one half: a name that is missed costs more than one that is invented, the more so
    the fewer are found. Source: Lipton, Elkan and Naryanaswamy 2014 (arXiv 1402.1892), theorem 1.

    Args:
        f1: The F1 that can be had, above 0 and at most 1.

    Returns:
        The difference between the two as log-odds, in thousandths.
    """
    return round(math.log((2 - f1) / f1), 3)


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

"""What a head may know of words beside hidden states: how they are written, and which they are.

A linear model has one weight vector for every word that it learned by heart: a table, whose rows
words find by their hash. A word that training never saw has a row of zeros, unless its row is also
that of another one, so the table says nothing of it.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear

from peft_engine.parts.fits import FIT_ITERATIONS, Check, Head, fit_head, fit_table_head
from peft_engine.parts.words import SPELLING_MARKS, Words, number_word, spell_word

# Legend of axes: N words that have a token, S marks of spelling, F features, C tags, H rows of the
# table.

SPELLING_SIZE = 0.5
"""Value of a mark of spelling: with the one or two marks that a word has, it and its neighbours are
about as long as the hidden state, which has length 1."""
ROWS_PER_WORD = 8
"""Rows of a table for each word of training: a new word falls on the row of a known one in less
than one of eight cases."""
MAX_TABLE_ROWS = 65_536
"""2.6 MB of fp32 for ten tags; from 8,192 words on rows are shared more often."""
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


def spelling_features(layouts: Sequence[Words]) -> Tensor:
    """How each word that has a token, the one before and the one behind are written.

    Args:
        layouts: Words of each row.

    Returns:
        (N, 3 S) fp32.
    """
    found = [torch.zeros(0, 3 * SPELLING_MARKS)]
    for layout in layouts:
        marks = torch.zeros(len(layout.spans) + 2, SPELLING_MARKS)  # nothing before and behind
        words = [layout.text[start:end] for start, end in layout.spans]
        if words:
            marks[1:-1] = torch.tensor([spell_word(word) for word in words]) * SPELLING_SIZE
        seen = torch.tensor(layout.seen, dtype=torch.int64)
        found.append(torch.cat([marks[seen + 1], marks[seen], marks[seen + 2]], dim=-1))
    return torch.cat(found)


def table_places(layouts: Sequence[Words], *, rows: int) -> Tensor:
    """Which row of a table is that of each word that has a token.

    Args:
        layouts: Words of each row.
        rows: H.

    Returns:
        (N,) int64.
    """
    spans = ((layout.text, *layout.spans[word]) for layout in layouts for word in layout.seen)
    numbers = [number_word(text[start:end]) % rows for text, start, end in spans]
    return torch.tensor(numbers, dtype=torch.int64)


def size_table(layouts: Sequence[Words]) -> int:
    """Rows of a table for the words of a training split.

    Args:
        layouts: Words of each row.

    Returns:
        H, a power of two.
    """
    known = {
        number_word(layout.text[start:end])
        for layout in layouts
        for start, end in (layout.spans[word] for word in layout.seen)
    }
    wanted = ROWS_PER_WORD * max(len(known), 1)
    return min(1 << (wanted - 1).bit_length(), MAX_TABLE_ROWS)


def table_logits(features: Tensor, places: Tensor, head: Mapping[str, Tensor]) -> Tensor:
    """Scores by features and by which word it is.

    Args:
        features: (N, F).
        places: (N,) rows of the table.
        head: ``weight`` (C, F), ``bias`` (C,) and ``words`` (C, H).

    Returns:
        (N, C).
    """
    return linear(features, head["weight"], head["bias"]) + embedding(places, head["words"].T)


def choose_strength(
    features: Tensor,
    places: Tensor,
    targets: Tensor,
    blocks: Tensor,
    *,
    classes: int,
    measure: Callable[[Tensor], float],
    check: Check,
) -> float:
    """How much a head should trust which word it is, by cross-validation over blocks.

    Words that are names wherever they stand are worth learning by heart; where names are always
    new ones, a table keeps the head from learning what names look like.

    Args:
        features: (N, F) fp32.
        places: (N,) rows of the table.
        targets: (N,) tags.
        blocks: (N,) which part of the training rows a word is of.
        classes: C.
        measure: Value of tags (N,), the more the better.
        check: May raise to interrupt.

    Returns:
        The strongest of ``STRENGTHS`` that is about as good as the best; 0: better without a
        table.
    """
    parts = sorted(set(blocks.tolist()))
    if len(parts) < 2:
        return 0.0
    rows, values = int(places.max()) + 1, []
    for strength in STRENGTHS:
        given = torch.zeros_like(targets)
        for part in parts:
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
            logits = (
                table_logits(features[held], places[held], own)
                if strength
                else linear(features[held], own["weight"], own["bias"])
            )
            given[held] = logits.argmax(-1)
        values.append(measure(given))
    if not max(values):
        return 0.0  # nothing is known of any strength, so that the smallest head will do
    return max(
        strength
        for strength, value in zip(STRENGTHS, values, strict=True)
        if value >= max(values) - _UNDECIDED
    )


def fit_word_head(
    features: Tensor,
    places: Tensor,
    targets: Tensor,
    *,
    classes: int,
    rows: int,
    strength: float,
    check: Check,
    iterations: int = FIT_ITERATIONS,
) -> Head:
    """Multinomial logistic regression of words, with a table unless it has no strength.

    Args:
        features: (N, F) fp32.
        places: (N,) rows of the table.
        targets: (N,) tags.
        classes: C.
        rows: H.
        strength: Length of the feature "it is this word".
        check: May raise to interrupt.
        iterations: Most steps of L-BFGS.

    Returns:
        ``weight`` (C, F), ``bias`` (C,), and with a table ``words`` (C, H).
    """
    if not strength:
        return fit_head(features, targets, classes=classes, iterations=iterations, check=check)
    return fit_table_head(
        features,
        places,
        targets,
        classes=classes,
        rows=rows,
        strength=strength,
        iterations=iterations,
        check=check,
    )

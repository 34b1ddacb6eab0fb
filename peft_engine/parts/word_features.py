"""What a head may know of words beside hidden states: how they are written, and which they are.

A linear model has one weight vector for every word that it learned by heart: a table, whose rows
words find by their hash. A word that training never saw has a row of zeros, unless its row is also
that of another one, so the table says nothing of it.
"""

from collections.abc import Mapping, Sequence

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

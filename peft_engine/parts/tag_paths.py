"""Tags of a row decided together: which tag follows which, and the best way through a row.

A linear head decides each word by itself, and cuts names into pieces: it finds "Hill" where the
name is "Gold Hill". How much likelier a tag is behind another than anywhere is counted in the
training rows, and the tags of a row are then those whose scores and steps together are best.

Source: scores of a discriminative model on the arcs of a Markov chain, the chain with a weight of
its own: Bourlard and Morgan 1994, Connectionist Speech Recognition, chapter 7. Best path: Viterbi
1967. A weight on ``O`` that trades precision for recall: Minkov, Wang, Tomasic and Cohen 2006, NER
Systems that Suit User's Preferences.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from peft_engine.errors import DeltaError

# Legend of axes: W words of a row, C tags, K tags of an older head. Row 0 of transitions is that of
# the first word of a row, row 1 + t that of a word behind tag t.

TRANSITION_WEIGHT = 0.5
"""How much a step counts beside the scores of its word, which know the neighbours too. Of 0.25 to 1
it was best or close to it with documents of ``sec_ner`` and blocks of ``wnut17_ner`` left out
(benchmarks/LOG.md)."""
SMOOTHING_WORDS = 20
"""Words behind each tag that are imagined as tagged as words in general are, so that a step that
few words took says little, and one that none took is not forbidden."""


def fit_transitions(rows: Sequence[Sequence[int]], *, classes: int) -> Tensor:
    """How much likelier each tag is behind each other one than anywhere.

    Args:
        rows: Tags of the words of each training row.
        classes: C.

    Returns:
        (C + 1, C) fp32 logarithms of ratios, times ``TRANSITION_WEIGHT``; 0 behind a tag that no
        row has.
    """
    counts = np.zeros((classes + 1, classes))
    for row in rows:
        before = [0, *(1 + number for number in row[:-1])]
        np.add.at(counts, (before[: len(row)], list(row)), 1)
    anywhere = (counts.sum(0) + 1) / (counts.sum() + classes)  # (C,)
    behind = counts.sum(1, keepdims=True) + SMOOTHING_WORDS  # (C + 1, 1)
    ratios = (counts + SMOOTHING_WORDS * anywhere) / behind / anywhere  # (C + 1, C)
    return torch.from_numpy(TRANSITION_WEIGHT * np.log(ratios)).float()


def grow_transitions(kept: Tensor, fresh: Tensor) -> Tensor:
    """Transitions of more tags; those between the old ones stay as they are.

    Args:
        kept: (K + 1, K) of the old tags, which come first.
        fresh: (C + 1, C) counted in rows that have the new tags too.

    Returns:
        (C + 1, C).
    """
    grown = fresh.clone()
    grown[: kept.shape[0], : kept.shape[1]] = kept
    return grown


def decide_tags(
    logits: Tensor, *, transitions: Tensor | None, outside: int, outside_penalty: float
) -> Tensor:
    """The tags of the words of a row.

    Args:
        logits: (W, C) on the CPU; W may be 0.
        transitions: (C + 1, C); None: each word is decided by itself.
        outside: The number of ``O``.
        outside_penalty: How much less ``O`` counts than it scores.

    Returns:
        (W,) int64.

    Raises:
        DeltaError: The transitions are of other tags than the scores.
    """  # noqa: DOC502  raised below
    if outside_penalty:
        logits = logits.clone()
        logits[:, outside] -= outside_penalty
    if transitions is None:
        return logits.softmax(-1).argmax(-1)
    return best_path(logits, transitions)


def best_path(logits: Tensor, transitions: Tensor) -> Tensor:
    """The tags of a row whose scores and steps together are largest.

    Args:
        logits: (W, C) on the CPU; W may be 0.
        transitions: (C + 1, C).

    Returns:
        (W,) int64; of equals the tags with the lowest numbers.

    Raises:
        DeltaError: The transitions are of other tags than the scores.
    """
    words, classes = logits.shape
    if transitions.shape != (classes + 1, classes):
        raise DeltaError(
            f"transitions of shape {tuple(transitions.shape)} do not fit {classes} tags",
            code="delta_corrupt",
        )
    if not words:
        return torch.zeros(0, dtype=torch.int64)
    scores = logits.double().log_softmax(-1).numpy()  # (W, C)
    steps = transitions.detach().double().cpu().numpy()
    best = scores[0] + steps[0]  # (C,) of the ways that end in each tag
    came: list[np.ndarray[tuple[int], np.dtype[np.intp]]] = []
    for word in range(1, words):
        ways = best[:, None] + steps[1:]  # (C before, C)
        came.append(ways.argmax(0))
        best = ways.max(0) + scores[word]
    path = [int(best.argmax())]
    for before in reversed(came):
        path.append(int(before[path[-1]]))
    return torch.tensor(path[::-1])

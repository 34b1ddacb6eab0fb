"""Exact match and F1 of short answers, as SQuAD defines them.

Source: the official evaluation script of SQuAD 2.0 (Rajpurkar et al. 2018, arXiv 1806.03822).
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and surplus blanks.

    Args:
        text: An answer.

    Returns:
        What is compared.
    """
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def score_answer(given: str, wanted: Sequence[str]) -> tuple[float, float]:
    """Compare an answer with all that are right.

    Args:
        given: The answer; "" says that there is none.
        wanted: Right answers; those that come to nothing are left out. None left: the question
            has no answer.

    Returns:
        Exact match (0 or 1) and F1 over words, each the best over the right answers. Where one
        side is empty both are 1 when the other is too, else 0.
    """
    made = normalize_answer(given)
    right = [text for text in map(normalize_answer, wanted) if text] or [""]
    return max(float(made == text) for text in right), max(_f1(made, text) for text in right)


def _f1(given: str, wanted: str) -> float:
    made, true = given.split(), wanted.split()
    if not made or not true:
        return float(made == true)
    shared = sum((Counter(made) & Counter(true)).values())
    return 2 * shared / (len(made) + len(true))

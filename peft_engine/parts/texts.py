"""Written texts against references: BLEU, chrF, ROUGE and exact match, each as sums over rows.

The figures are those of sacrebleu and rouge-score; nothing here counts n-grams itself.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from peft_engine.parts.statistics import (
    Evaluation,
    Floats,
    RowStatistics,
    evaluation_of,
    mean_of_rows,
)
from peft_engine.parts.words import find_words

# Legend of axes: N rows, K statistics of a row, R resamples.

ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
TEXT_METRICS = ("bleu", "chrf", *ROUGE_TYPES, "exact_match")
_ASCII_WORD = re.compile(r"[^\W_]+")

References = Sequence[Sequence[str]]
"""For each row one reference or more."""


def evaluate_texts(texts: Sequence[str], references: References) -> Evaluation:
    """Metrics of written texts.

    Args:
        texts: N answers, at least one; "" is an answer like any other.
        references: At least one for each answer.

    Returns:
        ``bleu`` and ``chrf`` (sacrebleu's defaults, over the corpus, 0 to 100), ``rouge1``,
        ``rouge2`` and ``rougeL`` (F1, mean over rows, 0 to 100) and ``exact_match`` (0 to 1). With
        several references BLEU counts against all together, the others take the best of a row.
    """
    exact = [
        float(any(text.strip() == own.strip() for own in right))
        for text, right in zip(texts, references, strict=True)
    ]
    return evaluation_of(
        {
            "bleu": bleu_rows(texts, references),
            "chrf": chrf_rows(texts, references),
            **rouge_rows(texts, references),
            "exact_match": mean_of_rows(np.array(exact)),
        }
    )


def bleu_rows(texts: Sequence[str], references: References) -> RowStatistics:
    """Corpus BLEU as sums over rows.

    Args:
        texts: N answers.
        references: At least one for each.

    Returns:
        Statistics whose value is sacrebleu's corpus BLEU: tokeniser 13a, exponential smoothing.
    """
    from sacrebleu.metrics.bleu import BLEU

    return _sacrebleu_rows(BLEU(), texts, references)


def chrf_rows(texts: Sequence[str], references: References) -> RowStatistics:
    """Corpus chrF as sums over rows.

    Args:
        texts: N answers.
        references: At least one for each.

    Returns:
        Statistics whose value is sacrebleu's corpus chrF: n-grams of 1 to 6 characters, beta 2.
    """
    from sacrebleu.metrics.chrf import CHRF

    return _sacrebleu_rows(CHRF(), texts, references)


def rouge_rows(texts: Sequence[str], references: References) -> dict[str, RowStatistics]:
    """ROUGE as means over rows.

    Args:
        texts: N answers.
        references: At least one for each; the best F1 of a row counts, for each type by itself.

    Returns:
        ``rouge1``, ``rouge2`` and ``rougeL``, times 100.

    Source: Lin 2004; the package rouge-score without stemming.
    """
    # Imported late: it takes seconds that every start of a process would wait for.
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE_TYPES), tokenizer=_Words())
    scores = [
        scorer.score_multi(list(right), text) for text, right in zip(texts, references, strict=True)
    ]
    return {
        name: mean_of_rows(np.array([100 * score[name].fmeasure for score in scores]))
        for name in ROUGE_TYPES
    }


class _Words:
    """Words of a text for rouge-score, whose own tokeniser drops every letter outside a to z."""

    def tokenize(self, text: str) -> list[str]:
        """Letters and digits in a row, lower case; of ASCII texts just what rouge-score takes."""
        text = unicodedata.normalize("NFC", text.lower())
        if text.isascii():
            return _ASCII_WORD.findall(text)
        kept = "".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in text)
        words = [kept[start:end] for start, end in find_words(kept)]
        return [word for word in words if word[0].isalnum()]  # no mark of a sign that was left out


def _sacrebleu_rows(metric: Any, texts: Sequence[str], references: References) -> RowStatistics:
    """The statistics of a metric of sacrebleu, and its own way from their sums to the score."""
    most = max(len(right) for right in references)
    by_place = [[right[i] if i < len(right) else None for right in references] for i in range(most)]
    found = metric._extract_corpus_statistics(list(texts), by_place)
    score: Callable[[list[int]], Any] = metric._compute_score_from_stats

    def reduce(sums: Floats) -> Floats:
        return np.array([float(score([round(value) for value in row]).score) for row in sums])

    return RowStatistics(np.array(found, dtype=np.float64), reduce)

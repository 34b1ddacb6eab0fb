"""Which metrics a task has on validation, one of which may decide.

Here because the api refuses another one at once, and must not load torch to know.
"""

from collections.abc import Mapping
from types import MappingProxyType

_CLASSES = frozenset({"loss", "accuracy", "macro_f1", "weighted_f1", "mcc", "ece"})
_TEXTS = frozenset({"exact_match", "bleu", "chrf", "rouge1", "rouge2", "rougeL"})

METRICS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        # of one label a row, and of several
        "text-classification": _CLASSES | {"micro_f1", "subset_accuracy"},
        "regression": frozenset({"loss", "pearson", "spearman", "rmse", "mae", "r2"}),
        "token-classification": frozenset({"loss", "f1", "precision", "recall", "accuracy", "ece"}),
        "relation-extraction": _CLASSES,
        "question-answering": frozenset({"loss", "exact_match", "f1", "ece"}),
        "multiple-choice": frozenset({"loss", "accuracy", "ece"}),
        "text-generation": _TEXTS | {"loss", "perplexity", "token_accuracy"},
    }
)
"""By task; of a task whose rows are of several kinds, those of any."""

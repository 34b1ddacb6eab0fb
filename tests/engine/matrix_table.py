"""Every method, every task, one base of each family: the table that the matrix test walks.

A method is one entry of ``METHOD_CASES`` (or of ``CHOSEN_CASES`` below, when it has no fixed sites)
and, if its type is new, one rate. A task is one entry of ``TASKS``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peft_engine.configs.families import ARCHITECTURES
from peft_engine.configs.methods import HeadOnlyConfig, LoraConfig, MaskConfig
from tests.engine.method_table import METHOD_CASES, Configs
from tests.engine.task_sets import SETS
from tests.engine.test_training import CLASSIFICATION

Record = Mapping[str, Any]

ROWS = 6
"""Records of a cell where its task has no number of its own, all in one batch."""
STEPS = 4

CHOSEN_CASES: Mapping[str, Configs] = {
    "lora+": (LoraConfig(r=4, b_learning_rate_ratio=2),),
    "lora patterns": (LoraConfig(r=4, rank_pattern={"FFN": 2}, alpha_pattern={"FFN": 3}),),
    "mask fisher": (MaskConfig(selection="fisher", density=0.05, samples=4),),
    "mask gradient": (MaskConfig(selection="gradient", pattern="neuron", density=0.1, samples=4),),
    "head-only": (HeadOnlyConfig(),),
}
"""Methods that training chooses for, or that differ from another one in training alone."""

# A classic prefix takes its share of the softmax from the start; test_prefix.py trains it.
METHODS: Mapping[str, Configs] = {
    name: configs
    for name, configs in {**METHOD_CASES, **CHOSEN_CASES}.items()
    if name != "classic prefix"
}

RATES: Mapping[str, float] = {
    "lora": 0.003,
    "bottleneck": 0.003,
    "bitfit": 0.003,
    "ia3": 0.01,
    "norm": 0.005,
    "mask": 0.003,
    "full": 0.0003,
    "prefix": 0.02,
    "head-only": 0.01,
}
"""A rate at which the loss of a few rows falls in the first steps, by type of method."""

OWN_RATES: Mapping[tuple[str, str], float] = {
    ("lora+", "t5"): 0.0005,
    ("mask fisher", "bert"): 0.001,
    ("mask fisher", "t5"): 0.0002,
    ("mask gradient", "t5"): 0.0002,
}
"""Rates of (method, base) where that of the type overshoots: the loss of some task rises by a tenth
or more before it falls, or fell as rounding would have it. Adam steps are of full length, also of a
B at twice the rate and of entries chosen for the size of their gradient."""


@dataclass(frozen=True)
class TaskRow:
    """A task as one cell sees it.

    Attributes:
        task: Its name.
        records: What is learned.
        inputs: What is asked afterwards.
    """

    task: str
    records: Sequence[Record]
    inputs: Sequence[Any]


def _row(task: str, records: Sequence[Record], *, rows: int = ROWS) -> TaskRow:
    own = records[:rows]
    targets = {"label", "labels", "value", "tags", "entities", "answers", "answer", "completion"}
    asked = [{k: v for k, v in record.items() if k not in targets} for record in own[:2]]
    return TaskRow(task, own, asked)


_GENERATION = [
    {"prompt": f"my {thing}", "completion": word}
    for thing, word in zip(
        ["card", "order", "money", "refund", "card a", "order a"],
        ["lost", "late", "new", "lost", "late", "new"],
        strict=True,
    )
]

# A head of 32 weights fits six values, or three that repeat: no method could lower the loss.
_REGRESSION = [
    {**record, "value": record["value"] + (37 * i % 11) / 5}
    for i, record in enumerate(SETS["regression"][1]["train"])
]

TASKS: Mapping[str, TaskRow] = {
    "classification": _row("text-classification", CLASSIFICATION["train"]),
    **{
        name: _row(SETS[name][0], SETS[name][1]["train"])
        for name in ("multi-label", "tags", "relation", "choice", "question")
    },
    "regression": _row("regression", _REGRESSION, rows=len(_REGRESSION)),
    "generation": _row("text-generation", _GENERATION),
}

BASES: Mapping[str, str] = {"encoder": "bert", "causal": "llama", "encoder-decoder": "t5"}
"""The fixture of each family."""

_FFN_ENDS: Mapping[str, str] = {"bert": "output.dense", "llama": "down_proj", "t5": "wo"}


def rate_of(method: str, base: str) -> float:
    """The rate at which a method trains on a base."""
    return OWN_RATES.get((method, base), RATES[METHODS[method][0].type])


def named(configs: Configs, base: str) -> Configs:
    """The configurations with the base's own name for the end of its FFN."""
    end = _FFN_ENDS[base]

    def renamed(pattern: Mapping[str, Any]) -> dict[str, Any]:
        return {end if name == "FFN" else name: value for name, value in pattern.items()}

    return tuple(
        config.model_copy(
            update={
                "rank_pattern": renamed(config.rank_pattern),
                "alpha_pattern": renamed(config.alpha_pattern),
            }
        )
        if isinstance(config, LoraConfig)
        else config
        for config in configs
    )


CELLS = [
    (method, task, base)
    for task, row in TASKS.items()
    for family, base in BASES.items()
    for method in METHODS
    if family in ARCHITECTURES[row.task] and not (method == "head-only" and task == "generation")
]


@dataclass(frozen=True)
class Tolerances:
    """How close is equal.

    Attributes:
        zero_effect: Loss before the first step against that of the plain base, relative.
        lowered: Lowest loss after the first step, as a share of the first. All rows stand in the
            one batch and nothing is drawn, so what differs by more than rounding (1e-6) is learned.
            It asks no more than that a job steps downhill; how far each method comes is asked in
            ``test_method_training.py``, and of each task in ``test_task_matrix.py``.
        answers: Numbers of an answer alone and in company, absolute, in the unit of the answer:
            values to 27 for regression, probabilities elsewhere (7e-6 at most on a CPU). Tighter,
            1e-5, for hidden states and gradients of all methods in one batch (ten times that on a
            GPU) in ``test_methods.py``, and for scores of each in ``test_method_training.py``.
    """

    zero_effect: float = 1e-5
    lowered: float = 0.9999
    answers: float = 1e-4


TOLERANCES = Tolerances()

"""Every method on the last layer alone: the layers below are reused, and nothing else changes."""

import math
from collections.abc import Mapping

import pytest
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.bases.layers import layer_stack
from peft_engine.configs.methods import LastLayers
from peft_engine.configs.methods.options import MethodOptions
from peft_engine.parts.sites import layer_of
from peft_engine.training import TrainingEvent
from peft_engine.training.trainable import create_trainable
from tests.engine.conftest import ROUNDING_FACTOR
from tests.engine.matrix_table import CHOSEN_CASES, named
from tests.engine.method_table import METHOD_CASES, Configs
from tests.engine.test_activations import WITHOUT_TEST, lower_rows, resolved_of
from tests.engine.test_training import Splits, job, run

CASES = {**METHOD_CASES, **CHOSEN_CASES}
TASKS = {"bert": "text-classification", "llama": "text-generation"}
SEED = 0
# Not Adam, which takes rounding for a gradient where there is none, as of BERT's key biases.
SETTINGS = {
    "epochs": 2,
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "head_learning_rate": 0.1,
    "keep": "last",
    "seed": SEED,
}
SAME = 1e-5 * ROUNDING_FACTOR
"""Bound on the distance between all tensors of two deltas, and on losses, relative. On a CPU both
came out as 0; the least that a method moves is 2.5e-3, by a prefix on BERT."""


def on_the_last_layer(configs: Configs) -> Configs:
    return tuple(
        config.model_copy(update={"layers": LastLayers(last=1)})
        if isinstance(config, MethodOptions)
        else config  # a head
        for config in configs
    )


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Over all tensors that have a name in both."""
    names = one.keys() & other.keys()
    return math.hypot(*(float((one[n].cpu() - other[n].cpu()).float().norm()) for n in names))


@pytest.mark.parametrize(
    ("name", "family"),
    [
        (name, family)
        for family, task in TASKS.items()
        for name in CASES
        if not (name == "head-only" and task == "text-generation")  # which has no head
    ],
)
def test_every_method_learns_the_same_above_reused_layers(
    name: str, family: str, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(family)
    rows = WITHOUT_TEST[TASKS[family]]
    splits: Splits = {"train": rows["train"][:16], "validation": rows["validation"][:4], "test": []}
    method = on_the_last_layer(named(CASES[name], family))
    deltas, losses, forwards = [], [], []
    for reuse in (False, "auto"):
        spec = job(TASKS[family], method=method, reuse_frozen_layers=reuse, **SETTINGS)
        events: list[TrainingEvent] = []
        with lower_rows(base) as lower:
            deltas.append(run(base, spec, splits, events=events).delta)
        forwards.append(sum(lower))
        losses.append([e.data["loss"] for e in events if e.kind == "progress"])
        found = resolved_of(events)
        assert found["reuse_frozen_layers"] is (reuse == "auto")
        assert (found["reused_bytes"] > 0) is (reuse == "auto")
    plain, reused = deltas
    assert plain is not None
    assert reused is not None
    assert forwards[1] < forwards[0]
    assert losses[1] == pytest.approx(losses[0], rel=SAME)

    places = {layer_of(path.partition(":")[0]) for path in reused.tensors if path[:5] != "head:"}
    assert places == (set() if name == "head-only" else {len(layer_stack(base)) - 1})
    assert reused.tensors.keys() == plain.tensors.keys()
    assert distance(reused.tensors, plain.tensors) < SAME
    start = create_trainable(base, plain.manifest.methods, seed=SEED, head=None)
    learned = {key: tensor.detach() for key, tensor in start.tensors.items()}
    assert name == "head-only" or distance(learned, plain.tensors) > 1e-3

"""Every method on every task on every family of bases, through the whole line of the engine.

One cell trains a few steps and looks at all that is promised of it: it covers its sites, starts
with zero effect, moves every trained tensor, lowers the loss, leaves the base bit for bit, comes
back from a file under another seed, and answers in company as it does alone, its neighbours too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.configs import JobSpec
from peft_engine.configs.families import ARCHITECTURES
from peft_engine.delta import Delta, check_delta, load_delta, save_delta, tensor_name
from peft_engine.methods.table import METHODS as KNOWN_METHODS
from peft_engine.parts.batching import collate
from peft_engine.parts.stacks import part_read
from peft_engine.router import Router
from peft_engine.serving import Engine, Row, prepare_row
from peft_engine.tasks.protocol import HeadTask
from peft_engine.tasks.table import TASKS as KNOWN_TASKS
from peft_engine.tasks.table import find_task
from peft_engine.training import FeatureStore, NoCheckpoints, TrainingEvent, train
from peft_engine.training.head_start import FrozenBase
from peft_engine.training.trainable import create_trainable
from tests.engine.conftest import head_on
from tests.engine.matrix_table import (
    BASES,
    CELLS,
    METHODS,
    OWN_RATES,
    RATES,
    STEPS,
    TASKS,
    TOLERANCES,
    TaskRow,
    named,
    rate_of,
)
from tests.engine.method_table import Configs
from tests.engine.test_serving import numbers

MAX_LENGTH = 48


@dataclass(frozen=True)
class Bench:
    """A base with what its cells share, so that each is computed once.

    Attributes:
        base: The base.
        weights: Copies of its weights.
        router: Its router.
        engine: Answers with it; on a router of its own, as an inference process would.
        features: Frozen features and first heads.
        plain: Loss of the plain base by task.
        strangers: Another adapter of each task, and what it and the plain base answer alone.
    """

    base: Base
    weights: Mapping[str, Tensor]
    router: Router
    engine: Engine
    features: FeatureStore = field(default_factory=FeatureStore)
    plain: dict[str, float] = field(default_factory=dict)
    strangers: dict[str, tuple[Delta, list[Any]]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def benches() -> dict[str, Bench]:
    return {}


def bench_of(request: pytest.FixtureRequest, name: str) -> Bench:
    benches: dict[str, Bench] = request.getfixturevalue("benches")
    if name not in benches:
        base: Base = request.getfixturevalue(name)
        weights = {key: value.clone() for key, value in base.model.state_dict().items()}
        benches[name] = Bench(base, weights, Router(base.trunk), Engine(base))
    return benches[name]


def test_the_table_is_whole() -> None:
    """What the engine offers has a row here."""
    assert {config.type for configs in METHODS.values() for config in configs} == set(KNOWN_METHODS)
    assert set(RATES) == set(KNOWN_METHODS)
    assert set(OWN_RATES) <= {(method, base) for method, _, base in CELLS}
    assert {row.task for row in TASKS.values()} == set(KNOWN_TASKS)
    assert {ARCHITECTURES[name] for name in KNOWN_TASKS} <= {
        frozenset(BASES),
        frozenset(BASES) - {"encoder"},
        frozenset(BASES) - {"causal"},
    }


@pytest.mark.parametrize(("method", "task", "base"), CELLS, ids=["-".join(c) for c in CELLS])
def test_cell(method: str, task: str, base: str, request: pytest.FixtureRequest) -> None:
    bench, row = bench_of(request, base), TASKS[task]
    spec = spec_of(named(METHODS[method], base), row, rate=rate_of(method, base))
    delta, losses = tune(bench, spec, row)
    assert_zero_effect(bench, task, losses[0])
    assert min(losses[1:]) < TOLERANCES.lowered * losses[0], losses
    assert_covers_and_moves(bench, spec, row, delta)
    assert_base_untouched(bench)
    assert_answers(bench, task, delta)


def spec_of(configs: Configs, row: TaskRow, *, rate: float, seed: int = 0) -> JobSpec:
    return JobSpec.model_validate(
        {
            "dataset_id": "ds",
            "base_model": "b",
            "task": row.task,
            "method": configs,
            "training": {
                "batch_size": len(row.records),
                "max_steps": STEPS,
                "epochs": STEPS,
                "learning_rate": rate,
                # so small that what the loss loses is the method's doing
                "head_learning_rate": 0.01 if configs[0].type == "head-only" else 1e-7,
                "schedule": "constant",
                "warmup_ratio": 0,
                "weight_decay": 0,
                "max_length": MAX_LENGTH,
                "seed": seed,
            },
        }
    )


def tune(bench: Bench, spec: JobSpec, row: TaskRow) -> tuple[Delta, list[float]]:
    """The trained delta, and the loss before each step."""
    events: list[TrainingEvent] = []
    result = train(
        bench.base,
        spec,
        {"train": row.records},
        control=lambda: None,
        emit=events.append,
        checkpoints=NoCheckpoints(),
        features=bench.features,
        router=bench.router,
    )
    assert result.delta is not None
    return result.delta, [float(e.data["loss"]) for e in events if e.kind == "progress"]


def assert_zero_effect(bench: Bench, task: str, first_loss: float) -> None:
    if task not in bench.plain:
        bench.plain[task] = plain_loss(bench, TASKS[task])
    assert first_loss == pytest.approx(bench.plain[task], rel=TOLERANCES.zero_effect)


def plain_loss(bench: Bench, row: TaskRow) -> float:
    """Loss of the base without any delta, under the head that training starts from."""
    base, task = bench.base, find_task(row.task, row.records)
    labels = task.find_labels(row.records)
    examples = task.encode(base, row.records, labels=labels, max_length=MAX_LENGTH)
    head = None
    if isinstance(task, HeadTask):
        frozen = FrozenBase(base, bench.features, lambda: None)
        head = head_on(base, frozen.first_head(task, examples, labels=labels))
    batch = collate(examples, pad_id=base.text.pad_id, device=base.device)
    with torch.no_grad():
        loss = task.loss(base, head, hidden_states(base, batch), batch, label_smoothing=0.0)
    return float(loss.total) / loss.count


def assert_covers_and_moves(bench: Bench, spec: JobSpec, row: TaskRow, delta: Delta) -> None:
    """Every expected tensor is there, and each that is trained has left its start value."""
    base = bench.base
    check_delta(
        delta, base.trunk, fingerprint=base.fingerprint, template_digest=base.template_digest
    )
    methods = delta.manifest.methods  # with nothing left to choose
    start = create_trainable(base, methods, seed=spec.training.seed, head=None)
    part = part_read(base.trunk, has_head=delta.manifest.head is not None)
    for config in methods:
        method = KNOWN_METHODS[config.type]
        learned = {name for group in method.groups(config) for name in group.names}
        for site in method.sites(part, config):
            for name in method.shapes(site, config).keys() & learned:
                full_name = tensor_name(site.path, config.type, name)
                assert not torch.equal(
                    delta.tensors[full_name], start.tensors[full_name].detach().cpu()
                ), f"{full_name} never moved"
    assert row.task == delta.manifest.task


def assert_base_untouched(bench: Bench) -> None:
    now = bench.base.model.state_dict()
    assert all(torch.equal(now[name], weight) for name, weight in bench.weights.items())


def assert_answers(bench: Bench, task: str, delta: Delta) -> None:
    """From a file, alone and among the rows of another adapter and of the plain base."""
    row = TASKS[task]
    torch.manual_seed(99)  # another seed than the one that saved
    stored = load_delta(save_delta(delta))
    assert stored.digest == delta.digest
    stored, delta = stored.to(bench.base.device), delta.to(bench.base.device)
    alone = [answer(bench, row, delta, [value])[0] for value in row.inputs]
    # replaced under the same digest, so the engine answers from the tensors of the file
    assert [answer(bench, row, stored, [value])[0] for value in row.inputs] == alone

    if task not in bench.strangers:
        bench.strangers[task] = stranger_of(bench, row)
    stranger, expected = bench.strangers[task]
    owners = [stranger, stored, None, stored, stranger]
    rows = prepare(bench, row, owners)
    together = [found.output for found in bench.engine.predict(rows)]
    same(together[1], alone[0])
    same(together[3], alone[1])
    for place, wanted in zip((0, 2, 4), expected, strict=True):
        same(together[place], wanted)


def stranger_of(bench: Bench, row: TaskRow) -> tuple[Delta, list[Any]]:
    """Another adapter of the task, and what its rows and the plain base's answer alone."""
    spec = spec_of(METHODS["lora"], row, rate=RATES["lora"], seed=5)
    delta = tune(bench, spec, row)[0].to(bench.base.device)
    rows = prepare(bench, row, [delta, None, delta], places=(0, 2, 4))
    return delta, [bench.engine.predict([one])[0].output for one in rows]


def prepare(
    bench: Bench, row: TaskRow, owners: Sequence[Delta | None], *, places: Sequence[int] = range(5)
) -> list[Any]:
    """Rows of several owners; a place always asks the same."""
    plain = "where is my card"
    made = []
    for place, owner in zip(places, owners, strict=True):
        value = plain if owner is None else row.inputs[place // 2 % 2]
        writes = bench.base.generates if owner is None else row.task == "text-generation"
        options = {"max_new_tokens": 3} if writes else {}
        made.append(prepare_row(bench.base, Row(None, value, owner, options)))
    return made


def answer(bench: Bench, row: TaskRow, delta: Delta, values: Sequence[Any]) -> list[Any]:
    options = {"max_new_tokens": 3} if row.task == "text-generation" else {}
    rows = [prepare_row(bench.base, Row(None, value, delta, options)) for value in values]
    return [found.output for found in bench.engine.predict(rows)]


def same(one: Any, other: Any) -> None:
    assert words(one) == words(other)
    assert numbers(one) == pytest.approx(numbers(other), abs=TOLERANCES.answers)


def words(output: Any) -> list[str]:
    """Every text of an answer, in order."""
    if isinstance(output, dict):
        return [word for key in sorted(output) for word in words(output[key])]
    if isinstance(output, list):
        return [word for item in output for word in words(item)]
    return [output] if isinstance(output, str) else []

"""Every task on every family of bases that it is offered on: it learns, resumes and answers."""

import json
import random
from typing import Any

import pytest

from peft_engine.bases.base import Base
from peft_engine.configs.families import ARCHITECTURES
from peft_engine.configs.training import LOWER_IS_BETTER
from peft_engine.delta import load_delta, save_delta
from peft_engine.serving import Engine, Row, prepare_row
from peft_engine.tasks.passes import split_logits
from peft_engine.tasks.protocol import HeadTask
from peft_engine.tasks.table import find_task
from peft_engine.training import TrainingEvent, TrainingResult
from tests.engine.conftest import head_on, make_delta
from tests.engine.task_sets import SETS
from tests.engine.test_serving import numbers
from tests.engine.test_training import Shelf, job, run

CASES = [
    (name, family)
    for name, (task, _) in SETS.items()
    for family in ("bert", "sentence_bert", "llama")
    # whether two words are the same is too much for a causal base of random bytes
    if (name, family) not in {("similarity", "llama"), ("relation", "llama")}
    and ("causal" if family == "llama" else "encoder") in ARCHITECTURES[task]
]


def input_of(record: Any) -> dict[str, Any]:
    targets = {"label", "labels", "value", "tags", "entities", "answers"}
    found = {name: value for name, value in record.items() if name not in targets}
    return {k: v for k, v in found.items() if not (k == "answer" and "choices" in record)}


@pytest.fixture(params=CASES, ids=[f"{name}-{family}" for name, family in CASES])
def case(request: pytest.FixtureRequest) -> tuple[str, Base]:
    name, family = request.param
    return name, request.getfixturevalue(family)


def spec_of(name: str, **training: Any) -> Any:
    return job(SETS[name][0], **({"epochs": 12, "max_length": 48} | training))


def test_it_learns_and_beats_what_was_before(case: tuple[str, Base]) -> None:
    name, base = case
    task_name, splits = SETS[name]
    events: list[TrainingEvent] = []
    result = run(base, spec_of(name), splits, events=events)
    task = find_task(task_name, splits["train"])
    test = result.metrics["test"]
    losses = [e.data["value"] for e in events if e.data.get("name") == "train/loss"]
    assert min(losses[1:]) < losses[0]
    sign = -1 if task.metric in LOWER_IS_BETTER else 1
    assert sign * test["delta"][task.metric] > 0.05, test
    low, high = test["confidence_interval"][task.metric]
    assert low <= test["delta"][task.metric] + 1e-9
    assert high >= test["delta"][task.metric] - 1e-9
    assert test["rows"] == len(splits["test"])
    assert set(task.metrics) == set(test["after"]) == set(result.metrics["validation"]["after"])
    # what stands in the database and in every answer
    assert json.loads(json.dumps(result.metrics, allow_nan=False)) == result.metrics
    assert set(test["frozen_head"]) == set(test["after"])
    assert test["before_is"]
    _answers_are_those_of_training(base, result, task_name, splits["test"])


def _answers_are_those_of_training(
    base: Base, result: TrainingResult, task_name: str, records: Any
) -> None:
    """What is served, after a round trip through a file, is what was evaluated."""
    assert result.delta is not None
    delta = load_delta(save_delta(result.delta), device=base.device)
    assert delta.digest == result.delta.digest
    assert delta.manifest == result.delta.manifest
    rows = [prepare_row(base, Row(task_name, input_of(record), delta)) for record in records]
    together = [answer.output for answer in Engine(base).predict(rows)]
    alone = [Engine(base).predict([row])[0].output for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert one.keys() == other.keys()
        assert numbers(one) == pytest.approx(numbers(other), abs=1e-4)


def test_one_batch_of_every_task_equals_one_by_one(bert: Base) -> None:
    """Heads of 2, 3 and 7 classes, tags, spans, choices, numbers and the plain base together."""
    rows = []
    for name, (task, splits) in SETS.items():
        delta = run(bert, spec_of(name, epochs=1), splits).delta
        assert delta is not None
        delta = delta.to(bert.device)
        rows += [prepare_row(bert, Row(task, input_of(r), delta)) for r in splits["test"][:4]]
    for seed, labels in enumerate((("no", "yes"), ("a", "b", "c"), tuple("abcdefg"))):
        delta = make_delta(bert, seed=seed, labels=labels)
        rows += [prepare_row(bert, Row(None, text, delta)) for text in ("my card", "late " * 9)]
    long = {"question": "where is", "context": "my card is late " * 30}
    span = next(row.delta for row in rows if row.task is not None and row.task.kind == "span")
    rows.append(prepare_row(bert, Row(None, long, span)))
    assert len(rows[-1].examples) == 4
    rows += [
        prepare_row(bert, Row(None, "my card")),
        prepare_row(bert, Row(None, "order", options={"labels": ["lost", "new"]})),
    ]
    random.Random(0).shuffle(rows)
    together = Engine(bert).predict(rows)
    for row, mixed in zip(rows, together, strict=True):
        (alone,) = Engine(bert).predict([row])
        assert _words(alone.output) == _words(mixed.output)
        assert numbers(alone.output) == pytest.approx(numbers(mixed.output), abs=1e-4)
        assert mixed.input_tokens == row.input_tokens == sum(e.tokens for e in row.examples)


def _words(output: Any) -> list[str]:
    """Every text of an answer, in order, keys of objects among them."""
    if isinstance(output, dict):
        return [w for key in sorted(output) for w in (key, *_words(output[key]))]
    if isinstance(output, list):
        return [word for item in output for word in _words(item)]
    return [output] if isinstance(output, str) else []


@pytest.mark.parametrize("name", list(SETS))
def test_a_drained_job_goes_on_to_the_same_bytes(name: str, bert: Base) -> None:
    _, splits = SETS[name]
    spec = spec_of(name, epochs=3, eval_every_steps=4)
    whole = run(bert, spec, splits)
    shelf, events = Shelf(), list[TrainingEvent]()

    def drain() -> Any:
        return "drain" if sum(e.kind == "progress" for e in events) >= 7 else None

    first = run(bert, spec, splits, control=drain, shelf=shelf, events=events)
    assert first.outcome == "drained"
    second = run(bert, spec, splits, shelf=shelf)
    assert whole.delta is not None
    assert second.delta is not None
    assert second.delta.digest == whole.delta.digest
    assert second.metrics == whole.metrics


@pytest.mark.parametrize("name", list(SETS))
def test_statistics_over_rows_are_the_metrics(name: str, bert: Base) -> None:
    """What is resampled for the interval is the metric itself."""
    import torch

    from peft_engine.bases.forward import hidden_states
    from peft_engine.parts.batching import collate
    from peft_engine.training.head_start import FeatureStore, FrozenBase

    task_name, splits = SETS[name]
    task = find_task(task_name, splits["train"])
    assert isinstance(task, HeadTask)
    labels = task.find_labels(splits["train"])
    records = splits["test"]
    train = task.encode(bert, splits["train"], labels=labels, max_length=48)
    asked = task.encode(bert, records, labels=labels, max_length=48)
    frozen = FrozenBase(bert, FeatureStore(), lambda: None)
    head = head_on(bert, task.first_head(frozen, train, labels=labels))
    batch = collate(asked, pad_id=0, device=bert.device)
    with torch.no_grad():
        features = task.features(head.spec, hidden_states(bert, batch), batch)
        logits = split_logits(task, task.logits(head, features).cpu(), asked)
    found = task.score(head, asked, records, logits)
    assert task.metric in found.rows
    for metric, rows in found.rows.items():
        assert rows.count == len(records), metric
        assert rows.value == pytest.approx(found.metrics[metric]), metric

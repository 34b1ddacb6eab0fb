"""Continuing from a delta: the start is the parent to the bit, and what does not fit is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_engine.bases.base import Base
from peft_engine.configs import JobSpec
from peft_engine.delta import Delta, load_delta, save_delta
from peft_engine.errors import EngineError
from peft_engine.router import Router
from peft_engine.serving import Engine, Row, prepare_row
from peft_engine.training import FeatureStore, NoCheckpoints, TrainingEvent, TrainingResult, train
from peft_engine.training.prepare import Prepared, prepare
from tests.engine.conftest import make_delta
from tests.engine.method_table import METHOD_CASES
from tests.engine.task_sets import SETS
from tests.engine.test_task_matrix import spec_of
from tests.engine.test_training import (
    CLASSIFICATION,
    GENERATION,
    Shelf,
    Splits,
    classification_rows,
    job,
)

BEFORE_PARENTS = Path(__file__).parent / "stored" / "before-parents.safetensors"
OLD_DIGEST = "sha256:d704b6991727d09e9dbfb157fe242672701a858c33149e253a0c8ec8d67d30bf"
NEW_ROWS: Splits = CLASSIFICATION | {"train": classification_rows(40, start=200)}


def run(
    base: Base,
    spec: JobSpec,
    splits: Splits,
    parent: Delta | None = None,
    *,
    shelf: Shelf | None = None,
    control: Any = lambda: None,
    events: list[TrainingEvent] | None = None,
) -> TrainingResult:
    told = events if events is not None else []
    return train(
        base,
        spec,
        splits,
        control=control,
        emit=told.append,
        checkpoints=shelf or NoCheckpoints(),
        checkpoint_seconds=1e9,
        parent=parent,
    )


def trained(result: TrainingResult) -> Delta:
    """The delta as a later job finds it: written and read again."""
    assert result.delta is not None
    found = load_delta(save_delta(result.delta))
    assert found.digest == result.delta.digest
    return found


def continued(task: str = "text-classification", **training: Any) -> JobSpec:
    """A job that names no method."""
    settings = {"batch_size": 8, "epochs": 2, "learning_rate": 0.01, "keep": "best"} | training
    return JobSpec.model_validate(
        {"dataset_id": "ds", "base_model": "b", "task": task, "training": settings}
    )


def begin(base: Base, spec: JobSpec, splits: Splits, parent: Delta | None) -> Prepared:
    return prepare(
        base,
        spec,
        splits,
        router=Router(base.trunk),
        features=FeatureStore(),
        check=lambda: None,
        emit=lambda _: None,
        parent=parent,
    )


@pytest.fixture(scope="module")
def parent_run(bert: Base) -> TrainingResult:
    return run(bert, job(), CLASSIFICATION)


@pytest.fixture(scope="module")
def parent(parent_run: TrainingResult) -> Delta:
    return trained(parent_run)


@pytest.mark.parametrize("name", list(SETS))
def test_the_start_evaluates_to_what_the_parent_ended_with(name: str, bert: Base) -> None:
    task, splits = SETS[name]
    ended = run(bert, spec_of(name, epochs=3), splits)
    rows = splits | {"train": splits["train"][8:32]}
    # another batch size than the parent's: evaluations do not depend on it
    result = run(bert, continued(task, max_steps=2, batch_size=40), rows, trained(ended))
    test = result.metrics["test"]
    assert test["before"] == ended.metrics["test"]["after"]
    assert test["before_is"] == "the parent adapter"
    assert result.metrics["validation"]["initial"] == ended.metrics["validation"]["best"]
    told = [own["what"] for own in test["baselines"]]
    assert told == ["the parent adapter", *(b["what"] for b in ended.metrics["test"]["baselines"])]
    assert test["confidence_interval"].keys() >= {"loss"}
    assert "frozen_head" not in test


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_generation_goes_on(family: str, request: pytest.FixtureRequest) -> None:
    base: Base = request.getfixturevalue(family)
    settings = {"learning_rate": 0.02, "eval_generate_rows": 2, "epochs": 3}
    ended = run(base, job("text-generation", **settings), GENERATION)
    result = run(base, continued("text-generation", **settings), GENERATION, trained(ended))
    test = result.metrics["test"]
    assert test["before"] == ended.metrics["test"]["after"]
    _, untuned = test["baselines"]
    assert test["after"]["loss"] < test["before"]["loss"] < untuned["metrics"]["loss"]
    assert untuned["metrics"]["loss"] == ended.metrics["test"]["before"]["loss"]
    assert "chrf" not in untuned["metrics"]  # that would cost as much as the job's own answers


@pytest.mark.parametrize("case", list(METHOD_CASES))
def test_every_method_goes_on(case: str, bert: Base) -> None:
    configs = METHOD_CASES[case]
    start = make_delta(bert, seed=3, config=configs, labels=("card", "is", "my", "where"))
    start = load_delta(save_delta(start))
    spec = continued(max_steps=3)
    rows = {"train": classification_rows(16), "test": classification_rows(6, start=70)}
    ready = begin(bert, spec, rows, start)
    assert {n: t.tolist() for n, t in ready.trainable.tensors.items()} | {
        n: t.tolist() for n, t in ready.trainable.fixed.items()
    } == {n: t.tolist() for n, t in start.tensors.items()}
    delta = trained(run(bert, spec, rows, start))
    assert delta.manifest.methods == start.manifest.methods
    assert delta.manifest.parent_digest == start.digest
    moved = {n for n, t in delta.tensors.items() if not torch.equal(t, start.tensors[n].cpu())}
    assert moved == set(ready.trainable.tensors)


def test_more_rows_help_and_say_against_whom(bert: Base, parent: Delta) -> None:
    result = run(bert, continued(epochs=6, seed=1), NEW_ROWS, parent)
    test = result.metrics["test"]
    assert test["after"]["loss"] < test["before"]["loss"]
    low, high = test["confidence_interval"]["loss"]
    assert low <= test["delta"]["loss"] <= high
    assert result.resolved["max_length"] == parent.manifest.max_length == 40


def test_a_longer_length_may_be_asked_for(bert: Base, parent: Delta) -> None:
    delta = trained(run(bert, continued(max_steps=1, max_length=48), NEW_ROWS, parent))
    assert delta.manifest.max_length == 48


def test_a_start_that_stays_best_is_said(bert: Base, parent: Delta) -> None:
    events: list[TrainingEvent] = []
    spec = continued(learning_rate=1.0, head_learning_rate=1.0, max_steps=3)
    result = run(bert, spec, NEW_ROWS, parent, events=events)
    told = [e.data["message"] for e in events if e.kind == "log"]
    assert any("adds nothing to the parent adapter" in message for message in told)
    delta = trained(result)
    assert all(torch.equal(t, parent.tensors[n]) for n, t in delta.tensors.items())
    assert delta.digest != parent.digest  # it names its parent
    assert set(result.metrics["test"]["delta"].values()) == {0.0}


# ---- labels -----------------------------------------------------------------------------------


def test_labels_that_the_new_rows_lack_stay(bert: Base, parent: Delta) -> None:
    rows = [row for row in NEW_ROWS["train"] if row["label"] != "is"]
    ready = begin(bert, continued(), NEW_ROWS | {"train": rows}, parent)
    assert ready.trainable.labels == parent.manifest.labels == ("is", "my", "where")


def grown_rows(name: str) -> Mapping[str, Any]:
    """Rows of a set with one label more, and none of the labels that the parent knows."""

    def change(row: Mapping[str, Any]) -> Mapping[str, Any]:
        if "labels" in row:
            return {**row, "labels": ["aaa", *row["labels"][:1]]}
        if "tags" in row:
            return {**row, "tags": [tag.replace("OWN", "AAA") for tag in row["tags"]]}
        return {**row, "label": f"a{row['label']}"}

    splits = SETS[name][1] if name in SETS else CLASSIFICATION
    return {split: [change(row) for row in rows] for split, rows in splits.items()}


@pytest.mark.parametrize("name", ["multi-label", "tags", "relation", "classes"])
def test_new_labels_get_rows_of_their_own_and_old_rows_stay(name: str, bert: Base) -> None:
    task, old = SETS.get(name, ("text-classification", CLASSIFICATION))
    ended = trained(run(bert, spec_of(name, epochs=2) if name in SETS else job(epochs=2), old))
    new = grown_rows(name)
    ready = begin(bert, continued(task), new, ended)
    known = ended.manifest.labels
    assert known is not None
    labels = ready.trainable.labels
    assert labels is not None
    assert labels[: len(known)] == known
    assert len(labels) > len(known)
    head = ready.trainable.head()
    assert head is not None
    for tensor, own in ((head.tensors[n], own) for n, own in ended.head.items()):
        kept = tensor[tuple(slice(size) for size in own.shape)]  # new ones come behind
        assert torch.equal(kept.cpu(), own)
    for tensor in (head.tensors[n] for n in ("weight", "bias")):
        assert bool(tensor[len(known) :].isfinite().all())
        assert bool((tensor[len(known) :] != 0).any())
    result = run(bert, continued(task, epochs=2), new, ended)
    test = result.metrics["test"]
    assert "grown" in test["before_is"]
    assert test["after"]["loss"] <= test["before"]["loss"]  # the start may be hard to better


def test_new_labels_do_not_take_over_what_the_parent_knows(bert: Base) -> None:
    """Also when no new row has an old label."""
    ended = trained(run(bert, job(epochs=12), CLASSIFICATION))
    extra = [{"text": f"late new {w} late", "label": "aaa"} for w in "abcdefgh"]
    other = [{"text": f"about {w} about", "label": "bbb"} for w in "abcdefgh"]
    ready = begin(bert, continued(), {"train": extra + other}, ended)
    start = ready.trainable.freeze(bert, task="text-classification", max_length=40)

    def answers(delta: Delta, rows: Any) -> list[str]:
        own = delta.to(bert.device)
        asked = [prepare_row(bert, Row(None, row["text"], own)) for row in rows]
        return [answer.output["label"] for answer in Engine(bert).predict(asked)]

    old = CLASSIFICATION["test"]
    before, after = answers(ended, old), answers(start, old)
    assert sum(a == b for a, b in zip(before, after, strict=True)) >= 0.8 * len(old)
    assert answers(start, extra + other) == ["aaa"] * 8 + ["bbb"] * 8


def test_a_parent_that_always_answers_learns_to_abstain(bert: Base) -> None:
    task, splits = SETS["question"]
    answered = {name: [r for r in rows if r["answers"]] for name, rows in splits.items()}
    ended = trained(run(bert, spec_of("question", epochs=1), answered))
    assert ended.manifest.head is not None
    assert not ended.manifest.head.abstains  # type: ignore[union-attr]
    delta = trained(run(bert, continued(task, max_steps=1), splits, ended))
    assert delta.manifest.head is not None
    assert delta.manifest.head.abstains  # type: ignore[union-attr]


# ---- refusals ---------------------------------------------------------------------------------


def asking(**fields: Any) -> JobSpec:
    return JobSpec.model_validate(continued().model_dump(exclude={"method"}) | fields)


def test_the_learning_rate_is_that_of_the_first_method_asked_for(bert: Base) -> None:
    both = begin(bert, asking(method=["lora", "bitfit"]), NEW_ROWS, None)
    parent = both.trainable.freeze(bert, task="text-classification", max_length=40)
    for order in (["lora", "bitfit"], ["bitfit", "lora"]):
        fresh = begin(bert, asking(method=order), NEW_ROWS, None).resolved
        own = begin(bert, asking(method=order), NEW_ROWS, parent).resolved
        assert own.method_learning_rates == fresh.method_learning_rates
        assert own.method_learning_rates[order[0]] == 0.01


@pytest.mark.parametrize(
    ("method", "param", "words"),
    [
        ("bitfit", "method", "asks for bitfit and its parent is lora"),
        (["lora", "bitfit"], "method", r"asks for lora \+ bitfit"),
        ({"type": "lora", "r": 8}, "method.0.r", "r 8 and its parent has 4"),
    ],
)
def test_another_method_is_refused(
    bert: Base, parent: Delta, method: Any, param: str, words: str
) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        run(bert, asking(method=method), NEW_ROWS, parent)
    assert (caught.value.code, caught.value.param) == ("parent_mismatch", param)


@pytest.mark.parametrize(
    "method", ["lora", {"type": "lora", "r": 4}, {"type": "lora", "r": "auto"}]
)
def test_the_parents_own_method_may_be_named(bert: Base, parent: Delta, method: Any) -> None:
    ready = begin(bert, asking(method=method), NEW_ROWS, parent)
    assert ready.trainable.methods == parent.manifest.methods


def test_what_does_not_fit_the_parent_is_refused(
    bert: Base, sentence_bert: Base, llama: Base, parent: Delta
) -> None:
    several = {"train": [{"text": "my card", "labels": ["is"]}, {"text": "a", "labels": ["my"]}]}
    template = parent.manifest.model_copy(update={"template_digest": "sha256:" + "0" * 64})
    cases: list[tuple[Base, JobSpec, Any, Delta, str]] = [
        (sentence_bert, continued(), NEW_ROWS, parent, "base_mismatch"),
        (llama, continued(), NEW_ROWS, parent, "base_mismatch"),
        (bert, continued(), NEW_ROWS, Delta.of(parent.tensors, template), "base_mismatch"),
        (bert, continued("relation-extraction"), SETS["relation"][1], parent, "task_mismatch"),
        (bert, continued(), several, parent, "parent_mismatch"),
    ]
    for base, spec, rows, delta, code in cases:
        with pytest.raises(EngineError) as caught:
            run(base, spec, rows, delta)
        assert caught.value.code == code, caught.value.message


def test_pairs_are_no_news_for_single_texts(sentence_bert: Base) -> None:
    """Where a pair stands in two rows, the head of single texts would not see the second."""
    ended = trained(run(sentence_bert, spec_of("regression", epochs=1), SETS["regression"][1]))
    with pytest.raises(EngineError, match="single texts") as caught:
        run(sentence_bert, continued("regression"), SETS["similarity"][1], ended)
    assert caught.value.code == "parent_mismatch"


# ---- promises ---------------------------------------------------------------------------------


def test_a_drained_continuation_goes_on_to_the_same_bytes(bert: Base, parent: Delta) -> None:
    spec = continued(epochs=3, eval_every_steps=4)
    whole = run(bert, spec, NEW_ROWS, parent)
    shelf, events = Shelf(), list[TrainingEvent]()

    def drain() -> Any:
        return "drain" if sum(e.kind == "progress" for e in events) >= 7 else None

    first = run(bert, spec, NEW_ROWS, parent, control=drain, shelf=shelf, events=events)
    assert first.outcome == "drained"
    events.clear()
    second = run(bert, spec, NEW_ROWS, parent, shelf=shelf, events=events)
    assert any("resumed at step 7" in e.data.get("message", "") for e in events)
    assert trained(second).digest == trained(whole).digest
    assert second.metrics == whole.metrics


def test_a_checkpoint_belongs_to_its_parent(bert: Base, parent: Delta) -> None:
    spec, shelf, events = continued(), Shelf(), list[TrainingEvent]()

    def drain() -> Any:
        return "drain" if sum(e.kind == "progress" for e in events) >= 3 else None

    run(bert, spec, NEW_ROWS, parent, control=drain, shelf=shelf, events=events)
    assert shelf.kept
    other = Delta.of({n: 1.01 * t for n, t in parent.tensors.items()}, parent.manifest)
    events.clear()
    moved = run(bert, spec, NEW_ROWS, other, shelf=shelf, events=events)
    assert any("left aside" in e.data.get("message", "") for e in events)
    assert trained(moved).digest == trained(run(bert, spec, NEW_ROWS, other)).digest


def test_a_delta_from_before_the_field_keeps_its_digest() -> None:
    delta = load_delta(BEFORE_PARENTS)
    assert delta.digest == OLD_DIGEST
    assert delta.manifest.parent_digest is None
    assert save_delta(delta) == BEFORE_PARENTS.read_bytes()

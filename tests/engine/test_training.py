"""The loop: it learns, it is exact after any interruption, it refuses what cannot be learned."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_engine.bases.base import Base, load_base
from peft_engine.configs import JobSpec
from peft_engine.delta import Delta
from peft_engine.errors import ConfigError, DataError, EngineError, TrainingError
from peft_engine.parts.texts import TEXT_METRICS
from peft_engine.tasks.text_generation import TextGeneration
from peft_engine.training import (
    Checkpoints,
    NoCheckpoints,
    TrainingEvent,
    TrainingResult,
    train,
)
from peft_engine.training.events import Wish
from peft_engine.training.recipes import RECIPES
from peft_engine.training.schedule import rate_factor
from tests.tiny_bases import WORDS, write_tiny_llama

Splits = Mapping[str, Sequence[Mapping[str, Any]]]


def classification_rows(count: int, *, start: int = 0) -> list[dict[str, str]]:
    """Rows whose label is the word that they begin with."""
    return [
        {
            "text": f"{WORDS[i % 3]} {WORDS[(i * 7) % 16]} {WORDS[(i * 5) % 16]}",
            "label": WORDS[i % 3],
        }
        for i in range(start, start + count)
    ]


CLASSIFICATION: Splits = {
    "train": classification_rows(48),
    "validation": classification_rows(12, start=50),
    "test": classification_rows(18, start=70),
}
GENERATION: Splits = {
    "train": [{"prompt": f"say {i % 4}", "completion": "abcd"[i % 4] * 3} for i in range(24)],
    "validation": [{"prompt": f"say {i % 4}", "completion": "abcd"[i % 4] * 3} for i in range(4)],
    "test": [{"prompt": f"say {i % 4}", "completion": "abcd"[i % 4] * 3} for i in range(4)],
}


def job(task: str = "text-classification", **training: Any) -> JobSpec:
    method = training.pop("method", {"type": "lora", "r": 4, "alpha": 32, "dropout": 0.1})
    settings: dict[str, Any] = {"batch_size": 8, "epochs": 4, "learning_rate": 0.01}
    settings["max_length"] = 40
    # for few rows `auto` would be gentler: see test_few_rows
    settings["head_learning_rate"] = RECIPES["lora", task].head_learning_rate
    settings |= {"keep": "best"} | training
    return JobSpec.model_validate(
        {
            "dataset_id": "ds",
            "base_model": "b",
            "task": task,
            "method": method,
            "training": settings,
        }
    )


class Shelf:
    """Checkpoints in memory."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, bytes, Delta | None]] = []

    def save(self, step: int, state: bytes, delta: Delta) -> None:
        self.kept.append((step, state, delta))

    def latest(self) -> tuple[int, bytes, Delta | None] | None:
        return self.kept[-1] if self.kept else None


def run(
    base: Base,
    spec: JobSpec,
    splits: Splits,
    *,
    control: Callable[[], Wish | None] = lambda: None,
    shelf: Checkpoints | None = None,
    events: list[TrainingEvent] | None = None,
    checkpoint_seconds: float = 1e9,
) -> TrainingResult:
    told = events if events is not None else []
    return train(
        base,
        spec,
        splits,
        control=control,
        emit=told.append,
        checkpoints=shelf or NoCheckpoints(),
        checkpoint_seconds=checkpoint_seconds,
    )


def weights_of(base: Base) -> list[torch.Tensor]:
    return [weight.clone() for weight in base.model.state_dict().values()]


def test_classification_is_learned_and_the_base_stays_as_it_was(bert: Base) -> None:
    before = weights_of(bert)
    events: list[TrainingEvent] = []
    result = run(bert, job(), CLASSIFICATION, events=events)
    assert result.outcome == "succeeded"
    assert result.delta is not None
    assert all(torch.equal(a, b) for a, b in zip(before, weights_of(bert), strict=True))
    test = result.metrics["test"]
    assert test["after"]["accuracy"] > test["before"]["accuracy"] + 0.2
    low, high = test["confidence_interval"]["accuracy"]
    assert low <= test["delta"]["accuracy"] <= high
    assert test["after"]["loss"] < test["frozen_head"]["loss"]
    added = test["against_frozen_head"]
    assert added["delta"]["loss"] == test["after"]["loss"] - test["frozen_head"]["loss"]
    low, high = added["confidence_interval"]["loss"]
    assert low <= added["delta"]["loss"] <= high
    assert not any("adds nothing" in e.data.get("message", "") for e in events)
    losses = [e.data["value"] for e in events if e.data.get("name") == "train/loss"]
    assert losses[-1] < losses[0]
    progress = [e.data for e in events if e.kind == "progress"]
    assert [p["step"] for p in progress] == list(range(1, 25))
    assert progress[-1]["percent"] == 100
    phases = [e.data["phase"] for e in events if e.kind == "phase"]
    assert phases == ["tokenizing", "training", "evaluating"]
    assert result.trainable_parameters == result.delta.parameters


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_generation_is_learned(family: str, request: pytest.FixtureRequest) -> None:
    base: Base = request.getfixturevalue(family)
    spec = job("text-generation", epochs=20, learning_rate=0.02, eval_generate_rows=4)
    test = run(base, spec, GENERATION).metrics["test"]
    assert test["after"]["loss"] < 0.5 * test["before"]["loss"]
    assert test["after"]["chrf"] > test["before"]["chrf"]
    assert test["before_is"] == "the untuned base"
    assert (test["helped"], test["metric"]) == (True, "loss")
    assert set(test["after"]) == set(TextGeneration.metrics) == set(test["confidence_interval"])
    assert test["after"]["perplexity"] == pytest.approx(math.exp(test["after"]["loss"]))


@pytest.mark.parametrize("metric", ["bleu", "exact_match", "perplexity", "token_accuracy"])
def test_any_metric_of_generation_may_decide(metric: str, llama: Base) -> None:
    stopping = {"metric": metric, "patience": 100}
    spec = job(
        "text-generation",
        epochs=10,
        learning_rate=0.02,
        eval_every_steps=10,
        eval_generate_rows=2,
        early_stopping=stopping,
    )
    events: list[TrainingEvent] = []
    result = run(llama, spec, GENERATION, events=events)
    seen = [e.data["value"] for e in events if e.data.get("name") == f"validation/{metric}"]
    assert len(seen) == 4  # the start, and every ten of thirty steps
    found = result.metrics["validation"]
    best = min(seen) if metric == "perplexity" else max(seen)
    assert found["best"][metric] == found["after"][metric] == best
    assert result.metrics["test"]["metric"] == metric
    texts = metric in TEXT_METRICS
    assert result.resolved["validation_generate_rows"] == (32 if texts else 0)
    assert ("chrf" in found["best"]) == texts


def test_a_metric_of_texts_needs_texts(llama: Base) -> None:
    stopping = {"metric": "bleu"}
    spec = job("text-generation", validation_generate_rows=0, early_stopping=stopping)
    with pytest.raises(ConfigError) as caught:
        run(llama, spec, GENERATION)
    assert caught.value.param == "training.validation_generate_rows"
    plain = {name: [{"text": "a b c"}] * 8 for name in GENERATION}
    with pytest.raises(ConfigError, match="give no bleu") as caught:
        run(llama, job("text-generation", early_stopping=stopping), plain)
    assert caught.value.code == "unknown_metric"


def test_classification_on_a_causal_base(llama: Base) -> None:
    metrics = run(llama, job(epochs=6), CLASSIFICATION).metrics
    test, validation = metrics["test"], metrics["validation"]
    assert test["after"]["accuracy"] > test["before"]["accuracy"]
    assert len(test["baselines"]) == 3
    best = max(own["metrics"]["accuracy"] for own in test["baselines"])
    assert test["before"]["accuracy"] == best
    assert test["helped"] in (True, "unclear")
    assert test["before_is"] in test["verdict"]
    assert {row["label"] for row in test["details"]["classes"]} == set(WORDS[:3])
    assert set(validation["confidence_interval"]) == set(validation["after"])
    assert validation["after"] == pytest.approx(validation["best"])
    assert "helped" not in validation


def test_the_same_job_gives_the_same_bytes_and_another_seed_does_not(bert: Base) -> None:
    digests = [_digest(run(bert, job(seed=seed), CLASSIFICATION)) for seed in (3, 3, 4)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
@pytest.mark.parametrize("stop_at", [1, 7, 13])
def test_a_drained_job_goes_on_to_the_same_bytes(
    bert: Base, llama: Base, task: str, stop_at: int
) -> None:
    base = bert if task == "text-classification" else llama
    splits = CLASSIFICATION if task == "text-classification" else GENERATION
    spec = job(task, epochs=6, eval_every_steps=5, eval_generate_rows=2)
    undisturbed = _digest(run(base, spec, splits))
    shelf, events = Shelf(), list[TrainingEvent]()

    def drain() -> Wish | None:
        steps = [e.data["step"] for e in events if e.kind == "progress"]
        return "drain" if steps and steps[-1] >= stop_at else None

    first = run(base, spec, splits, control=drain, shelf=shelf, events=events)
    assert first.outcome == "drained"
    assert first.delta is None
    again: list[TrainingEvent] = []
    second = run(base, spec, splits, shelf=shelf, events=again)
    assert _digest(second) == undisturbed
    if stop_at > 1:
        resumed = next(e.data["step"] for e in again if e.kind == "progress")
        assert resumed > stop_at


@pytest.mark.parametrize("validation", [CLASSIFICATION["validation"], []], ids=["", "none"])
def test_every_checkpoint_leads_to_the_same_bytes(
    bert: Base, validation: Sequence[Mapping[str, Any]]
) -> None:
    """Whatever checkpoint survives a kill, the end is the same, the test report too."""
    spec = job(eval_every_steps=4, gradient_accumulation=2)
    shelf, splits = Shelf(), {**CLASSIFICATION, "validation": validation}
    whole = run(bert, spec, splits, shelf=shelf, checkpoint_seconds=0)
    assert len(shelf.kept) > 8
    for kept in (shelf.kept[0], shelf.kept[4], shelf.kept[-1]):
        one = Shelf()
        one.kept = [kept]
        resumed = run(bert, spec, splits, shelf=one)
        assert _digest(resumed) == _digest(whole)
        assert resumed.metrics == whole.metrics


@pytest.mark.parametrize(
    "spec",
    [job(eval_every_steps=4), job(eval_every_steps=2, batch_size=4, gradient_accumulation=5)],
    ids=["evaluation", "accumulated step"],
)
def test_a_drain_in_the_middle_of_something_is_exact_too(bert: Base, spec: JobSpec) -> None:
    undisturbed = _digest(run(bert, spec, CLASSIFICATION))
    asked = 0
    total = _count_questions(bert, spec)
    for stop_at in range(10, total, max(7, total // 10)):
        asked, shelf = 0, Shelf()

        def drain(at: int = stop_at) -> Wish | None:
            nonlocal asked
            asked += 1
            return "drain" if asked >= at else None

        assert run(bert, spec, CLASSIFICATION, control=drain, shelf=shelf).outcome == "drained"
        assert _digest(run(bert, spec, CLASSIFICATION, shelf=shelf)) == undisturbed


def test_a_wish_is_heard_between_the_batches_of_a_step(bert: Base) -> None:
    whole = _count_questions(bert, job(epochs=1, batch_size=48))
    accumulated = job(epochs=1, batch_size=8, gradient_accumulation=6)
    assert _count_questions(bert, accumulated) == whole + 5


def _count_questions(base: Base, spec: JobSpec) -> int:
    asked = 0

    def count() -> None:
        nonlocal asked
        asked += 1

    run(base, spec, CLASSIFICATION, control=count)
    return asked


def test_a_checkpoint_of_another_job_is_left_aside(bert: Base) -> None:
    shelf = Shelf()
    run(bert, job(seed=1), CLASSIFICATION, shelf=shelf, checkpoint_seconds=0)
    events: list[TrainingEvent] = []
    found = run(bert, job(seed=2), CLASSIFICATION, shelf=shelf, events=events)
    assert _digest(found) == _digest(run(bert, job(seed=2), CLASSIFICATION))
    assert any("left aside" in e.data.get("message", "") for e in events)


def test_cancel_is_obeyed_at_the_next_step_and_keeps_nothing(bert: Base) -> None:
    events: list[TrainingEvent] = []
    shelf = Shelf()
    result = run(
        bert,
        job(),
        CLASSIFICATION,
        control=lambda: "cancel" if any(e.kind == "progress" for e in events) else None,
        events=events,
        shelf=shelf,
    )
    assert (result.outcome, result.delta, shelf.kept) == ("cancelled", None, [])
    assert sum(e.kind == "progress" for e in events) == 1


def test_accumulated_batches_are_one_large_batch(bert: Base) -> None:
    """Gradients are weighed by rows, so the last, smaller batch counts no more than it should."""
    splits = {**CLASSIFICATION, "train": CLASSIFICATION["train"][:20]}
    common = {"max_steps": 1, "method": {"type": "lora", "r": 4}, "learning_rate": 0.1}
    one = run(bert, job(batch_size=20, **common), splits).delta
    two = run(bert, job(batch_size=8, gradient_accumulation=3, **common), splits).delta
    assert one is not None
    assert two is not None
    for name, tensor in one.tensors.items():
        assert torch.allclose(tensor, two.tensors[name], atol=2e-3), name


def test_a_job_never_ends_below_its_start(bert: Base) -> None:
    """With a rate that ruins everything the frozen head is what is kept."""
    events: list[TrainingEvent] = []
    spec = job(learning_rate=1.0, head_learning_rate=1.0, epochs=2)
    ruin = run(bert, spec, CLASSIFICATION, events=events)
    assert ruin.metrics["validation"]["best_step"] == 0
    test = ruin.metrics["test"]
    assert test["after"]["accuracy"] == test["frozen_head"]["accuracy"]
    assert test["against_frozen_head"]["confidence_interval"]["accuracy"] == [0, 0]
    (warning,) = [e.data for e in events if e.data.get("level") == "warning"]
    assert "the adapter adds nothing to the frozen head" in warning["message"]


def test_patience_ends_a_job_that_no_longer_improves(bert: Base) -> None:
    stopping = {"metric": "loss", "patience": 2, "min_delta": 10.0}
    spec = job(epochs=50, eval_every_steps=3, early_stopping=stopping)
    events: list[TrainingEvent] = []
    result = run(bert, spec, CLASSIFICATION, events=events)
    assert result.metrics["validation"]["stopped_early"]
    assert max(e.data["step"] for e in events if e.kind == "progress") == 9


@pytest.mark.parametrize(("schedule", "patience"), [("linear", 24), ("constant", 3)])
def test_only_a_rate_that_stays_ends_a_job_by_default(
    bert: Base, schedule: str, patience: int
) -> None:
    stopping = {"metric": "loss", "min_delta": 10.0}
    spec = job(epochs=4, eval_every_steps=1, early_stopping=stopping, schedule=schedule)
    events: list[TrainingEvent] = []
    result = run(bert, spec, CLASSIFICATION, events=events)
    assert result.resolved["patience"] == patience
    assert result.metrics["validation"]["stopped_early"] == (schedule == "constant")
    # the first evaluation is the one that later ones have to improve on
    last = max(e.data["step"] for e in events if e.kind == "progress")
    assert last == (24 if schedule == "linear" else 1 + patience)


def test_a_loss_that_is_not_a_number_ends_the_job_with_advice(models_dir: Path) -> None:
    folder = write_tiny_llama(models_dir / "llama-nan")
    base = load_base(str(folder), name="l", models_dir=models_dir)
    with torch.no_grad():
        base.trunk.get_submodule("norm").weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match="is nan; lower learning_rate"):
        run(base, job("text-generation"), GENERATION)


@pytest.mark.parametrize(
    ("splits", "code"),
    [
        ({"train": []}, "too_few_rows"),
        ({"train": [{"text": "a", "label": "b"}] * 4}, "too_few_labels"),
        ({**CLASSIFICATION, "test": [{"text": "a", "label": "stranger"}]}, "unknown_label"),
    ],
)
def test_records_that_cannot_be_learned_from(bert: Base, splits: Splits, code: str) -> None:
    with pytest.raises(DataError) as caught:
        run(bert, job(), splits)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (job("text-generation"), "task_not_supported"),
        (job(max_length=4000), "too_long"),
        (job(precision="bf16"), "precision_mismatch"),
        (job(method={"type": "lora", "targets": ["nowhere"]}), "no_such_site"),
    ],
)
def test_jobs_that_do_not_fit_the_base(bert: Base, spec: JobSpec, code: str) -> None:
    with pytest.raises((ConfigError, EngineError)) as caught:
        run(bert, spec, CLASSIFICATION)
    assert caught.value.code == code


def test_bf16_learns_too(models_dir: Path) -> None:
    folder = write_tiny_llama(models_dir / "llama16")
    base = load_base(str(folder), name="l", models_dir=models_dir, precision="bf16")
    result = run(base, job("text-generation", epochs=20, learning_rate=0.02), GENERATION)
    assert result.delta is not None
    assert {tensor.dtype for tensor in result.delta.tensors.values()} == {torch.float32}
    test = result.metrics["test"]
    assert test["after"]["loss"] < 0.5 * test["before"]["loss"]


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_warm_up_and_stay_in_bounds(schedule: Any) -> None:
    factors = [
        rate_factor(step, total_steps=100, warmup_ratio=0.1, schedule=schedule)
        for step in range(100)
    ]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[10] == 1
    falling = factors[10:]
    assert falling == sorted(falling, reverse=True)
    assert factors[-1] == (1 if schedule == "constant" else pytest.approx(0, abs=0.02))


def _digest(result: TrainingResult) -> str:
    assert result.delta is not None
    return result.delta.digest


def test_features_that_tell_nothing_are_trained_from_a_head_of_zeros(bert: Base) -> None:
    """Labels without any relation to the texts: the first head passes no gradient on."""
    rows = [{"text": f"{WORDS[i % 16]} a", "label": WORDS[i % 3]} for i in range(48)]
    method = [{"type": "lora", "r": 4}, {"type": "bitfit"}]
    spec = job(method=method, max_steps=3)
    assert run(bert, spec, {"train": rows}).outcome == "succeeded"


def test_a_site_that_gets_no_gradient_beside_others_fails_the_job(bert: Base) -> None:
    first: Any = bert.trunk.encoder.layer[0]  # type: ignore[union-attr,index]
    hook = first.register_forward_hook(lambda *given: given[-1].detach())
    try:
        with pytest.raises(TrainingError, match="sites get no gradient") as caught:
            run(bert, job(reuse_frozen_layers=False), CLASSIFICATION)
    finally:
        hook.remove()
    assert caught.value.code == "no_gradient"


def test_rows_that_the_start_fits_exactly_are_told_as_such(bert: Base) -> None:
    one = [{"text": "where is my card", "value": 3.0}]
    with pytest.raises(TrainingError, match="fits these rows exactly") as caught:
        run(bert, job("regression", max_steps=3), {"train": one, "validation": [], "test": []})
    assert caught.value.code == "no_gradient"


def test_a_run_that_goes_on_still_asks_for_a_gradient(bert: Base) -> None:
    alike = [{"text": "where is my card", "label": "ab"[i % 2]} for i in range(8)]
    splits: Splits = {"train": alike, "validation": [], "test": []}
    spec, shelf = job(epochs=10), Shelf()
    with pytest.raises(TrainingError, match="gets no gradient"):
        run(bert, spec, splits, shelf=shelf, checkpoint_seconds=0)
    assert shelf.kept
    with pytest.raises(TrainingError, match="gets no gradient") as caught:
        run(bert, spec, splits, shelf=shelf)
    assert caught.value.code == "no_gradient"

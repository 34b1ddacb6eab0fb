"""Estimates: they say what a run does, leave nothing behind, and find settings that fit."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from peft_engine.bases.base import Base
from peft_engine.configs import JobSpec
from peft_engine.delta import save_delta
from peft_engine.errors import ConfigError
from peft_engine.router import Router
from peft_engine.training import (
    Bounds,
    Estimate,
    FeatureStore,
    NoCheckpoints,
    TrainingResult,
    estimate,
    train,
)
from peft_engine.training.estimating import measuring
from peft_engine.training.estimating.fitting import halves, shorter
from peft_engine.training.estimating.memory import Gauge, is_out_of_memory
from tests.engine.task_sets import SETS
from tests.engine.test_training import CLASSIFICATION, GENERATION, Splits, job

QUICK = Bounds(seconds=0.5)


def train_it(base: Base, spec: JobSpec, splits: Splits, **more: Any) -> TrainingResult:
    return train(
        base,
        spec,
        splits,
        control=lambda: None,
        emit=lambda _: None,
        checkpoints=NoCheckpoints(),
        **more,
    )


@contextmanager
def refusing(base: Base, too_much: Callable[[torch.Tensor], bool]) -> Iterator[None]:
    """Let memory run out in a forward with gradients whose token ids (B, T) are too much."""

    def refuse(_module: nn.Module, given: tuple[torch.Tensor, ...], _named: Any) -> None:
        ids = given[0] if given else _named["input_ids"]
        if torch.is_grad_enabled() and too_much(ids):
            raise torch.OutOfMemoryError("CUDA out of memory: the test says so")

    hook = base.trunk.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def assert_whole(found: Estimate) -> None:
    assert found.seconds is not None
    parts = found.seconds
    named = (parts.preparing, parts.steps, parts.validations, parts.reports, parts.writing)
    assert parts.total.likely == pytest.approx(sum(part.likely for part in named))
    # never narrower than runs on one machine were seen to be, but for the rounding of sums
    rounding = 1e-9 * parts.total.likely
    assert 0 < parts.total.low <= 0.75 * parts.total.likely + rounding
    assert parts.total.high >= 1.25 * parts.total.likely - rounding
    assert found.tokens_per_second is not None
    assert found.tokens_per_second > 0


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("bert", "multi-label"),
        ("bert", "tags"),
        ("bert", "question"),
        ("bert", "choice"),
        ("sentence_bert", "relation"),
        ("llama", "regression"),
        ("llama", "texts"),
        ("t5", "texts"),
    ],
)
def test_it_says_what_the_run_does(base: Base, name: str) -> None:
    task, splits = {**SETS, "texts": ("text-generation", GENERATION)}[name]
    settings = {"epochs": 2, "eval_generate_rows": 4}
    spec = job(task, **settings)
    found = estimate(base, spec, splits, bounds=QUICK)
    result = train_it(base, spec, splits)
    assert result.delta is not None
    assert found.fits
    assert found.suggestion is None
    assert found.resolved == result.resolved
    assert found.trainable_parameters == result.trainable_parameters
    assert found.base_parameters == result.base_parameters
    # a file has a header beside its tensors
    assert found.adapter_bytes is not None
    assert 0 < len(save_delta(result.delta)) - found.adapter_bytes < 20_000
    assert_whole(found)


def test_tokens_are_those_of_the_run(bert: Base) -> None:
    events: list[Any] = []
    spec = job(epochs=2.5, gradient_accumulation=2, batch_size=5)
    train(
        bert,
        spec,
        CLASSIFICATION,
        control=lambda: None,
        emit=events.append,
        checkpoints=NoCheckpoints(),
    )
    told = [event.data for event in events if event.kind == "progress"][-1]
    found = estimate(bert, spec, CLASSIFICATION, bounds=QUICK)
    assert (found.total_steps, found.tokens) == (told["step"], told["tokens"])


def test_nothing_is_left(bert: Base) -> None:
    router, features, spec = Router(bert.trunk), FeatureStore(), job()
    before = train_it(bert, spec, CLASSIFICATION, router=router, features=features).delta
    weights = {name: own.clone() for name, own in bert.model.state_dict().items()}
    drawn = torch.get_rng_state()
    estimate(bert, spec, CLASSIFICATION, bounds=QUICK, router=router)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(torch.equal(own, weights[name]) for name, own in bert.model.state_dict().items())
    after = train_it(bert, spec, CLASSIFICATION, router=router, features=features).delta
    assert before is not None
    assert after is not None
    assert save_delta(after) == save_delta(before)


def test_who_interrupts_it_leaves_nothing_either(bert: Base) -> None:
    class Enough(Exception):
        pass

    router, spec = Router(bert.trunk), job(epochs=1)
    asked = 0

    def count() -> None:
        nonlocal asked
        asked += 1

    def ask(check: Callable[[], None]) -> None:
        # as many measurements each time, however busy the machine is
        clock = partial(next, itertools.count(step=0.01))
        estimate(bert, spec, CLASSIFICATION, bounds=QUICK, router=router, check=check, clock=clock)

    before = train_it(bert, spec, CLASSIFICATION, router=router).delta
    ask(count)
    assert asked > 4
    for limit in range(1, asked, max(1, asked // 4)):
        left = limit

        def stop() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Enough

        with pytest.raises(Enough):
            ask(stop)
    after = train_it(bert, spec, CLASSIFICATION, router=router).delta
    assert before is not None
    assert after is not None
    assert after.digest == before.digest


def test_a_smaller_batch_is_found_and_really_fits(bert: Base) -> None:
    spec = job(batch_size=8, epochs=1)
    with refusing(bert, lambda ids: ids.shape[0] > 2):
        found = estimate(bert, spec, CLASSIFICATION, bounds=QUICK)
        assert not found.fits
        assert found.suggestion == {"batch_size": 2, "gradient_accumulation": 4}
        assert [(own.batch_size, own.fits) for own in found.trials] == [
            (8, False),
            (4, False),
            (2, True),
        ]
        assert found.resolved is not None
        assert found.resolved["batch_size"] == 2
        assert_whole(found)
        training = spec.training.model_copy(update=dict(found.suggestion))
        fitting = spec.model_copy(update={"training": training})
        assert train_it(bert, fitting, CLASSIFICATION).outcome == "succeeded"
        with pytest.raises(torch.OutOfMemoryError):
            train_it(bert, spec, CLASSIFICATION)


def test_shorter_rows_are_the_last_hint(bert: Base) -> None:
    long = [{"text": "card lost " * 20, "label": "ab"[i % 2]} for i in range(8)]
    splits = {"train": long, "validation": long[:2], "test": long[:2]}
    with refusing(bert, lambda ids: ids.shape[1] > 20):
        found = estimate(bert, job(batch_size=4, epochs=1), splits, bounds=QUICK)
    assert not found.fits
    assert found.suggestion == {
        "batch_size": 1,
        "gradient_accumulation": 4,
        "gradient_checkpointing": True,
        "max_length": 20,
    }
    assert found.trials[0].max_length == 40
    assert_whole(found)


def test_where_nothing_fits_no_seconds_are_told(bert: Base) -> None:
    with refusing(bert, lambda ids: ids.numel() > 0):
        found = estimate(bert, job(batch_size=4), CLASSIFICATION, bounds=QUICK)
    assert (found.fits, found.suggestion, found.seconds, found.resolved) == (
        False,
        None,
        None,
        None,
    )
    assert not any(own.fits for own in found.trials)


def test_a_bound_of_the_owner_counts_as_full(llama: Base) -> None:
    if Gauge(llama.device).measure is None:
        pytest.skip("this system tells no peak")
    found = estimate(llama, job("text-generation"), GENERATION, bounds=Bounds(0.5, memory_bytes=1))
    assert not found.fits
    assert found.suggestion is None


def test_memory_that_runs_out_in_an_evaluation_is_told_apart(bert: Base) -> None:
    def refuse(_module: nn.Module, *_: Any) -> None:
        if not torch.is_grad_enabled():
            raise MemoryError

    hook = bert.trunk.register_forward_pre_hook(refuse)
    try:
        found = estimate(bert, job(), CLASSIFICATION, bounds=QUICK)
    finally:
        hook.remove()
    assert not found.fits
    assert "outside of the training steps" in " ".join(found.notes)


def test_a_large_split_is_read_in_part(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = job(epochs=3)
    whole = estimate(bert, spec, CLASSIFICATION, bounds=QUICK)
    monkeypatch.setattr(measuring, "_MOST_READ_ROWS", 16)
    part = estimate(bert, spec, CLASSIFICATION, bounds=QUICK)
    assert (part.total_steps, part.validations) == (whole.total_steps, whole.validations)
    assert part.resolved == whole.resolved
    assert dict(part.rows_read) == {"train": 16, "validation": 12, "test": 16}
    assert dict(part.rows) == {"train": 48, "validation": 12, "test": 18}
    assert "16 of the 48 rows of train were read" in part.notes
    assert part.tokens == pytest.approx(whole.tokens, rel=0.2)


def test_layers_that_are_reused_cost_their_first_epoch(bert: Base) -> None:
    spec = job(method={"type": "lora", "r": 4, "layers": {"last": 1}}, epochs=3)
    found = estimate(bert, spec, CLASSIFICATION, bounds=QUICK)
    assert found.resolved is not None
    assert found.resolved["reuse_frozen_layers"]
    assert_whole(found)


def test_a_job_that_goes_on_from_a_parent_and_one_of_several_methods(bert: Base) -> None:
    parent = train_it(bert, job(epochs=1), CLASSIFICATION).delta
    spec = job(epochs=1)
    found = estimate(bert, spec, CLASSIFICATION, bounds=QUICK, parent=parent)
    assert found.resolved == train_it(bert, spec, CLASSIFICATION, parent=parent).resolved
    several = job(method=[{"type": "lora", "r": 4}, {"type": "bitfit"}], epochs=1)
    assert_whole(estimate(bert, several, CLASSIFICATION, bounds=QUICK))


def test_texts_have_a_range(llama: Base) -> None:
    spec = job("text-generation", epochs=1, eval_generate_rows=4)
    found = estimate(llama, spec, GENERATION, bounds=QUICK)
    assert found.seconds is not None
    writing = found.seconds.writing
    assert 0 < writing.low < writing.likely < writing.high
    none = estimate(
        llama, job("text-generation", epochs=1, eval_generate_rows=0), GENERATION, bounds=QUICK
    )
    assert none.seconds is not None
    assert none.seconds.writing.high == 0


def test_several_devices_are_refused_with_a_reason(bert: Base) -> None:
    with pytest.raises(ConfigError) as refused:
        estimate(bert, job(devices=2), CLASSIFICATION)
    assert refused.value.code == "estimate_unavailable"
    assert refused.value.param == "training.devices"


def test_an_early_end_is_noted(bert: Base) -> None:
    spec = job(epochs=6, early_stopping={"patience": 2})
    found = estimate(bert, spec, CLASSIFICATION, bounds=QUICK)
    assert any("end the run early" in note for note in found.notes)
    assert not any("end the run early" in n for n in estimate(bert, job(), CLASSIFICATION).notes)


def test_smaller_batches_keep_the_rows_of_a_step() -> None:
    assert list(halves(16, 1)) == [(8, 2), (4, 4), (2, 8), (1, 16)]
    assert list(halves(12, 2)) == [(6, 4), (3, 8), (1, 24)]
    assert list(halves(7, 3)) == [(3, 7), (1, 21)]
    assert list(halves(1, 4)) == []
    assert list(halves(4096, 1))[-1] == (4, 1024)


def test_lengths_are_halved() -> None:
    assert list(shorter(100)) == [50, 25]
    assert list(shorter(31)) == []


def test_a_gauge_sees_what_was_given_back() -> None:
    gauge = Gauge(torch.device("cpu"))
    if gauge.measure is None:
        pytest.skip("this system tells no peak")
    torch.ones(32 << 20, dtype=torch.float32)  # 128 MiB, freed at once
    peak = gauge.peak_bytes()
    assert peak is not None
    assert 120 << 20 < peak < 300 << 20
    gauge.set_back()
    after = gauge.peak_bytes()
    assert after is not None
    assert after < 60 << 20


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_which_errors_are_of_memory(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) is is_memory

"""What a run tells of the time that is left."""

from collections.abc import Mapping
from typing import Any

import pytest

from peft_engine.bases.base import Base
from peft_engine.configs import JobSpec
from peft_engine.training import NoCheckpoints, TrainingEvent, train
from tests.engine.test_training import CLASSIFICATION, Splits, job


class Clock:
    """Steps take a second, evaluations a minute for each metric, all else nothing."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def pass_time(self, event: TrainingEvent) -> None:
        if event.kind == "progress":
            self.now += 1
        elif event.data.get("name", "").startswith("validation/"):
            self.now += 60


def _told_by_the_clock(
    base: Base, monkeypatch: pytest.MonkeyPatch, spec: JobSpec, splits: Splits
) -> tuple[list[Mapping[str, Any]], float]:
    """What was told of progress, and how long an evaluation took on the clock."""
    clock, told = Clock(), []
    monkeypatch.setattr("peft_engine.training.pace.time", clock)

    def emit(event: TrainingEvent) -> None:
        clock.pass_time(event)
        told.extend([event.data] if event.kind == "progress" else [])

    train(
        base,
        spec,
        splits,
        control=lambda: None,
        emit=emit,
        checkpoints=NoCheckpoints(),
        checkpoint_seconds=1e9,
    )
    evaluations = 1 + len(told) // spec.training.eval_every_steps  # type: ignore[operator]
    return told, (clock.now - len(told)) / evaluations


def test_remaining_time_counts_the_evaluations_that_are_still_to_come(
    bert: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, evaluation = _told_by_the_clock(
        bert, monkeypatch, job(eval_every_steps=3, reuse_frozen_layers=False), CLASSIFICATION
    )
    assert len(told) == 24
    assert told[0]["training_seconds_left"] is told[0]["eta_seconds"] is None  # nothing measured
    closing = 2 * (18 + 12) / 12  # tuned and untuned, of 18 test rows and 12 validation rows
    for step, data in enumerate(told[1:], start=2):
        # the clock of a step starts when it is told: the first one took no time
        steps_left = (step - 1) / step * (24 - step)
        due = len([at for at in range(3, 25, 3) if at >= step])
        assert data["training_seconds_left"] == pytest.approx(steps_left + due * evaluation)
        assert data["eta_seconds"] == pytest.approx(steps_left + (due + closing) * evaluation)
        assert data["tokens_per_second"] == pytest.approx(data["tokens"] / (step - 1))


@pytest.mark.parametrize(
    ("settings", "splits"),
    [
        ({"adversarial": {}}, CLASSIFICATION),
        ({"reuse_frozen_layers": False}, {**CLASSIFICATION, "validation": []}),
    ],
    ids=["attacks", "no validation"],
)
def test_an_end_that_cannot_be_foreseen_is_not_told(
    bert: Base, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], splits: Splits
) -> None:
    spec = job(eval_every_steps=3, epochs=1, **settings)
    told, _ = _told_by_the_clock(bert, monkeypatch, spec, splits)
    assert [data["eta_seconds"] for data in told] == [None] * 6
    assert told[-1]["training_seconds_left"] is not None

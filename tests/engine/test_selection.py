"""Which of a run's evaluations is kept."""

from collections.abc import Sequence

import numpy as np
import pytest

from peft_engine.configs.training import TrainingConfig
from peft_engine.parts.statistics import draw_values, mean_of_rows
from peft_engine.training.checkpoint import Progress
from peft_engine.training.evaluations import choose_keep
from peft_engine.training.selection import Keep, is_better, note_evaluation

ROWS = 300
# Ten rows of 300 are 3.3 points; the standard error of a difference in d rows is √d / 300.
START = np.arange(ROWS) < 200


def flip(right: np.ndarray, gained: int, lost: int) -> np.ndarray:
    """The same answers, but for so many that are right now and so many that are wrong now."""
    changed = right.copy()
    changed[np.flatnonzero(~right)[:gained]] = True
    changed[np.flatnonzero(right)[:lost]] = False
    return changed


def keep(evaluations: Sequence[np.ndarray], how: Keep, *, drawn: bool = True) -> Progress:
    """Progress after evaluations at steps 0, 1, …"""
    progress = Progress(run="")
    for step, right in enumerate(evaluations):
        own = mean_of_rows(right.astype(float))
        note_evaluation(
            progress,
            step,
            {"accuracy": own.value, "loss": 1.0},
            draw_values(own).tolist() if drawn else [],
            metric="accuracy",
            min_delta=0.0,
            patience=None,
            total_steps=len(evaluations),
            keep=how,
        )
    return progress


BEST = flip(START, 40, 0)
# 16 and 20 changed rows; one standard error is 4 and 4.5 of them.
WITHIN = flip(BEST, 7, 9)
BEYOND = flip(BEST, 6, 14)


@pytest.mark.parametrize(
    ("later", "how", "kept"),
    [
        (WITHIN, "one_se", 2),
        (WITHIN, "best", 1),
        (BEYOND, "one_se", 1),
        (BEYOND, "last", 2),
        (BEST, "one_se", 2),
    ],
)
def test_a_later_step_within_one_standard_error_is_kept(
    later: np.ndarray, how: Keep, kept: int
) -> None:
    progress = keep([START, BEST, later], how)
    assert progress.best_step == kept
    assert progress.best_metrics["accuracy"] == ([START, BEST, later][kept]).mean()
    if how != "last":
        assert (progress.top_step, progress.top_metrics["accuracy"]) == (1, BEST.mean())


def test_steps_are_measured_by_the_top_one_and_not_by_each_other() -> None:
    slide = [BEST]
    for _ in range(6):  # each within the noise of the one before it
        slide.append(flip(slide[-1], 0, 3))
    assert keep([START, *slide], "one_se").best_step < len(slide)


def test_what_cannot_be_drawn_again_is_kept_only_if_better() -> None:
    assert keep([START, BEST, WITHIN], "one_se", drawn=False).best_step == 1


@pytest.mark.parametrize(
    ("asked", "metric", "rows", "kept"),
    [
        ({}, "accuracy", 16, "one_se"),
        ({}, "accuracy", 15, "last"),
        ({}, "loss", 16, "best"),
        ({"schedule": "cosine"}, "f1", 16, "one_se"),
        ({"schedule": "constant"}, "f1", 16, "best"),
        ({"keep": "best"}, "f1", 16, "best"),
        ({"keep": "one_se"}, "loss", 3, "one_se"),
    ],
)
def test_what_auto_comes_to(asked: dict[str, str], metric: str, rows: int, kept: str) -> None:
    training = TrainingConfig.model_validate(asked)
    assert choose_keep(training, metric=metric, validation_rows=rows).value == kept


@pytest.mark.parametrize("min_delta", [0.0, 0.01])
def test_what_is_better_in_both_is_never_worth_less_than_what_is_better_in_one(
    min_delta: float,
) -> None:
    best = {"accuracy": 0.8, "loss": 0.5}
    both, one = {"accuracy": 0.805, "loss": 0.3}, {"accuracy": 0.8, "loss": 0.499}
    found = [is_better(own, best, metric="accuracy", min_delta=min_delta) for own in (both, one)]
    assert found == [min_delta == 0] * 2

"""Resampling, calibration and verdicts in closed form."""

import numpy as np
import pytest

from peft_engine.parts.statistics import (
    Evaluation,
    calibration_error,
    evaluation_of,
    mean_of_rows,
    paired_intervals,
    ratio_of_sums,
)
from peft_engine.tasks.protocol import Baseline
from peft_engine.training.report import choose_baseline, compare
from peft_engine.training.verdict import add_verdict, judge


def test_calibration_error_is_the_gap_between_sure_and_right() -> None:
    # two bins: three answers at 0.9, two right; two answers at 0.5, none right
    sure = np.array([0.9, 0.9, 0.9, 0.5, 0.5])
    right = np.array([1.0, 1, 0, 0, 0])
    expected = (3 * abs(2 / 3 - 0.9) + 2 * 0.5) / 5
    assert calibration_error(sure, right).value == pytest.approx(expected)
    assert calibration_error(np.ones(4), np.ones(4)).value == 0
    # the same answers, dealt to two rows and to one without any
    owners = np.array([0, 0, 0, 2, 2])
    found = calibration_error(sure, right, owners=owners, rows=3)
    assert (found.count, found.value) == (3, pytest.approx(expected))
    twice = found.resample(np.array([[3.0, 0, 0], [0, 3, 0]]))
    assert twice.tolist() == pytest.approx([abs(2 / 3 - 0.9), 0])


def test_metrics_over_other_numbers_of_rows_have_intervals_of_their_own() -> None:
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=50), generator.normal(size=200) + 3
    before = {
        "short": mean_of_rows(one),
        "long": mean_of_rows(np.zeros(200)),
        "gone": mean_of_rows(one),
    }
    after = {"short": mean_of_rows(one + 1), "long": mean_of_rows(other)}
    found = paired_intervals(before, after)
    assert list(found) == ["short", "long"]
    assert (found["short"].low, found["short"].high) == pytest.approx((1, 1))
    error = other.std() / 200**0.5
    assert found["long"].low == pytest.approx(other.mean() - 1.96 * error, abs=0.03)
    assert found["long"].high == pytest.approx(other.mean() + 1.96 * error, abs=0.03)
    shorter = {"short": mean_of_rows(one[:20])}
    assert paired_intervals(shorter, after) == {}


@pytest.mark.parametrize(
    ("change", "interval", "metric", "helped"),
    [
        (0.2, (0.1, 0.3), "accuracy", True),
        (-0.2, (-0.3, -0.1), "accuracy", False),
        (0.2, (0.1, 0.3), "loss", False),
        (-0.2, (-0.3, -0.1), "rmse", True),
        (0.2, (-0.1, 0.3), "accuracy", "unclear"),
        (0.2, (0.0, 0.3), "accuracy", "unclear"),
        (0.0, (0.0, 0.0), "accuracy", False),
    ],
)
def test_a_job_helped_when_the_interval_excludes_zero_on_the_right_side(
    change: float, interval: tuple[float, float], metric: str, helped: bool | str
) -> None:
    assert judge(change, interval, metric=metric) == helped


def test_the_verdict_says_what_is_compared_and_what_the_adapter_adds() -> None:
    wrong, half, right = (np.repeat([1.0, 0], [n, 100 - n]) for n in (10, 50, 90))
    evaluations = [evaluation_of({"accuracy": mean_of_rows(own)}) for own in (wrong, half, right)]
    report = compare(evaluations[0], evaluations[2]) | {"rows": 100, "before_is": "a guess"}
    added = compare(evaluations[2], evaluations[2])
    report |= {"frozen_head": {"accuracy": 0.9}, "against_frozen_head": added}
    found = add_verdict(report, metric="accuracy", rows=100)
    assert (found["helped"], found["metric"]) == (True, "accuracy")
    assert found["against_frozen_head"]["helped"] is False
    for words in (
        "It helped",
        "100 test rows",
        "0.1 (a guess) to 0.9",
        "excludes 0",
        "adds nothing",
    ):
        assert words in found["verdict"]
    worse = compare(evaluations[2], evaluations[1]) | {"rows": 100, "before_is": "a guess"}
    assert add_verdict(worse, metric="accuracy", rows=100)["verdict"].startswith(
        "It made things worse"
    )


@pytest.mark.parametrize(
    ("score", "change", "helped", "words"),
    [
        (0.82, 6e-9, False, "adds nothing"),
        (0.82, 2e-6, True, "adds to it"),
        (30.0, -1e-5, False, "adds nothing"),
        (30.0, -2e-4, False, "takes from it"),
    ],
)
def test_rounding_is_no_change_even_when_all_rows_agree_in_its_sign(
    score: float, change: float, helped: bool, words: str
) -> None:
    compared = {
        "delta": {"bleu": change},
        "confidence_interval": {"bleu": [change - abs(change) / 2, change + abs(change) / 2]},
    }
    report = {
        **compared,
        "rows": 600,
        "before": {"bleu": score},
        "after": {"bleu": score + change},
        "before_is": "the base",
        "frozen_head": {"bleu": score},
        "against_frozen_head": compared,
    }
    found = add_verdict(report, metric="bleu", rows=600)
    assert found["helped"] is found["against_frozen_head"]["helped"] is helped
    assert words in found["verdict"]
    assert found["verdict"].startswith("It changed nothing") is (words == "adds nothing")


def _baseline(what: str, accuracy: float, loss: float, rows: int = 10) -> Baseline:
    return Baseline(Evaluation({"accuracy": accuracy, "loss": loss}, {}), what, rows)


def test_what_is_compared_with_is_the_best_that_was_seen_on_all_rows() -> None:
    found = [
        _baseline("a few rows", 0.9, 0.1, rows=3),
        _baseline("first", 0.5, 0.9),
        _baseline("second", 0.5, 0.7),
    ]
    assert choose_baseline(found, ["accuracy"], rows=10).what == "first"
    assert choose_baseline(found, ["loss", "accuracy"], rows=10).what == "second"
    assert choose_baseline(found, ["spearman", "accuracy"], rows=10).what == "first"


def test_nothing_to_average_is_zero() -> None:
    assert ratio_of_sums(np.zeros(3), np.zeros(3)).value == 0

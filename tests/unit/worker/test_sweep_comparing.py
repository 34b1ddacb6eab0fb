"""How clearly the best trial is the best: by hand, on draws made by the test."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from worker.sweeps.comparing import Candidate, compare, seed_deviation

ROWS = 100


def candidate(number: int, right: Any, *, pairing: str = "p", **params: Any) -> Candidate:
    """A trial whose accuracy is the mean of ``right``, drawn again as training does."""
    rows = np.asarray(right, dtype=float)
    generator = np.random.default_rng(0)
    draws = [float(rows[generator.integers(0, len(rows), len(rows))].mean()) for _ in range(1000)]
    return Candidate(number, params, float(rows.mean()), tuple(draws), len(rows), pairing)


def right(count: int, *, last: int = 0) -> list[int]:
    """So many rows right, the first ones; and some at the end."""
    return [1] * count + [0] * (ROWS - count - last) + [1] * last


def test_a_winner_that_the_rows_show_is_called_one() -> None:
    found = compare(
        [candidate(0, right(60)), candidate(1, right(90))], metric="accuracy", lower_is_better=False
    )
    assert (found["best"], found["level"], found["rows"]) == (1, [], ROWS)
    best, other = found["standing"]
    assert (best["number"], best["behind"], best["confidence_interval"]) == (1, 0.0, None)
    low, high = other["confidence_interval"]
    assert 0.2 < low < other["behind"] < high < 0.4
    assert other["behind"] == pytest.approx(0.3)
    assert best["best_share"] == 1
    assert "shown to be worse" in found["verdict"]


def test_a_lead_that_noise_explains_is_no_win() -> None:
    # one row better, on other rows right
    found = compare(
        [candidate(0, right(80)), candidate(1, right(50, last=31))],
        metric="accuracy",
        lower_is_better=False,
    )
    assert (found["best"], found["level"]) == (1, [0])
    assert "show no winner" in found["verdict"]
    shares = [own["best_share"] for own in found["standing"]]
    assert 0.3 < shares[1] < shares[0] < 0.7
    assert sum(shares) == pytest.approx(1)


def test_pairs_tell_more_than_two_intervals_would() -> None:
    # the same rows right, and twelve more: each interval alone is 8 points wide to both sides
    found = compare(
        [candidate(0, right(70)), candidate(1, right(82))], metric="accuracy", lower_is_better=False
    )
    assert found["level"] == []


def test_less_is_better_of_a_loss() -> None:
    found = compare(
        [candidate(0, right(60)), candidate(1, right(90))], metric="loss", lower_is_better=True
    )
    assert found["best"] == 0
    assert found["standing"][1]["behind"] == pytest.approx(0.3)
    assert found["standing"][0]["best_share"] == 1


def test_some_are_level_and_some_are_not() -> None:
    found = compare(
        [candidate(2, right(80)), candidate(3, right(20)), candidate(4, right(50, last=31))],
        metric="accuracy",
        lower_is_better=False,
    )
    assert (found["best"], found["level"]) == (4, [2])
    assert "noise may explain its lead over 1 of 2 others" in found["verdict"]


def test_of_equals_the_first_is_the_best_and_they_share_the_draws() -> None:
    found = compare(
        [candidate(1, right(70)), candidate(0, right(70))], metric="accuracy", lower_is_better=False
    )
    assert (found["best"], found["level"]) == (0, [1])
    assert [own["best_share"] for own in found["standing"]] == [0.5, 0.5]


def test_of_many_equal_trials_none_is_shown_to_be_worse() -> None:
    # the luckiest of twelve stands 3 standard deviations from the unluckiest
    generator = np.random.default_rng(1)
    claims = 0
    for _ in range(30):
        found = [candidate(number, generator.random(ROWS) < 0.8) for number in range(12)]
        claims += len(compare(found, metric="accuracy", lower_is_better=False)["level"]) < 11
    assert claims <= 3


def test_what_rounding_makes_of_equal_losses_is_no_difference() -> None:
    losses = np.linspace(0.1, 2.0, ROWS)
    found = compare(
        [candidate(0, losses), candidate(1, losses + 1e-9 * np.arange(ROWS))],
        metric="loss",
        lower_is_better=True,
    )
    assert (found["level"], found["standing"][1]["confidence_interval"]) == ([1], [0, 0])


def test_few_rows_are_said_to_be_few() -> None:
    found = compare(
        [candidate(0, [1] * 20), candidate(1, [0] * 20)], metric="accuracy", lower_is_better=False
    )
    assert "With fewer than 30 rows the intervals are too narrow." in found["verdict"]
    assert "In 100% of 1,000 resamples" in found["verdict"]


def test_what_was_drawn_otherwise_is_not_compared() -> None:
    found = compare(
        [candidate(0, right(90)), candidate(1, right(60), pairing="other")],
        metric="accuracy",
        lower_is_better=False,
    )
    other = found["standing"][1]
    assert (other["confidence_interval"], other["best_share"], found["level"]) == (None, None, [1])
    assert "shown to be worse" not in found["verdict"]


def test_without_draws_nothing_is_claimed() -> None:
    found = compare(
        [Candidate(0, {}, 0.5), Candidate(1, {}, 0.6)], metric="accuracy", lower_is_better=False
    )
    assert found["best"] == 1
    assert "not known" in found["verdict"]
    alone = compare([Candidate(0, {}, 0.5)], metric="accuracy", lower_is_better=False)
    assert "nothing to choose between" in alone["verdict"]


def test_seeds_alone_are_told_apart_from_the_rest() -> None:
    def seeded(number: int, r: int, seed: int, value: float) -> Candidate:
        return Candidate(number, {"method.r": r, "training.seed": seed}, value)

    found = [
        seeded(0, 4, 0, 0.50),
        seeded(1, 4, 1, 0.52),
        seeded(2, 8, 0, 0.80),
        seeded(3, 8, 1, 0.80),
    ]
    # variances 0.0002 and 0, one degree of freedom each
    assert seed_deviation(found) == pytest.approx(0.01)
    drawn = [replace(own, draws=(own.value,) * 1000, rows=ROWS, pairing="p") for own in found]
    said = compare(drawn, metric="accuracy", lower_is_better=False)["verdict"]
    assert "Seeds alone move it by 0.01 (standard deviation): a lead below 0.028" in said
    assert seed_deviation(found[::2]) is None
    assert seed_deviation([Candidate(0, {}, 0.5), Candidate(1, {}, 0.6)]) is None

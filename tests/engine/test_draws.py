"""Resampled test metrics: kept apart, they compare like the paired bootstrap of both models."""

import numpy as np
import pytest

from peft_engine.bases.base import Base
from peft_engine.parts.statistics import Evaluation, RowStatistics, ratio_of_sums
from peft_engine.training.draws import draw_metrics
from tests.engine.test_training import CLASSIFICATION, GENERATION, job, run

Answers = np.ndarray


def _model(right: Answers) -> Evaluation:
    rows = {"accuracy": ratio_of_sums(right, np.ones(len(right)))}
    return Evaluation({"accuracy": float(right.mean())}, rows)


def test_models_that_never_met_compare_like_the_paired_bootstrap() -> None:
    generator = np.random.default_rng(3)
    first = (generator.random(300) < 0.7).astype(float)
    second = np.where(generator.random(300) < 0.06, 1 - first, first)
    one, two = (draw_metrics(_model(right))["accuracy"] for right in (first, second))
    assert one.pairing == two.pairing
    assert (one.rows, one.value) == (300, first.mean())
    gains = np.array(two.values) - np.array(one.values)
    # the textbook's way: draw rows, and take both models' answers to the rows that were drawn
    drawn = [generator.integers(0, 300, 300) for _ in range(4000)]
    expected = [second[rows].mean() - first[rows].mean() for rows in drawn]
    ends = [2.5, 97.5]
    error = np.std(second - first) / np.sqrt(300)
    assert np.percentile(gains, ends) == pytest.approx(np.percentile(expected, ends), abs=error / 4)
    # unpaired, the same difference would be known far less well
    assert np.std(gains) < 0.5 * np.hypot(np.std(one.values), np.std(two.values))


def test_other_rows_are_no_pairs() -> None:
    one, two = (draw_metrics(_model(np.ones(count)))["accuracy"] for count in (20, 21))
    assert one.pairing != two.pairing


def test_a_metric_without_a_value_on_some_resample_is_left_out() -> None:
    undefined = RowStatistics(np.ones((4, 1)), lambda sums: np.full(len(sums), np.nan))
    assert draw_metrics(Evaluation({"odd": 1.0}, {"odd": undefined})) == {}


@pytest.mark.parametrize("kind", ["classification", "generation"])
def test_a_job_gives_its_draws(kind: str, bert: Base, llama: Base) -> None:
    base, splits = {
        "classification": (bert, CLASSIFICATION),
        "generation": (llama, GENERATION),
    }[kind]
    spec = job("text-classification" if kind == "classification" else "text-generation", epochs=1)
    result = run(base, spec, splits)
    draws = result.test_draws
    after = result.metrics["test"]["after"]
    assert {"loss", result.resolved["metric"]} <= set(draws)
    assert set(draws) <= set(after)
    for name, own in draws.items():
        assert own.value == after[name]
        assert len(own.values) == 1000
        assert min(own.values) <= own.value <= max(own.values)
    assert draws["loss"].rows == len(splits["test"])
    assert draws["loss"].lower_is_better
    untested = run(base, spec, {**splits, "test": []})
    assert untested.test_draws == {}


def test_a_job_that_leaves_the_test_alone_is_drawn_on_validation(bert: Base) -> None:
    spec = job("text-classification", epochs=1)
    tested = run(bert, spec, CLASSIFICATION)
    assert tested.validation_draws == {}
    untested = run(bert, spec.model_copy(update={"evaluate_test": False}), CLASSIFICATION)
    assert set(untested.metrics) == {"train", "validation"}
    assert untested.test_draws == {}
    metric = untested.resolved["metric"]
    assert set(untested.validation_draws) == {metric}
    own = untested.validation_draws[metric]
    assert own.value == untested.metrics["validation"]["after"][metric]
    assert (own.rows, len(own.values)) == (len(CLASSIFICATION["validation"]), 1000)
    # the test has no say in what is learned
    assert tested.delta is not None
    assert untested.delta is not None
    assert untested.delta.digest == tested.delta.digest

"""Which point comes next: a function of the trials and the seed."""

import subprocess
import sys
from typing import Any

import pytest

from core.db.trials import Trial
from core.states import JobStatus
from peft_engine.configs import SweepSpec
from worker.sweeps.points import next_point

SEARCH = {
    "training.learning_rate": {"min": 1e-4, "max": 1e-1, "log": True},
    "method.r": {"min": 2, "max": 64, "log": True},
    "method.dropout": [0.0, 0.1],
    "training.class_weights": [None, "balanced", {"a": 2.0}],
}


def spec(strategy: str, search: dict[str, Any] | None = None, **asked: Any) -> SweepSpec:
    job = {"dataset_id": "ds_1", "base_model": "minilm"}
    return SweepSpec.model_validate(
        {"job": job, "search": search or SEARCH, "strategy": strategy, "max_jobs": 40, **asked}
    )


def trial(
    number: int,
    params: dict[str, Any],
    value: float | None,
    *,
    metric: str = "accuracy",
    status: JobStatus = JobStatus.SUCCEEDED,
) -> Trial:
    report = {"metric": metric, "after": {metric: value}}
    return Trial(number, params, f"job_{number}", status, report, None, None, None, None)


def worth(params: dict[str, Any]) -> float:
    """Best at a rate of 0.01 and a small rank."""
    rate = params["training.learning_rate"]
    return 1 - abs(rate - 0.01) - params["method.r"] / 1000


def search_for(chosen: SweepSpec, count: int, *, metric: str = "accuracy") -> list[dict[str, Any]]:
    trials: list[Trial] = []
    sign = -1 if metric == "loss" else 1
    for number in range(count):
        params = next_point(chosen, trials, number)
        trials.append(trial(number, params, sign * worth(params), metric=metric))
    return [dict(own.params) for own in trials]


@pytest.mark.parametrize("strategy", ["random", "tpe"])
def test_points_lie_in_the_search_and_come_alike_again(strategy: str) -> None:
    points = search_for(spec(strategy), 14)
    assert points == search_for(spec(strategy), 14)
    assert points != search_for(spec(strategy, seed=1), 14)
    for point in points:
        assert 1e-4 <= point["training.learning_rate"] <= 1e-1
        assert isinstance(point["method.r"], int)
        assert 2 <= point["method.r"] <= 64
        assert point["method.dropout"] in (0.0, 0.1)
        assert point["training.class_weights"] in (None, "balanced", {"a": 2.0})
    assert len({point["training.learning_rate"] for point in points}) == 14


def test_a_new_process_answers_alike() -> None:
    known = [trial(0, search_for(spec("tpe"), 1)[0], 0.5)]
    here = next_point(spec("tpe"), known, 1)
    code = (
        "from tests.unit.worker.test_sweep_points import *;"
        "known = [trial(0, search_for(spec('tpe'), 1)[0], 0.5)];"
        "print(repr(next_point(spec('tpe'), known, 1)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == repr(here)


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_tpe_goes_where_earlier_trials_did_well(metric: str) -> None:
    found = [worth(own) for own in search_for(spec("tpe"), 36, metric=metric)]
    # the first ten are drawn at random
    assert sum(found[-12:]) / 12 > sum(found[:10]) / 10


def test_what_runs_and_what_failed_has_no_say() -> None:
    points = search_for(spec("tpe"), 12)
    known = [trial(number, own, worth(own)) for number, own in enumerate(points)]
    failed = {**points[0], "training.learning_rate": 0.05}
    running = {**points[0], "training.learning_rate": 0.06}
    more = [
        trial(12, failed, None, status=JobStatus.FAILED),
        trial(13, running, None, status=JobStatus.RUNNING),
        trial(14, {**running, "method.r": 3}, float("nan")),
    ]
    assert next_point(spec("tpe"), known, 20) == next_point(spec("tpe"), known + more, 20)


@pytest.mark.parametrize("seeds", [[0, 1], {"min": 0, "max": 1}])
@pytest.mark.parametrize("strategy", ["random", "tpe"])
def test_no_point_is_tried_twice_while_others_are_left(strategy: str, seeds: Any) -> None:
    search = {"method.r": [2, 4, 8], "training.seed": seeds}
    chosen = spec(strategy, search)
    assert chosen.trials == 6
    trials: list[Trial] = []
    for number in range(6):
        trials.append(trial(number, next_point(chosen, trials, number), 0.1 * number))
    assert len({str(own.params) for own in trials}) == 6

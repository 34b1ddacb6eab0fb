"""Paths of a search, its grid, and what is wrong with it."""

from typing import Any

import pytest
from pydantic import ValidationError

from app.services.sweep_checks import check, check_fields, sample_points
from core.errors import BadInput
from peft_engine.configs import SweepSpec
from peft_engine.configs.search import build_job, grid_point, put, why_fixed

JOB = {"dataset_id": "ds_1", "base_model": "minilm"}


def sweep(search: dict[str, Any], *, job: dict[str, Any] | None = None, **asked: Any) -> SweepSpec:
    return SweepSpec.model_validate({"job": JOB | (job or {}), "search": search, **asked})


def refused(spec: SweepSpec) -> list[tuple[str, str]]:
    with pytest.raises(BadInput) as caught:
        check(spec)
    return [(problem["param"], problem["message"]) for problem in caught.value.details or []]


@pytest.mark.parametrize(
    ("job", "path", "value", "made"),
    [
        ({}, "training.epochs", 2, {"training": {"epochs": 2}}),
        ({}, "method.r", 4, {"method": [{"type": "lora", "r": 4}]}),
        (
            {"method": "bitfit"},
            "method.layers",
            "all",
            {"method": [{"type": "bitfit", "layers": "all"}]},
        ),
        (
            {"method": ["lora", "norm"]},
            "method.0.r",
            4,
            {"method": [{"type": "lora", "r": 4}, {"type": "norm"}]},
        ),
        ({"method": ["lora"]}, "method.0", "ia3", {"method": ["ia3"]}),
        ({}, "method", "ia3", {"method": "ia3"}),
        (
            {"base": {"pruning": None}},
            "base.pruning.sparsity",
            0.3,
            {"base": {"pruning": {"sparsity": 0.3}}},
        ),
    ],
)
def test_a_value_is_put_where_its_path_leads(
    job: dict[str, Any], path: str, value: Any, made: dict[str, Any]
) -> None:
    put(job, path, value)
    assert job == made


@pytest.mark.parametrize(
    ("job", "path", "message"),
    [
        ({"method": ["lora", "norm"]}, "method.r", "the job has 2 methods"),
        ({"method": ["lora"]}, "method.1.r", "1 is no entry of a list of 1"),
        ({"base": "int8"}, "base.quantization", "base is 'int8', which has no fields"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused(job: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        put(job, path, 1)


def test_a_grid_has_every_combination_once_whatever_the_order_of_its_fields() -> None:
    search = {"training.seed": [0, 1, 2], "method.r": [4, 8]}
    one, other = sweep(search), sweep(dict(reversed(search.items())))
    points = [grid_point(one, number) for number in range(one.trials)]
    assert points == [{"method.r": r, "training.seed": seed} for r in (4, 8) for seed in (0, 1, 2)]
    assert points == [grid_point(other, number) for number in range(6)]
    assert [build_job(one, point).training.seed for point in points] == [0, 1, 2] * 2


def test_the_asked_for_job_is_not_changed() -> None:
    spec = sweep({"method.r": [4]}, job={"method": ["lora"]})
    build_job(spec, {"method.r": 4})
    assert spec.job["method"] == ["lora"]


def test_a_metric_decides_in_every_trial() -> None:
    job = build_job(sweep({"method.r": [4]}, metric="macro_f1"), {"method.r": 4})
    assert job.training.early_stopping is not None
    assert job.training.early_stopping.metric == "macro_f1"


@pytest.mark.parametrize(
    "path",
    ["dataset_id", "training", "training.early_stopping", "metadata.team", "parent_adapter_id"],
)
def test_what_would_make_trials_incomparable_is_no_part_of_a_search(path: str) -> None:
    assert why_fixed(path, task=None)


def test_where_tokens_are_counted_the_base_is_fixed() -> None:
    assert why_fixed("base_model", task="text-generation")
    assert not why_fixed("base_model", task="text-classification")
    assert not why_fixed("base.quantization", task="text-generation")


def test_all_problems_are_told_at_once() -> None:
    search = {
        "training.learning_rat": [1],
        "method.r": [4, 0],
        "dataset_id": ["ds_2"],
        "training.warmup_ratio": {"min": 0.0, "max": 0.5},
        "method": ["lora"],
    }
    found = refused(sweep(search, job={"base_mode": "x"}))
    assert {param for param, _ in found} == {
        "job.base_mode",
        "search.dataset_id",
        "search.method.r",
        "search.training.learning_rat",
        "search.training.warmup_ratio",
    }
    told = [message for param, message in found if param == "search.method.r"]
    assert any("method is searched as well" in message for message in told)
    assert any(message.startswith("0: method.0.r") for message in told)


def test_values_that_do_not_go_together_are_named() -> None:
    search = {"method.freeze_a": [False, True], "method.b_learning_rate_ratio": [1, 16]}
    ((param, message),) = refused(sweep(search))
    assert param == "search"
    assert message.startswith("method.b_learning_rate_ratio = 16, method.freeze_a = true: ")
    # what is drawn may meet, and then makes no job
    check(sweep(search, strategy="random"))


def test_a_field_that_a_task_fixes_is_refused_once_the_task_is_known() -> None:
    spec = sweep({"base_model": {"values": ["minilm", "another"]}})
    check(spec)
    check_fields(spec, task="text-classification")
    with pytest.raises(BadInput, match="no part of a search"):
        check_fields(spec, task="text-generation")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"values": [1], "min": 0}, "give values, or min and max"),
        ({}, "give values, or min and max"),
        ({"min": 2, "max": 1}, "a range needs min < max"),
        ({"min": 0, "max": 1, "log": True}, "log needs a min above 0"),
        ({"values": [1], "log": True}, "log is for a range"),
        ({"min": True, "max": 3}, "valid integer"),
    ],
)
def test_a_field_is_a_list_or_a_range(field: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sweep({"training.seed": field})


@pytest.mark.parametrize(
    ("path", "values", "message"),
    [
        ("training.seed", [1, 2, 1], "1 stands twice"),
        ("training.learning_rate", [1, 0.5, 1.0], "1.0 means what 1 means"),
        ("training.batch_size", [8, 8.0], "8.0 means what 8 means"),
        ("method", ["lora", {"type": "lora", "r": "auto"}], '"auto"} means what "lora"'),
        ("method", ["lora", ["lora"]], '["lora"] means what "lora" means'),
    ],
)
def test_values_that_mean_the_same_are_one_trial(
    path: str, values: list[Any], message: str
) -> None:
    ((param, told),) = refused(sweep({path: values}))
    assert (param, message in told) == (f"search.{path}", True), told


def test_true_and_what_a_rule_decides_are_two_values() -> None:
    check(sweep({"training.packing": ["auto", True, False]}))


def test_a_grid_that_is_too_large_is_refused() -> None:
    search = {"training.seed": list(range(20)), "method.r": list(range(1, 15))}
    ((param, message),) = [own for own in refused(sweep(search)) if "combinations" in own[1]]
    assert (param, "280 combinations, more than the 256" in message) == ("search", True)
    assert refused(sweep({"training.seed": [1, 2, 3]}, max_jobs=2))
    assert sweep(search, strategy="tpe").trials == 16


def test_a_draw_has_no_more_trials_than_there_are_combinations() -> None:
    assert sweep({"method.r": [4, 8]}, strategy="random", max_jobs=9).trials == 2


def test_every_value_and_both_ends_of_a_range_are_looked_at_beforehand() -> None:
    search = {"method.r": {"min": 2, "max": 600}, "training.seed": [0, 1]}
    spec = sweep(search, strategy="random")
    assert list(sample_points(spec)) == [
        {"method.r": 2, "training.seed": 0},
        {"method.r": 600, "training.seed": 0},
        {"method.r": 2, "training.seed": 1},
    ]
    ((param, message),) = refused(spec)
    assert (param, message.startswith("600: ")) == ("search.method.r", True)


@pytest.mark.parametrize(
    ("job", "param"),
    [
        ({"auto_start": False}, "job.auto_start"),
        ({"training": {"early_stopping": None}}, "metric"),
        ({"training": {"early_stopping": {"metric": "mcc"}}}, "metric"),
    ],
)
def test_a_job_that_contradicts_the_sweep_is_refused(job: dict[str, Any], param: str) -> None:
    found = refused(sweep({"method.r": [4]}, job=job, metric="accuracy"))
    assert [where for where, _ in found] == [param]


@pytest.mark.parametrize(
    ("search", "param", "message"),
    [
        # both ends are whole numbers, what is drawn between them is none
        ({"method.r": {"min": 4.0, "max": 16.0}}, "search.method.r", "valid integer"),
        ({"method.0.r": [4], "method.r": [8]}, "search.method.0.r", "method.r is searched as well"),
        ({"method.0.r": [4], "method.00.r": [8]}, "search.method.0.r", "is this field"),
    ],
)
def test_what_could_only_fail_later_is_refused(
    search: dict[str, Any], param: str, message: str
) -> None:
    found = refused(sweep(search, strategy="random"))
    assert found[0][0] == param
    assert message in found[0][1]


@pytest.mark.parametrize("number", [10**400, -(10**400)])
def test_a_number_that_no_machine_holds_is_refused(number: int) -> None:
    with pytest.raises(ValidationError, match=r"less than or equal|greater than or equal"):
        sweep({"method.alpha": {"min": min(number, 1), "max": max(number, 1)}}, strategy="tpe")


def test_a_range_of_whole_numbers_has_so_many_points() -> None:
    few = sweep({"method.r": {"min": 4, "max": 6}, "training.seed": [0, 1]}, strategy="random")
    assert (few.combinations, few.trials) == (6, 6)
    many = sweep({"training.seed": {"min": 0, "max": 2**31 - 1}}, strategy="tpe", max_jobs=40)
    assert many.trials == 40
    endless = sweep({"training.learning_rate": {"min": 0.1, "max": 0.2}}, strategy="tpe")
    assert (endless.combinations, endless.trials) == (None, 16)

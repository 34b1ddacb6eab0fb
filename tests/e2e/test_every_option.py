"""Every option of every method and of training through POST /jobs, far from its default.

That each one changes what is learned is for the engine's tests. Here: what was asked for reaches
the trainer, is shown as it was asked, and leaves its marks on the job and on the delta.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from peft_engine.configs.methods.tables import CONFIGS
from peft_engine.configs.model import Config
from peft_engine.configs.training import AdversarialConfig, EarlyStoppingConfig, TrainingConfig
from peft_engine.delta import Delta, load_delta
from tests.e2e.stack import Stack
from tests.engine.task_sets import Splits, splits_of
from tests.tiny_bases import WORDS

LAST: dict[str, Any] = {"layers": {"last": 1}}

# More rows of the first class than of the others, so that there is something to balance.
CLASSIFIED = splits_of(
    lambda i: {
        "text": f"{WORDS[i % 16]} {WORDS[i * 7 % 16]}" + " a" * (i % 3),
        "label": WORDS[(i % 7) % 3],
    }
)
GENERATED = splits_of(lambda i: {"prompt": f"my {WORDS[i % 16]}", "completion": WORDS[i * 7 % 16]})

ATTACKED: dict[str, Any] = {
    "base_model": "tiny-bert",
    "method": {
        "type": "lora",
        "r": 4,
        "alpha": 6.0,
        "dropout": 0.1,
        "targets": ["query", "value", "intermediate.dense"],
        "rslora": True,
        "dora": True,
        "rank_pattern": {"query": 2, "attention.self.value": 3},
        "alpha_pattern": {"query": 9.0},
        "layers": [1],
    },
    "training": {
        "epochs": 20,
        "batch_size": 8,
        "gradient_accumulation": 2,
        "learning_rate": 0.02,
        "head_learning_rate": 0.01,
        "optimizer": "sgd",
        "schedule": "cosine",
        "warmup_ratio": 0.2,
        "weight_decay": 0.05,
        "max_grad_norm": 0.5,
        "label_smoothing": 0.1,
        "class_weights": {"where": 0.5, "my": 3.0},
        "adversarial": {
            "type": "pgd",
            "epsilon": 0.2,
            "steps": 2,
            "step_size": 0.7,
            "weight": 0.5,
        },
        "max_length": 16,
        "precision": "fp32",
        "seed": 7,
        "eval_every_steps": 2,
        "keep": "one_se",
        # More than macro F1 can gain: an evaluation that is not level with the first ends the run.
        "early_stopping": {"patience": 1, "min_delta": 2.0, "metric": "macro_f1"},
    },
}
PACKED: dict[str, Any] = {
    "base_model": "tiny-llama",
    "method": {"type": "lora", "r": 4, "b_learning_rate_ratio": 16.0},
    "training": {
        "max_steps": 4,
        "batch_size": 8,
        "packing": True,
        "gradient_checkpointing": True,
        "schedule": "constant",
        "max_grad_norm": None,
        "early_stopping": None,
        "eval_generate_rows": 3,
        "validation_generate_rows": 2,
        "keep": "best",
    },
}
COMBINED: dict[str, Any] = {
    "base_model": "tiny-bert",
    "method": [
        {
            "type": "mask",
            "pattern": "neuron",
            "selection": "gradient",
            "density": 0.1,
            "samples": 8,
            "targets": ["key", "output.dense"],
            **LAST,
        },
        {"type": "lora", "r": 2, "freeze_a": True, "targets": ["query"], "layers": [1]},
        {
            "type": "bottleneck",
            "variant": "parallel",
            "reduction": 8,
            "activation": "tanh",
            "scaling": "learned",
            **LAST,
        },
        {"type": "bitfit", "norms": False, "biases": "all", **LAST},
        {"type": "norm", **LAST},
        {"type": "ia3", **LAST},
        {"type": "prefix", "length": 3, "gate": "none", **LAST},
    ],
    "training": {
        "epochs": 2,
        "batch_size": 8,
        "reuse_frozen_layers": True,
        "class_weights": "balanced",
        "keep": "last",
    },
}
# The attack that packing excludes, and a method that stands alone.
WHOLE: dict[str, Any] = {
    "base_model": "tiny-llama",
    "method": {"type": "full", "layers": {"first": 1}},
    "training": {
        "max_steps": 2,
        "batch_size": 8,
        "adversarial": {"type": "fgm", "epsilon": 0.3},
        "eval_generate_rows": 0,
        "early_stopping": {"metric": "token_accuracy"},
    },
}
SIZED: dict[str, Any] = {
    "base_model": "tiny-bert",
    "method": {"type": "bottleneck", "size": 5, "variant": "pfeiffer", "scaling": 2.0, **LAST},
    "training": {"max_steps": 2, "batch_size": 8, "devices": 2},
}
JOBS = {
    "attacked": ATTACKED,
    "packed": PACKED,
    "combined": COMBINED,
    "whole": WHOLE,
    "sized": SIZED,
}

# What cannot be had is told, never left out in silence.
IMPOSSIBLE: dict[str, tuple[dict[str, Any], str, str]] = {
    "packing under attack": (
        {"base_model": "tiny-llama", "training": {"packing": True, "adversarial": {}}},
        "packing_impossible",
        "training.packing",
    ),
    "reuse below no layer": (
        {"base_model": "tiny-bert", "training": {"reuse_frozen_layers": True}},
        "nothing_to_reuse",
        "training.reuse_frozen_layers",
    ),
    "classes of a text": (
        {"base_model": "tiny-llama", "training": {"class_weights": "balanced"}},
        "no_classes",
        "training.class_weights",
    ),
    "a metric of several labels": (
        {"base_model": "tiny-bert", "training": {"early_stopping": {"metric": "micro_f1"}}},
        "unknown_metric",
        "training.early_stopping.metric",
    ),
}


def _data_of(spec: Mapping[str, Any]) -> tuple[str, Splits]:
    if spec["base_model"] == "tiny-llama":
        return "text-generation", GENERATED
    return "text-classification", CLASSIFIED


@pytest.fixture(scope="module")
def jobs(stack: Stack) -> dict[str, dict[str, Any]]:
    """All jobs, which wait for one another in the queue."""
    datasets = {}
    for task, splits in (_data_of(spec) for spec in (ATTACKED, PACKED)):
        rows = [{**row, "split": split} for split, own in splits.items() for row in own]
        body = {"name": f"options-{task}", "task": task, "records": rows}
        row = stack.post("/datasets", body)
        assert row["status"] == "ready", row["report"]
        datasets[task] = row["id"]
    asked = JOBS | {name: spec for name, (spec, _, _) in IMPOSSIBLE.items()}
    started = {}
    for name, spec in asked.items():
        own = {"dataset_id": datasets[_data_of(spec)[0]], "metadata": {"case": name}}
        own |= {"adapter_name": f"options-{name.replace(' ', '-')}", "allow_leakage": True}
        started[name] = stack.post("/jobs", spec | own)
    return {name: stack.wait_for_end(job["id"]) for name, job in started.items()}


@pytest.fixture(scope="module")
def deltas(stack: Stack, jobs: dict[str, dict[str, Any]]) -> dict[str, Delta]:
    """What was published, by job."""
    path = "/adapters/{}/export"
    return {
        name: load_delta(stack.http.get(path.format(jobs[name]["adapter_id"])).content)
        for name in JOBS
        if jobs[name]["adapter_id"]
    }


def test_every_option_is_asked_for_by_a_job() -> None:
    methods = [method for spec in JOBS.values() for method in _methods(spec)]
    trainings = [spec["training"] for spec in JOBS.values()]
    asked: list[tuple[type[Config], list[dict[str, Any]]]] = [
        (config, [method for method in methods if method["type"] == name])
        for name, config in CONFIGS.items()
    ]
    asked.append((TrainingConfig, trainings))
    parts: dict[str, type[Config]] = {
        "adversarial": AdversarialConfig,
        "early_stopping": EarlyStoppingConfig,
    }
    for name, config in parts.items():
        asked.append((config, [each[name] for each in trainings if each.get(name)]))
    missed = [
        f"{config.__name__}.{name}"
        for config, sent in asked
        for name, field in config.model_fields.items()
        if name != "type" and not any(_sets(own, name, field) for own in sent)
    ]
    assert not missed


@pytest.mark.parametrize("name", JOBS)
def test_a_job_shows_what_was_asked_and_its_adapter_answers(
    stack: Stack, jobs: dict[str, dict[str, Any]], name: str
) -> None:
    spec, job = JOBS[name], jobs[name]
    assert job["status"] == "succeeded", job["error"]
    assert job["certificate"]["passed"], job["certificate"]
    assert job["metadata"] == {"case": name}
    task, splits = _data_of(spec)
    assert job["metrics"]["test"]["rows"] == len(splits["test"])

    asked = {"base_model": spec["base_model"], "task": task, "training": spec["training"]}
    asked["method"] = _methods(spec)
    assert not list(_differences(asked, job["spec"], "spec"))
    assert not list(_differences(asked["method"], job["resolved"]["method"], "resolved.method"))
    decided = {key: value for key, value in spec["training"].items() if key in job["resolved"]}
    assert not list(_differences(decided, job["resolved"], "resolved"))
    assert "auto" not in job["spec"]["training"].values()

    adapter = stack.get(f"/adapters/{job['adapter_id']}")
    assert not list(_differences(asked["method"], adapter["methods"], "methods"))
    text = "my card"
    answer = stack.post("/predict", {"adapter_id": job["adapter_id"], "inputs": [text]})
    assert answer["receipt"]["adapter_digest"] == adapter["digest"]
    keys = {"text"} if task == "text-generation" else {"label", "score", "scores"}
    assert answer["outputs"][0].keys() >= keys


def test_an_encoder_under_attack_stops_early(
    jobs: dict[str, dict[str, Any]], deltas: dict[str, Delta]
) -> None:
    job, delta = jobs["attacked"], deltas["attacked"]
    resolved = job["resolved"]
    # 48 rows: 6 batches, two to a step
    assert (resolved["steps_per_epoch"], resolved["total_steps"]) == (3, 60)
    assert (resolved["metric"], resolved["patience"]) == ("macro_f1", 1)
    assert job["progress"]["step"] < 60

    test = job["metrics"]["test"]
    robustness = test["robustness"]
    asked = ATTACKED["training"]["adversarial"]
    assert robustness["attack"] == {key: asked[key] for key in asked if key != "weight"}
    assert robustness["after"].keys() == test["after"].keys()
    assert robustness["after"]["loss"] > test["after"]["loss"]

    shapes = {name: list(tensor.shape) for name, tensor in delta.tensors.items()}
    ranks = {n: shape[0] for n, shape in shapes.items() if n.endswith(":lora.A")}
    layer = "encoder.layer.1"
    assert ranks == {
        f"{layer}.attention.self.query:lora.A": 2,
        f"{layer}.attention.self.value:lora.A": 3,
        f"{layer}.intermediate.dense:lora.A": 4,
    }
    assert sum(name.endswith(":lora.magnitude") for name in shapes) == 3


def test_a_causal_base_is_packed_and_computed_twice(jobs: dict[str, dict[str, Any]]) -> None:
    resolved = jobs["packed"]["resolved"]
    assert resolved["packing"]
    assert resolved["gradient_checkpointing"]
    assert resolved["patience"] is None
    assert jobs["whole"]["resolved"]["packing"] is False
    assert jobs["whole"]["metrics"]["test"]["robustness"]["attack"]["type"] == "fgm"


def test_a_combination_keeps_what_enters_its_layer(
    jobs: dict[str, dict[str, Any]], deltas: dict[str, Delta]
) -> None:
    resolved = jobs["combined"]["resolved"]
    assert resolved["reuse_frozen_layers"]
    read = {row["text"] for split in ("train", "validation") for row in CLASSIFIED[split]}
    tokens = sum(len(text.split()) + 2 for text in read)  # a sign before and behind
    assert resolved["reused_bytes"] == tokens * 32 * 4  # width of the base, bytes of a number
    kinds = {method["type"] for method in COMBINED["method"]}
    assert resolved["method_learning_rates"].keys() == kinds

    sites = {name.partition(":")[0] for name in deltas["combined"].tensors} - {"head"}
    assert sites
    assert all("layer.1" in site for site in sites), sites
    named = {name.partition(":")[2].partition(".")[0] for name in deltas["combined"].tensors}
    assert named >= kinds


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_is_not_possible_is_told(jobs: dict[str, dict[str, Any]], name: str) -> None:
    _, code, param = IMPOSSIBLE[name]
    error = jobs[name]["error"]
    assert (jobs[name]["status"], error["code"], error["param"]) == ("failed", code, param)


def _sets(own: Mapping[str, Any], name: str, field: FieldInfo) -> bool:
    """Whether an option is sent, and as something else than it would be anyway."""
    return name in own and own[name] != field.get_default(call_default_factory=True)


def _methods(spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    method = spec["method"]
    return method if isinstance(method, list) else [method]


def _differences(asked: Any, shown: Any, path: str) -> Iterator[str]:
    """Where an answer does not say what was asked; it may say more."""
    if isinstance(asked, dict) and isinstance(shown, dict):
        for name, value in asked.items():
            yield from _differences(value, shown.get(name), f"{path}.{name}")
    elif isinstance(asked, list) and isinstance(shown, list) and len(asked) == len(shown):
        for place, value in enumerate(asked):
            yield from _differences(value, shown[place], f"{path}[{place}]")
    elif asked != shown:
        yield f"{path}: {shown!r} where {asked!r} was asked for"

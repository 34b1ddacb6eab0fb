"""A job's log says why each ``auto`` came to what it is, once, where the rule looks at the job."""

import re
from collections.abc import Mapping
from typing import Any

import pytest

from peft_engine import runtime
from peft_engine.bases.base import Base
from peft_engine.configs import JobSpec
from peft_engine.tasks.text_classification import TextClassification
from peft_engine.training import TrainingEvent, activations
from peft_engine.training.choices import show_choice
from tests.engine.conftest import DEVICE
from tests.engine.test_training import GENERATION, Shelf, Splits, classification_rows, run

LORA = {"type": "lora", "r": 4}
UPPER = {**LORA, "layers": {"last": 1}}


def job(task: str = "text-classification", method: Any = LORA, **training: Any) -> JobSpec:
    """A job that leaves all its training to ``auto`` but what is named."""
    fields: dict[str, Any] = {"dataset_id": "ds", "base_model": "b", "task": task}
    if task == "text-generation":
        training = {"eval_generate_rows": 0} | training
    return JobSpec.model_validate(fields | {"method": method, "training": training})


def rows(train: int, validation: int = 0) -> Splits:
    return {
        "train": classification_rows(train),
        "validation": classification_rows(validation, start=200),
    }


def told(base: Base, spec: JobSpec, splits: Splits, **kwargs: Any) -> dict[str, str]:
    """What the log says of settings, by their name; it says it once, and what the job shows."""
    events: list[TrainingEvent] = []
    result = run(base, spec, splits, events=events, **kwargs)
    logged = [str(event.data["message"]) for event in events if event.kind == "log"]
    lines = [line for line in logged if re.match(r"\w+: .*, since ", line)]
    found = {line.partition(":")[0]: line for line in lines}
    assert len(found) == len(lines)
    for name, line in found.items():
        shown = show_choice(name, result.resolved[name], "")
        assert line.startswith(shown), (line, shown)
    return found


def reason(base: Base, name: str, spec: JobSpec, splits: Splits) -> str:
    return told(base, spec, splits)[name].partition(", since ")[2]


# after the marks of its turn, a text of letters of its own: rows of one length, or of 10 and 30
ALIKE: Splits = {"train": [{"text": letter * 20} for letter in "abcdefgh"]}
UNLIKE: Splits = {"train": [{"text": "ab"[i % 2] * (10 + 20 * (i % 2))} for i in range(8)]}


@pytest.mark.skipif(DEVICE.type != "cpu", reason="packing is measured on a CPU")
@pytest.mark.parametrize(
    ("splits", "training", "line"),
    [
        (ALIKE, {}, r"off, since it would leave out [0-4]\.\d % of the positions, fewer than 5 %"),
        (UNLIKE, {}, r"on, since it leaves out \d\d\.\d % of the positions"),
        (UNLIKE, {"adversarial": {}}, "off, since adversarial training moves the embeddings .*"),
        (UNLIKE, {"method": "prefix"}, "off, since the method prefix acts on attention"),
    ],
)
def test_packing(llama: Base, splits: Splits, training: dict[str, Any], line: str) -> None:
    spec = job("text-generation", max_steps=1, batch_size=8, **training)
    assert re.fullmatch(f"packing: {line}", told(llama, spec, splits)["packing"])


def test_packing_of_an_encoder(bert: Base) -> None:
    assert "bert is no causal base" in reason(bert, "packing", job(max_steps=1), rows(8))


@pytest.mark.parametrize(
    ("training", "line"),
    [
        ({"method": LORA}, "off, since the method acts in the lowest layer"),
        ({"method": UPPER, "max_steps": 2}, "off, since no row is seen twice in 2 steps"),
        ({"method": UPPER}, "on, since states below the lowest trained layer take {} bytes of"),
    ],
)
def test_reuse_of_frozen_layers(bert: Base, training: dict[str, Any], line: str) -> None:
    found = told(bert, job(**training), rows(8))["reuse_frozen_layers"]
    size = run(bert, job(**training), rows(8)).resolved["reused_bytes"]
    assert found.startswith(f"reuse_frozen_layers: {line.format(f'{size:,}')}")


def test_states_that_do_not_fit(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "REUSE_LIMIT_BYTES", 1000)
    found = reason(bert, "reuse_frozen_layers", job(method=UPPER), rows(8))
    assert found.endswith("more than 1,000")


def test_gradient_checkpointing(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, splits = job(max_steps=1), rows(8)
    found = reason(bert, "gradient_checkpointing", spec, splits)
    match = re.fullmatch(r"(a step keeps about [\d,]+ bytes), no more than 8,589,934,592", found)
    assert match is not None, found
    monkeypatch.setattr(activations, "ACTIVATION_LIMIT_BYTES", 1000)
    found = reason(bert, "gradient_checkpointing", spec, splits)
    assert found == f"{match[1]}, more than 1,000"


@pytest.mark.parametrize(
    ("validation", "training", "line"),
    [
        (3, {}, "keep: last, since 3 validation rows, fewer than 16, would choose by chance"),
        (20, {}, "keep: one_se, since the rate falls to 0: where accuracy of 20 validation rows"),
        (20, {"schedule": "constant"}, "keep: best, since the rate is constant"),
        (20, {"early_stopping": {"metric": "loss"}}, "keep: best, since loss rises"),
        (20, {}, "patience: 4, since the rate falls to 0 and the run gains most at its end"),
        (20, {"schedule": "constant"}, "patience: 3, since the rate is constant"),
        (20, {}, "eval_every_steps: 2, since that is one epoch"),
        (
            20,
            {"max_steps": 1},
            "eval_every_steps: 1, since an epoch would be 2 steps",
        ),
        (20, {"epochs": 41}, "eval_every_steps: 5, since one each epoch (2 steps) would be more"),
    ],
)
def test_evaluations(bert: Base, validation: int, training: dict[str, Any], line: str) -> None:
    found = told(bert, job(**{"batch_size": 8, "epochs": 4} | training), rows(16, validation))
    assert found[line.partition(":")[0]].startswith(line)


def test_answered_rows(llama: Base) -> None:
    spec = job("text-generation", early_stopping={"metric": "chrf"}, max_steps=1)
    found = told(llama, spec, GENERATION)
    assert found["validation_generate_rows"].endswith(
        "32, since chrf, which decides, looks at texts"
    )
    assert "4 validation rows" in found["keep"]


def test_few_rows(bert: Base) -> None:
    found = told(bert, job(), rows(16))
    few = "since 16 rows are fewer than 128: from there on it is"
    assert found["learning_rate"] == f"learning_rate: 0.0003, {few} 0.001"
    assert found["head_learning_rate"] == f"head_learning_rate: 0.00075, {few} 0.005"
    assert found["batch_size"] == f"batch_size: 4, {few} 16"
    assert found["epochs"] == "epochs: 5, since 16 rows make 4 steps, and a run has 20 at least"
    assert told(bert, job(max_steps=1), rows(100))["epochs"] == "epochs: 4, since " + (
        "100 rows are fewer than 128: from there on it is 8"
    )


def test_from_enough_rows_on_recipes_need_no_reason(bert: Base) -> None:
    found = told(bert, job(max_steps=1), rows(128))
    assert not {"learning_rate", "head_learning_rate", "batch_size", "epochs"} & set(found)


def test_length(bert: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, splits = job(max_steps=1), rows(8)
    assert reason(bert, "max_length", spec, splits) == "bert holds no more"
    monkeypatch.setattr(TextClassification, "max_length_tokens", 40)
    found = reason(bert, "max_length", spec, splits)
    assert found == "text-classification takes no more unless asked to, though bert holds 48"


@pytest.mark.parametrize(
    ("native", "expected"),
    [(False, "has no native bf16 products"), (True, "fewer than 50,000,000 parameters")],
)
def test_precision(
    bert: Base, monkeypatch: pytest.MonkeyPatch, native: bool, expected: str
) -> None:
    monkeypatch.setattr(runtime, "has_native_bf16", lambda _: native)
    found = told(bert, job(max_steps=1), rows(8))["precision"]
    assert found.startswith("precision: fp32, since ")
    assert expected in found


ASKED: Mapping[str, Any] = {
    "epochs": 4,
    "batch_size": 4,
    "learning_rate": 0.01,
    "head_learning_rate": 0.01,
    "max_length": 40,
    "packing": False,
    "precision": "fp32",
    "reuse_frozen_layers": False,
    "gradient_checkpointing": False,
    "eval_every_steps": 2,
    "keep": "best",
    "early_stopping": {"patience": 2},
}


@pytest.mark.parametrize("name", ["packing", "reuse_frozen_layers", "gradient_checkpointing"])
def test_what_is_asked_for_needs_no_reason(bert: Base, name: str) -> None:
    assert not told(bert, job(**ASKED), rows(8))
    assert set(told(bert, job(**ASKED | {name: "auto"}), rows(8))) == {name}


def test_a_job_that_goes_on_does_not_say_it_again(bert: Base) -> None:
    shelf, spec = Shelf(), job()
    assert told(bert, spec, rows(8, 16), shelf=shelf, checkpoint_seconds=0)
    assert not told(bert, spec, rows(8, 16), shelf=shelf)

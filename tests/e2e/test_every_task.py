"""Every task and every kind of method through POST /jobs and POST /predict, on tiny bases."""

from typing import Any

import pytest

from tests.e2e.stack import Stack
from tests.engine.task_sets import SETS, WORDS, splits_of

GENERATED = splits_of(
    lambda i: {"prompt": f"my {WORDS[i % 16]}", "completion": WORDS[(i * 7) % 16]}
)
CLASSIFIED = splits_of(lambda i: {"text": f"{WORDS[i % 16]} a", "label": WORDS[i % 3]})

# set, base, method, an input, what the answer has
CASES: dict[str, tuple[tuple[str, Any], str, Any, Any, set[str]]] = {
    "one of several labels": (
        ("text-classification", CLASSIFIED),
        "tiny-bert",
        ["lora", "bitfit"],
        "my card",
        {"label", "score", "scores"},
    ),
    "several labels": (
        SETS["multi-label"],
        "tiny-bert",
        "bottleneck",
        "my card",
        {"labels", "threshold", "scores"},
    ),
    "a number": (SETS["regression"], "tiny-bert", "ia3", "my card", {"value"}),
    "a pair": (
        SETS["similarity"],
        "tiny-t5",
        "lora",
        {"text": "my card", "text_pair": "my order"},
        {"value"},
    ),
    "tags": (
        SETS["tags"],
        "tiny-bert",
        "mask",
        {"tokens": ["my", "card"]},
        {"entities", "tags"},
    ),
    "entities": (SETS["entities"], "tiny-llama", "lora", "my card", {"entities"}),
    "a relation": (
        SETS["relation"],
        "tiny-bert",
        "prefix",
        {"text": "my card", "head": {"start": 0, "end": 2}, "tail": {"start": 3, "end": 7}},
        {"label", "score", "scores"},
    ),
    "a choice": (
        SETS["choice"],
        "tiny-bert",
        "norm",
        {"question": "where is", "choices": ["my card", "a refund"]},
        {"answer", "scores"},
    ),
    "a span": (
        SETS["question"],
        "tiny-bert",
        "head-only",
        {"question": "where is", "context": "late my card"},
        {"answer", "start", "end", "score"},
    ),
    "text of a causal base": (
        ("text-generation", GENERATED),
        "tiny-llama",
        "full",
        "my card",
        {"text", "finish_reason", "tokens"},
    ),
    "text of two stacks": (
        ("text-generation", GENERATED),
        "tiny-t5",
        "bottleneck",
        "my card",
        {"text", "finish_reason", "tokens"},
    ),
}


@pytest.fixture(scope="module")
def jobs(stack: Stack) -> dict[str, dict[str, Any]]:
    """All jobs, which wait for one another in the queue."""
    started = {}
    for name, ((task, splits), base, method, _, _) in CASES.items():
        rows = [{**row, "split": split} for split, own in splits.items() for row in own]
        body = {"name": name.replace(" ", "-"), "task": task, "records": rows}
        row = stack.post("/datasets", body)
        assert row["status"] == "ready", row["report"]
        spec = {"dataset_id": row["id"], "base_model": base, "method": method}
        training = {"max_steps": 2, "batch_size": 8}
        started[name] = stack.post(
            "/jobs",
            {**spec, "training": training, "adapter_name": body["name"], "allow_leakage": True},
        )
    return {name: stack.wait_for_end(job["id"]) for name, job in started.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_job_of_every_task_answers(
    stack: Stack, jobs: dict[str, dict[str, Any]], name: str
) -> None:
    (task, splits), base, _, asked, keys = CASES[name]
    job = jobs[name]
    assert job["status"] == "succeeded", job["error"]
    assert job["certificate"]["passed"], job["certificate"]
    assert job["metrics"]["test"]["rows"] == len(splits["test"])
    answer = stack.post("/predict", {"adapter_id": job["adapter_id"], "inputs": [asked]})
    assert set(answer["outputs"][0]) >= keys, answer["outputs"]
    assert (answer["receipt"]["base_model"], job["spec"]["task"]) == (base, task)

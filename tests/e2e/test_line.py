"""The whole line on the real minilm: upload, job, adapter, answers, receipts."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import Stack

TRAINING = {"epochs": 3, "seed": 0}
# Of the first alone the scores are looked at; of the others, that their weights answer.
OTHERS = {"max_steps": 6}
SAME_SCORE = 1e-5


@pytest.fixture(scope="session")
def adapters(stack: Stack, dataset_id: str) -> list[dict[str, Any]]:
    """Three adapters of one data set, each with a seed and so with weights of its own."""
    jobs = []
    for seed in range(3):
        spec = {
            "dataset_id": dataset_id,
            "base_model": "minilm",
            "adapter_name": f"intents-{seed}",
            "training": TRAINING | {"seed": seed} | ({} if seed == 0 else OTHERS),
        }
        jobs.append(stack.post("/jobs", spec))
    ended = [stack.wait_for_end(job["id"]) for job in jobs]
    assert [job["status"] for job in ended] == ["succeeded"] * 3, ended
    return [stack.get(f"/adapters/{job['adapter_id']}") | {"job": job} for job in ended]


def test_a_job_says_whether_it_helped(adapters: list[dict[str, Any]]) -> None:
    job = adapters[0]["job"]
    test = job["metrics"]["test"]
    low, high = test["confidence_interval"]["accuracy"]
    assert test["rows"] == 40
    assert test["after"]["accuracy"] >= 0.8
    assert test["delta"]["accuracy"] == pytest.approx(
        test["after"]["accuracy"] - test["before"]["accuracy"]
    )
    assert low <= test["delta"]["accuracy"] <= high
    assert job["attempt"] == 1
    assert job["finished_at"] >= job["first_step_at"] >= job["started_at"] >= job["created_at"]


def test_an_adapter_is_small(adapters: list[dict[str, Any]]) -> None:
    job = adapters[0]["job"]
    head = 384 * len(adapters[0]["labels"]) + len(adapters[0]["labels"])
    assert job["trainable_parameters"] - head <= 0.03 * job["base_parameters"]


def test_a_trained_adapter_answers_at_once_and_proves_which_weights_did(
    stack: Stack, adapters: list[dict[str, Any]]
) -> None:
    answer = stack.post(
        "/predict", {"adapter_id": "intents-0", "inputs": ["my card is not working"]}
    )
    assert answer["receipt"]["adapter_id"] == adapters[0]["id"]
    assert answer["receipt"]["adapter_digest"] == adapters[0]["digest"]
    assert answer["receipt"]["base_fingerprint"] == adapters[0]["base_fingerprint"]
    assert answer["outputs"][0]["label"] in adapters[0]["labels"]


def test_twenty_mixed_rows_equal_the_same_rows_one_by_one(
    stack: Stack, adapters: list[dict[str, Any]], intents: dict[str, Path]
) -> None:
    texts = [line.split('"')[3] for line in intents["test_file"].read_text().splitlines()[:20]]
    who = [adapters[0]["id"], adapters[1]["id"], adapters[2]["id"], None]
    rows = [{"adapter_id": who[i % 4], "input": text} for i, text in enumerate(texts)]
    together = stack.post("/predict", {"base_model": "minilm", "inputs": rows})
    for row, output, receipt in zip(rows, together["outputs"], together["receipts"], strict=True):
        alone = stack.post("/predict", {"base_model": "minilm", "inputs": [row]})
        assert receipt == alone["receipts"][0]
        assert same(output, alone["outputs"][0]), (output, alone["outputs"][0])


def same(one: Any, other: Any) -> bool:
    """Equal, numbers within rounding: another batch adds in another order."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return bool(one == pytest.approx(other, abs=SAME_SCORE))
    return bool(one == other)


def test_the_same_post_twice_is_one_job_that_can_be_reproduced(
    stack: Stack, dataset_id: str
) -> None:
    spec = {"dataset_id": dataset_id, "base_model": "minilm", "training": {"max_steps": 1}}
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: stack.post("/jobs", spec), range(2))
    assert first["id"] == second["id"]
    assert stack.wait_for_end(first["id"])["status"] == "succeeded"
    # and the same job once more makes the same adapter
    twin = stack.wait_for_end(stack.post(f"/jobs/{first['id']}:reproduce", {})["id"])
    manifest = stack.get(f"/jobs/{twin['id']}/manifest")
    assert manifest["reproduces"]["job_id"] == first["id"]
    assert manifest["reproduces"]["same"] is True
    assert manifest["environment"] == stack.get(f"/jobs/{first['id']}/manifest")["environment"]
    assert manifest["environment"]["torch"]


def test_a_running_job_is_cancelled(stack: Stack, dataset_id: str) -> None:
    spec = {"dataset_id": dataset_id, "base_model": "minilm", "training": {"epochs": 100}}
    job = stack.post("/jobs", spec)
    stack.wait_for_step(job["id"], 2)
    stack.post(f"/jobs/{job['id']}:cancel", {})
    ended = stack.wait_for_end(job["id"])
    assert ended["status"] == "cancelled"
    assert ended["adapter_id"] is None


def test_the_command_line_shows_the_same(stack: Stack, adapters: list[dict[str, Any]]) -> None:
    shown = stack.tunery("adapters", "get", "intents-1", "--json")
    assert shown["digest"] == adapters[1]["digest"]
    answer = stack.tunery("predict", "intents-1", "my card is not working", "--json")
    assert answer["receipt"]["adapter_digest"] == adapters[1]["digest"]
    assert adapters[0]["job"]["id"] in {job["id"] for job in stack.tunery("jobs", "list", "--json")}

"""SIGKILL to each process in mid-training: nothing is lost or trained twice, every job ends."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import JOB_SECONDS, Stack
from tests.processes import wait_until

# Long enough to be killed in the middle, with a state saved every second.
SPEC = {
    "base_model": "minilm",
    "adapter_name": "killed",
    "training": {"max_steps": 60, "batch_size": 8, "seed": 7, "early_stopping": None},
}
KILLED_AT_STEPS = (5, 20, 40)
OTHERS = ("api", "inference", "broker")


@pytest.fixture(scope="module")
def shaken(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[Stack]:
    """A service of its own, since its parts will be killed."""
    with Stack(tmp_path_factory.mktemp("shaken"), models_dir) as stack:
        yield stack


@pytest.fixture(scope="module")
def spec(shaken: Stack, intents: dict[str, Path]) -> dict[str, Any]:
    dataset = shaken.upload(intents, name="killed", task="text-classification")
    return SPEC | {"dataset_id": dataset["id"]}


@pytest.fixture(scope="module")
def undisturbed(shaken: Stack, spec: dict[str, Any]) -> dict[str, Any]:
    """The adapter of a job that nobody disturbs."""
    return train(shaken, spec, mark="undisturbed")


def train(
    stack: Stack, spec: dict[str, Any], *, mark: str, kill: str | None = None, at_step: int = 20
) -> dict[str, Any]:
    """Trains to the end, with one kill on the way, and returns the adapter and its job."""
    # The mark keeps the jobs apart: the same POST again within a while is the same job.
    job = stack.post("/jobs", spec | {"metadata": {"mark": mark}})
    if kill is not None:
        reached = stack.wait_for_step(job["id"], at_step)
        assert reached["status"] == "running", reached
        stack.kill(kill)
    job = stack.wait_for_end(job["id"])
    assert job["status"] == "succeeded", job
    adapter: dict[str, Any] = stack.get(f"/adapters/{job['adapter_id']}")
    made = stack.get("/adapters", limit=100)["data"]
    assert [one["job_id"] for one in made].count(job["id"]) == 1
    return adapter | {"job": job}


@pytest.mark.parametrize("step", KILLED_AT_STEPS)
def test_a_killed_worker_resumes_to_the_same_digest(
    shaken: Stack, spec: dict[str, Any], undisturbed: dict[str, Any], step: int
) -> None:
    adapter = train(shaken, spec, mark=f"step-{step}", kill="training", at_step=step)
    assert adapter["job"]["attempt"] == 2
    assert adapter["digest"] == undisturbed["digest"]


@pytest.mark.parametrize("program", OTHERS)
def test_a_job_does_not_notice_that_another_process_was_killed(
    shaken: Stack, spec: dict[str, Any], undisturbed: dict[str, Any], program: str
) -> None:
    adapter = train(shaken, spec, mark=program, kill=program)
    assert adapter["job"]["attempt"] == 1
    assert adapter["digest"] == undisturbed["digest"]


def test_jobs_taken_while_the_broker_is_away_are_done(shaken: Stack, spec: dict[str, Any]) -> None:
    shaken.kill("broker")
    jobs = [
        shaken.post("/jobs", spec | {"training": {"max_steps": 2}, "metadata": {"mark": f"b{i}"}})
        for i in range(3)
    ]
    ended = [shaken.wait_for_end(job["id"]) for job in jobs]
    assert [(job["status"], job["attempt"]) for job in ended] == [("succeeded", 1)] * 3


@pytest.mark.timeout(900)
def test_a_step_is_asked_and_what_was_published_of_it_outlives_a_kill(
    shaken: Stack, spec: dict[str, Any]
) -> None:
    long = spec | {"training": spec["training"] | {"max_steps": 100}, "adapter_name": "long"}
    job = shaken.post("/jobs", long | {"metadata": {"mark": "asked"}})
    path = f"/jobs/{job['id']}/checkpoints"
    wait_until(lambda: shaken.get(path)["data"], seconds=JOB_SECONDS)
    furthest = shaken.get(path)["data"][0]
    made = shaken.post(f"{path}/{furthest['id']}:publish", {})
    assert made["reference"] == f"long-step-{furthest['step']}@1"
    assert made["digest"] == furthest["digest"]
    asked = {"adapter_id": furthest["id"], "inputs": ["my card is not working"]}
    answer = shaken.http.post("/predict", json=asked)
    if answer.is_success:  # a busy machine may have taken two more checkpoints meanwhile
        receipt = answer.json()["receipt"]
        assert (receipt["job_id"], receipt["step"]) == (job["id"], furthest["step"])
        assert receipt["adapter_digest"] == made["digest"]
    shaken.kill("training")
    by_name = asked | {"adapter_id": made["reference"]}
    before = shaken.post("/predict", by_name)
    assert before["receipt"]["adapter_digest"] == made["digest"]
    ended = shaken.wait_for_end(job["id"])
    assert (ended["status"], ended["attempt"]) == ("succeeded", 2)
    wait_until(lambda: not shaken.get(path)["data"], seconds=JOB_SECONDS)
    assert shaken.post("/predict", by_name) == before
    own = shaken.get(f"/adapters/{ended['adapter_id']}")
    assert own["reference"] == "long@1"
    assert own["certificate"]["passed"]
    assert made["certificate"] is None

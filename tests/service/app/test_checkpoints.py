"""Checkpoints over HTTP: listed, asked while they are there, published to stay."""

from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from core.db import checkpoints, events, jobs
from core.db.models import Checkpoint, Job
from core.db.objects import remove_unneeded
from core.states import JobStatus
from core.storage import delta_key, open_store
from tests.service.app.conftest import Edge
from tests.service.app.job_steps import create, run_to
from tests.service.app.rows import error_of
from tests.service.app.test_key_commands import tunery

MINE = {"adapter_name": "intents", "metadata": {"team": "care"}}


@dataclass
class Training:
    """A job at work, and what its worker does."""

    edge: Edge
    job_id: str
    attempt: int

    @property
    def job(self) -> Job:
        with self.edge.database.read() as session:
            found = jobs.get_for_worker(session, self.job_id)
        assert found is not None
        return found

    def keep(self, step: int, *, old: bool = False) -> Checkpoint:
        """Keep a step and forget all but the newest two, as a worker does."""
        store = open_store(self.edge.settings)
        data, digest = f"delta of {step}".encode(), f"sha256:{step:064d}"
        store.put_new(delta_key(digest), data)
        told: dict[str, Any] = {
            "base_model": "minilm",
            "base_fingerprint": "sha256:" + "f" * 64,
            "task": "text-classification",
            "methods": [{"type": "lora", "r": 16}],
            "labels": ["a", "b"],
            "template_digest": "sha256:" + "0" * 64,
            "parameters": 1000,
            "bytes": len(data),
            "digest": digest,
            "key": delta_key(digest),
        }
        with self.edge.database.write() as session:
            row = checkpoints.add(
                session,
                job_id=self.job_id,
                tenant_id=self.job.tenant_id,
                attempt=self.attempt,
                step=step,
                key=f"checkpoints/{self.job_id}/{self.attempt}-{step}.safetensors",
                bytes=100,
                sha256="0" * 64,
                delta=None if old else told,
            )
            gone = checkpoints.prune(session, row.tenant_id, self.job_id, keep=2)
        for each in gone:
            assert each.delta_key is not None
            remove_unneeded(self.edge.database, each.delta_key, store.delete)
        return row

    def measure(self, step: int, **values: float) -> None:
        with self.edge.database.write() as session:
            for name, value in values.items():
                events.put_metric(
                    session,
                    job_id=self.job_id,
                    tenant_id=self.job.tenant_id,
                    attempt=self.attempt,
                    name=name.replace("_", "/", 1),
                    step=step,
                    value=value,
                )

    def end(self, status: JobStatus, **values: Any) -> None:
        with self.edge.database.write() as session:
            assert jobs.finish(session, self.job_id, self.attempt, status, **values)

    @property
    def path(self) -> str:
        return f"/jobs/{self.job_id}/checkpoints"


@pytest.fixture
def training(client: httpx.Client, edge: Edge, dataset_id: str) -> Training:
    job_id = create(client, dataset_id, **MINE)["id"]
    return Training(edge, job_id, run_to(edge, job_id, JobStatus.RUNNING))


def refusal(response: httpx.Response) -> tuple[int, str, str | None]:
    error = error_of(response)
    return response.status_code, error["code"], error["param"]


def ask(client: httpx.Client, reference: str, **more: Any) -> httpx.Response:
    return client.post("/predict", json={"adapter_id": reference, "inputs": ["one"], **more})


def test_a_list_says_what_each_is_worth_and_how_it_is_asked(
    client: httpx.Client, training: Training
) -> None:
    training.measure(0, validation_loss=2.0, validation_accuracy=0.5)
    training.keep(5)
    training.measure(10, validation_loss=1.0, validation_accuracy=0.75, train_loss=1.5)
    training.measure(30, validation_loss=0.5, validation_accuracy=0.875)
    row = training.keep(20)
    last, first = client.get(training.path).json()["data"]
    assert [last["step"], first["step"]] == [20, 5]
    assert last["validation"] == {"step": 10, "metrics": {"accuracy": 0.75, "loss": 1.0}}
    assert first["validation"] == {"step": 0, "metrics": {"accuracy": 0.5, "loss": 2.0}}
    assert (last["id"], last["can_predict"]) == (row.id, True)
    assert (last["bytes"], last["delta_bytes"]) == (111, 11)
    assert last["digest"] == f"sha256:{20:064d}"
    assert last["model"].endswith(f":intents:{training.job_id}:ckpt-step-20")
    assert {"key", "delta_key"}.isdisjoint(last)


def test_nothing_is_measured_before_the_first_evaluation(
    client: httpx.Client, training: Training
) -> None:
    training.keep(5)
    (only,) = client.get(training.path).json()["data"]
    assert only["validation"] is None


@pytest.mark.parametrize("address", ["id", "model"])
def test_an_answer_proves_which_step_gave_it(
    client: httpx.Client, edge: Edge, training: Training, address: str
) -> None:
    row = training.keep(20)
    (shown,) = client.get(training.path).json()["data"]
    edge.publish("other")
    answer = ask(client, shown[address], compare=["other"])
    assert answer.status_code == 200, answer.text
    receipt = answer.json()["receipt"]
    named = {name: receipt[name] for name in ("adapter_id", "adapter", "job_id", "step")}
    assert named == {
        "adapter_id": row.id,
        "adapter": None,
        "job_id": training.job_id,
        "step": 20,
    }
    assert receipt["adapter_digest"] == shown["digest"]
    asked = edge.twin.rows[0]
    assert asked["delta"] == {
        "adapter_id": row.id,
        "digest": shown["digest"],
        "key": delta_key(shown["digest"]),
    }
    assert (asked["task"], asked["base_model"]) == ("text-classification", "minilm")
    beside = answer.json()["comparison"][0]["receipt"]
    assert (beside["adapter"], beside["job_id"]) == ("other@1", None)


def test_one_that_is_gone_says_so_and_what_there_is(
    client: httpx.Client, training: Training
) -> None:
    training.keep(10)
    (first,) = client.get(training.path).json()["data"]
    for step in (20, 30):
        training.keep(step)
    gone = (404, "checkpoint_not_found", "adapter_id")
    assert refusal(ask(client, first["id"])) == gone
    assert refusal(ask(client, first["model"])) == gone
    told = error_of(ask(client, first["model"]))["message"]
    assert "is running and keeps those of step 30 and 20" in told
    assert "lists them" in error_of(ask(client, first["id"]))["message"]
    inputs = [{"adapter_id": first["id"], "input": "x"}]
    response = client.post("/predict", json={"inputs": inputs})
    assert refusal(response) == (404, "checkpoint_not_found", "inputs.0.adapter_id")


def test_the_name_of_one_whose_job_has_succeeded_leads_to_the_adapter(
    client: httpx.Client, edge: Edge, training: Training
) -> None:
    training.keep(10)
    (shown,) = client.get(training.path).json()["data"]
    adapter = edge.publish("intents")
    training.end(JobStatus.SUCCEEDED, adapter_id=adapter.id)
    with edge.database.write() as session:
        checkpoints.prune(session, training.job.tenant_id, training.job_id, keep=0)
    assert adapter.id in error_of(ask(client, shown["model"]))["message"]


def test_one_whose_weights_are_lost_is_listed_and_cannot_be_asked(
    client: httpx.Client, edge: Edge, training: Training
) -> None:
    training.keep(10)
    lost = training.keep(20)
    assert lost.delta_key is not None
    open_store(edge.settings).delete(lost.delta_key)
    shown = client.get(training.path).json()["data"]
    assert [(row["step"], row["can_predict"]) for row in shown] == [(20, False), (10, True)]


@pytest.mark.parametrize("place", ["adapter", "compare"])
def test_one_that_is_pruned_while_it_is_loaded_is_gone_too(
    client: httpx.Client, edge: Edge, training: Training, place: str
) -> None:
    """The call was planned while it was there."""
    row = training.keep(10)
    adapter = edge.publish("other")
    edge.twin.gone = {row.id}
    if place == "adapter":
        response, param = ask(client, row.id), "inputs.0.adapter_id"
    else:
        response, param = ask(client, "other", compare=[row.id]), "compare.0"
    assert refusal(response) == (404, "checkpoint_not_found", param)
    message = error_of(response)["message"]
    assert training.path in message
    assert "or its object is lost" in message
    edge.twin.gone = {adapter.id}
    assert refusal(ask(client, "other"))[1] == "object_not_found"


def test_what_an_earlier_version_wrote_is_listed_and_cannot_be_asked(
    client: httpx.Client, training: Training
) -> None:
    row = training.keep(10, old=True)
    (shown,) = client.get(training.path).json()["data"]
    assert (shown["can_predict"], shown["digest"], shown["model"]) == (False, None, None)
    assert refusal(ask(client, row.id)) == (404, "checkpoint_not_found", "adapter_id")
    response = client.post(f"{training.path}/{row.id}:publish")
    assert refusal(response) == (404, "checkpoint_not_found", "checkpoint_id")


def test_to_another_tenant_there_is_none(
    client: httpx.Client, other: httpx.Client, training: Training
) -> None:
    row = training.keep(10)
    (shown,) = client.get(training.path).json()["data"]
    for reference in (row.id, shown["model"]):
        theirs, nobody = ask(other, reference), ask(other, reference.replace("0", "1"))
        assert refusal(theirs) == refusal(nobody) == (404, "checkpoint_not_found", "adapter_id")
        assert "running" not in theirs.text
    assert refusal(other.get(training.path))[1] == "job_not_found"
    response = other.post(f"{training.path}/{row.id}:publish")
    assert refusal(response)[1] == "job_not_found"


def test_a_published_one_stays_and_says_what_it_is(
    client: httpx.Client, edge: Edge, training: Training
) -> None:
    training.measure(10, validation_loss=1.0, validation_accuracy=0.75, train_loss=1.5)
    row = training.keep(20)
    response = client.post(f"{training.path}/{row.id}:publish")
    assert response.status_code == 201, response.text
    made = response.json()
    assert response.headers["location"] == f"/adapters/{made['id']}"
    assert (made["reference"], made["job_id"]) == ("intents-step-20@1", training.job_id)
    assert (made["digest"], made["certificate"]) == (f"sha256:{20:064d}", None)
    assert made["metrics"] == {
        "train": {"loss": 1.5, "step": 10},
        "validation": {
            "metric": None,
            "after": {"accuracy": 0.75, "loss": 1.0},
            "step": 10,
        },
    }
    origin = made["origin"]
    assert (origin["format"], origin["step"]) == ("checkpoint", 20)
    assert origin["checkpoint_id"] == row.id
    assert len(origin["notes"]) == 2
    assert made["metadata"] == {"team": "care"}
    assert made["dataset_id"] == training.job.dataset_id
    for step in (30, 40):
        training.keep(step)
    assert refusal(ask(client, row.id))[1] == "checkpoint_not_found"
    assert ask(client, made["reference"]).json()["receipt"]["adapter_digest"] == made["digest"]
    assert client.get(f"/adapters/{made['id']}/export").content == b"delta of 20"
    told = [
        event["message"] for event in client.get(f"/jobs/{training.job_id}/events").json()["data"]
    ]
    assert "The checkpoint at step 20 was published as intents-step-20@1." in told
    assert client.get(f"/adapters/{made['id']}/lineage").json()["adapter"]["job_id"] == (
        training.job_id
    )


def test_the_same_wish_again_is_the_same_adapter(client: httpx.Client, training: Training) -> None:
    row = training.keep(20)
    path = f"{training.path}/{row.id}:publish"
    first = client.post(path)
    for step in (30, 40):  # gone meanwhile; what was made of it is found all the same
        training.keep(step)
    again = client.post(path)
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert refusal(client.post(path, json={"name": "mine"}))[1] == "checkpoint_not_found"


def test_names_metadata_and_keys_are_the_callers(client: httpx.Client, training: Training) -> None:
    path = f"{training.path}/{training.keep(20).id}:publish"
    asked = {"name": "mine", "metadata": {"why": "demo"}}
    key = {"idempotency-key": "once"}
    made = client.post(path, json=asked, headers=key).json()
    assert (made["reference"], made["metadata"]) == ("mine@1", {"why": "demo"})
    assert client.post(path, json=asked, headers=key).json()["id"] == made["id"]
    response = client.post(path, json={"name": "yours"}, headers=key)
    assert refusal(response)[1] == "idempotency_mismatch"
    assert refusal(client.post(path, json={"name": "Not A Name"}))[2] == "name"
    assert client.put("/aliases/live", json={"adapter_id": made["id"]}).status_code == 200
    assert refusal(client.post(path, json={"name": "live"})) == (409, "name_taken", "name")
    onto = {"adapter_id": client.post(path, json={"name": "later"}).json()["id"], "gate": {}}
    assert refusal(client.put("/aliases/live", json=onto))[1] == "gate_not_comparable"
    assert refusal(client.post(path, json={"name": "ckpt_mine"}))[0] == 400


def test_a_failed_job_gives_its_last_step_away(
    client: httpx.Client, edge: Edge, training: Training
) -> None:
    row = training.keep(95)
    error = {"code": "out_of_memory", "message": "no room", "param": None}
    training.end(JobStatus.FAILED, error=error)
    assert ask(client, row.id).status_code == 200
    made = client.post(f"{training.path}/{row.id}:publish")
    assert made.status_code == 201, made.text
    assert client.delete(f"/adapters/{made.json()['id']}").status_code == 200
    # the checkpoint still needs the bytes, and the job may be tried again
    assert open_store(edge.settings).exists(delta_key(f"sha256:{95:064d}"))
    assert client.post(f"{training.path}/{row.id}:publish").status_code == 201


def test_what_no_certificate_was_given_is_not_published_by_another_door(
    client: httpx.Client, training: Training
) -> None:
    row = training.keep(95)
    error = {"code": "certificate_failed", "message": "row 3 differs", "param": None}
    training.end(JobStatus.FAILED, error=error)
    response = client.post(f"{training.path}/{row.id}:publish")
    assert refusal(response) == (409, "conflict", None)
    assert ask(client, row.id).status_code == 200


def test_bytes_that_are_gone_make_no_adapter(
    client: httpx.Client, edge: Edge, training: Training
) -> None:
    """A worker may remove them between the look at the row and the adapter's own."""
    row = training.keep(20)
    assert row.delta_key is not None
    open_store(edge.settings).delete(row.delta_key)
    response = client.post(f"{training.path}/{row.id}:publish")
    assert refusal(response) == (404, "checkpoint_not_found", "checkpoint_id")
    assert client.get("/adapters").json()["data"] == []


def test_only_what_stays_can_be_pointed_to(
    client: httpx.Client, training: Training, dataset_id: str
) -> None:
    row = training.keep(20)
    spec = {"dataset_id": dataset_id, "base_model": "minilm", "parent_adapter_id": row.id}
    for response in (
        client.put("/aliases/live", json={"adapter_id": row.id}),
        client.post("/jobs", json=spec),
        client.get(f"/adapters/{row.id}"),
        client.delete(f"/adapters/{row.id}"),
    ):
        assert refusal(response)[:2] == (404, "adapter_not_found")
        assert "publish it" in error_of(response)["message"]


def test_whoever_may_only_read_publishes_nothing(
    edge: Edge, client: httpx.Client, training: Training
) -> None:
    row = training.keep(20)
    reader = edge.client(edge.new_key("read"))
    assert reader.get(training.path).status_code == 200
    response = reader.post(f"{training.path}/{row.id}:publish")
    assert refusal(response)[:2] == (403, "missing_scope")
    assert ask(edge.client(edge.new_key("predict")), row.id).status_code == 200


def test_the_command_line_lists_asks_and_publishes(edge: Edge, training: Training) -> None:
    for step in (10, 20):
        training.keep(step)
    rows = tunery(edge, "jobs", "checkpoints", training.job_id)
    assert [row["step"] for row in rows] == [20, 10]
    answer = tunery(edge, "predict", rows[1]["id"], "my card")
    assert answer["receipt"]["step"] == 10
    furthest = tunery(edge, "jobs", "publish", training.job_id)
    named = tunery(edge, "jobs", "publish", training.job_id, rows[1]["id"], "--name", "early")
    assert (furthest["reference"], named["reference"]) == ("intents-step-20@1", "early@1")

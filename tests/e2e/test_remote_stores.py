"""The whole service with its rows in a Postgres and its bytes in an S3, as a company runs it."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.e2e.stack import JOB_SECONDS, Stack
from tests.processes import wait_until
from tests.service.servers.postgres import PostgresServer
from tests.service.servers.s3 import REGION, S3Server

TRAINING = {"max_steps": 40, "batch_size": 8, "seed": 7, "early_stopping": None}
KILLED_AT_STEP = 15


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    return s3_server.create_bucket()


@pytest.fixture(scope="module")
def remote(
    tmp_path_factory: pytest.TempPathFactory,
    models_dir: Path,
    postgres_server: PostgresServer,
    s3_server: S3Server,
    bucket: str,
) -> Iterator[Stack]:
    """A service that keeps nothing but its key and its logs in its folder."""
    settings = {
        "TUNERY_DATABASE_URL": postgres_server.create(),
        "TUNERY_STORAGE_URL": f"s3://{bucket}/objects",
        "TUNERY_S3_ENDPOINT": s3_server.endpoint,
        "TUNERY_S3_REGION": REGION,
        "TUNERY_S3_ACCESS_KEY_ID": "test",
        "TUNERY_S3_SECRET_ACCESS_KEY": "test",
    }
    with Stack(tmp_path_factory.mktemp("remote"), models_dir, settings=settings) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(remote: Stack) -> OpenAI:
    return remote.openai()


@pytest.fixture(scope="module")
def dataset_id(client: OpenAI, intents: dict[str, Path]) -> str:
    """A data set that came in parts and was validated by a worker."""
    content = intents["file"].read_bytes()
    upload = client.uploads.upload_file_chunked(
        file=content,
        filename="intents.jsonl",
        bytes=len(content),
        mime_type="application/jsonl",
        purpose="fine-tune",
        part_size=10_000,
    )
    assert upload.file is not None
    assert len(content) > 10_000
    file = client.files.wait_for_processing(upload.file.id, poll_interval=0.2)
    assert file.status == "processed", file.status_details
    return str(file.id)


@pytest.fixture(scope="module")
def adapters(remote: Stack, dataset_id: str) -> list[dict[str, Any]]:
    """The same training twice: undisturbed, and with its trainer and worker killed on the way."""
    made = []
    for name in ("undisturbed", "killed"):
        spec = {"dataset_id": dataset_id, "base_model": "minilm", "adapter_name": name}
        job = remote.post("/jobs", spec | {"training": TRAINING})
        if name == "killed":
            remote.wait_for_step(job["id"], KILLED_AT_STEP)
            remote.kill("training")
        ended = remote.wait_for_end(job["id"])
        assert ended["status"] == "succeeded", ended
        made.append(remote.get(f"/adapters/{ended['adapter_id']}") | {"job": ended})
    return made


def keys(s3_server: S3Server, bucket: str) -> set[str]:
    found = s3_server.client().list_objects_v2(Bucket=bucket).get("Contents", [])
    return {item["Key"] for item in found}


def test_a_killed_job_goes_on_from_its_checkpoint_in_the_bucket(
    adapters: list[dict[str, Any]],
) -> None:
    undisturbed, killed = adapters
    assert (undisturbed["job"]["attempt"], killed["job"]["attempt"]) == (1, 2)
    assert killed["digest"] == undisturbed["digest"]


def test_an_adapter_is_answered_with_and_exported_after_a_restart(
    remote: Stack, adapters: list[dict[str, Any]]
) -> None:
    asked = {"adapter_id": adapters[0]["id"], "inputs": ["my card is not working"]}
    before = remote.post("/predict", asked)
    assert remote.stop() == 0
    remote.start()
    assert remote.post("/predict", asked) == before
    path = f"/adapters/{adapters[0]['id']}/export"
    own = remote.http.get(path).content
    assert len(own) == adapters[0]["bytes"]
    asked_for = {"format": "peft", "head": "leave-out"}
    with zipfile.ZipFile(io.BytesIO(remote.http.get(path, params=asked_for).content)) as archive:
        assert any(name.endswith("adapter_model.safetensors") for name in archive.namelist())


def test_a_batch_ends_and_its_answers_are_a_file(
    remote: Stack, client: OpenAI, adapters: list[dict[str, Any]]
) -> None:
    asked = {"adapter_id": adapters[0]["id"], "inputs": ["my card is not working"]}
    line = {"custom_id": "one", "method": "POST", "url": "/predict", "body": asked}
    content = json.dumps(line).encode() + b"\n"
    file = client.files.create(file=("asked.jsonl", content), purpose="batch")
    made = remote.post(
        "/v1/batches",
        {"input_file_id": file.id, "endpoint": "/predict", "completion_window": "24h"},
    )
    wait_until(
        lambda: remote.get(f"/v1/batches/{made['id']}")["status"] == "completed",
        seconds=JOB_SECONDS,
    )
    output_id = remote.get(f"/v1/batches/{made['id']}")["output_file_id"]
    (answer,) = client.files.content(output_id).text.splitlines()
    alone = remote.post("/predict", asked)
    assert json.loads(answer)["response"]["body"]["receipt"] == alone["receipt"]


def test_nothing_of_a_deleted_data_set_stays_in_the_bucket(
    remote: Stack,
    dataset_id: str,
    adapters: list[dict[str, Any]],
    s3_server: S3Server,
    bucket: str,
) -> None:
    assert any(dataset_id in key for key in keys(s3_server, bucket))
    digest = adapters[0]["digest"].removeprefix("sha256:")
    remote.http.delete(f"/datasets/{dataset_id}").raise_for_status()
    wait_until(lambda: not any(dataset_id in key for key in keys(s3_server, bucket)))
    assert any(digest in key for key in keys(s3_server, bucket))
    assert not list(remote.data_dir.rglob("*.safetensors"))

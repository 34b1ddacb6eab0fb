"""Jobs on derived bases, from POST /jobs to /predict: real api, worker, engine and inference."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.main import create_app
from core.db import Database, tenants
from core.states import JobStatus
from core.storage import derived_key, open_store
from inference.parts import make_parts
from inference.server import create_app as create_inference
from peft_engine.bases.base import describe_base
from peft_engine.compression.derive import describe_derived, plan_name
from peft_engine.configs.base import split_base_name
from tests.service.app.running import run_server
from tests.service.servers.valkey import ValkeyServer
from tests.service.worker.conftest import make_settings
from tests.service.worker.stage import Stage, closing
from tests.service.worker.tiny_bert import make_rows, make_tiny_bert

TRAINING = {"epochs": 1, "batch_size": 16, "max_length": 32}


@pytest.fixture(scope="module")
def stage(
    tmp_path_factory: pytest.TempPathFactory, _sqlite_template: Path, valkey_server: ValkeyServer
) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("derived")
    shutil.copy(_sqlite_template, folder / "tunery.db")
    settings = make_settings(
        folder,
        f"sqlite:///{folder}/tunery.db",
        valkey_server,
        base_models={"tiny": str(make_tiny_bert(folder / "tiny-bert"))},
    )
    splits = {
        name: make_rows(count, seed=seed)
        for seed, (name, count) in enumerate([("train", 48), ("validation", 8), ("test", 16)])
    }
    database = Database(settings.database_url)
    app = "worker.celery_app"
    yield from closing(Stage(settings, database, folder, app, splits=splits))
    database.dispose()


@pytest.fixture(scope="module")
def client(stage: Stage) -> Iterator[httpx.Client]:
    stage.start_worker()
    with stage.database.write() as session:
        key = tenants.create_key(session, stage.tenant_id, name="first").secret
    with _inference(stage) as inference_url:
        chosen = stage.settings.model_copy(update={"inference_url": inference_url})
        headers = {"authorization": f"Bearer {key}"}
        with (
            run_server(create_app(chosen)) as url,
            httpx.Client(base_url=url, headers=headers, timeout=60) as client,
        ):
            yield client


@contextmanager
def _inference(stage: Stage) -> Iterator[str]:
    # A models directory of its own, as another host has: nothing of the worker's is there.
    own = stage.settings.model_copy(update={"models_dir": stage.folder / "elsewhere"})
    parts = make_parts(own)
    with run_server(create_inference(own, parts)) as url:
        for served in parts.bases.all():
            served.loaded.result(60)
        yield url


def train(client: httpx.Client, stage: Stage, **asked: Any) -> dict[str, Any]:
    body = {"dataset_id": stage.dataset_id, "base_model": "tiny", "training": TRAINING}
    made = client.post("/jobs", json=body | asked)
    assert made.status_code == 202, made.text
    job = stage.wait_end(made.json()["id"], seconds=120)
    assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
    found: dict[str, Any] = client.get(f"/jobs/{job.id}").json()
    return found


def answer(client: httpx.Client, **asked: Any) -> dict[str, Any]:
    response = client.post("/predict", json={"inputs": ["w1 w2 w3"]} | asked)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_a_job_on_an_int8_base_is_trained_certified_and_answered(
    client: httpx.Client, stage: Stage
) -> None:
    job = train(client, stage, base={"quantization": "int8"}, adapter_name="quantized")
    assert job["base_model"] == "tiny"
    adapter = client.get(f"/adapters/{job['adapter_id']}").json()
    parent = describe_base(
        stage.settings.base_models["tiny"], name="tiny", models_dir=stage.settings.models_dir
    )
    expected = describe_derived(parent, split_base_name("tiny@int8")[1])
    assert (adapter["base_model"], adapter["base_fingerprint"]) == (
        "tiny@int8",
        expected.fingerprint,
    )
    assert adapter["certificate"]["passed"]
    about = job["metrics"]["base"]
    assert [about[name]["name"] for name in ("untouched", "derived", "tuned")] == [
        "tiny",
        "tiny@int8",
        "tiny@int8",
    ]
    assert about["derived"]["bytes"] < about["tuned"]["bytes"]
    assert about["derived"]["bytes"] < about["untouched"]["bytes"]
    assert all(about[name]["forward_ms"] > 0 for name in ("untouched", "derived", "tuned"))
    test = job["metrics"]["test"]
    assert about["tuned"]["metrics"] == test["after"]
    assert about["derived"]["metrics"] == test["frozen_head"]
    assert "accuracy" in about["untouched"]["metrics"]
    receipt = answer(client, adapter_id="quantized")["receipts"][0]
    assert receipt["adapter_digest"] == adapter["digest"]
    assert receipt["base_fingerprint"] == expected.fingerprint
    models = {model["id"]: model for model in client.get("/models").json()["data"]}
    own = models["tiny@int8"]
    assert (own["parent"], own["ready"]) == ("tiny", True)
    assert own["base"] == {"quantization": "int8", "pruning": None}
    assert 0 < own["bytes"] < models["tiny"]["bytes"]

    # A child goes on from it by the name of its base, and not on the untouched one.
    child = {"parent_adapter_id": "quantized", "adapter_name": "child"}
    refused = client.post(
        "/jobs", json={"dataset_id": stage.dataset_id, "base_model": "tiny"} | child
    )
    assert refused.json()["error"]["code"] == "base_mismatch"
    again = train(client, stage, base_model="tiny@int8", **child)
    assert client.get(f"/adapters/{again['adapter_id']}").json()["base_model"] == "tiny@int8"


@pytest.mark.parametrize("scheme", ["nf4", "int4"])
def test_tuning_runs_on_weights_of_four_bits(
    scheme: str, client: httpx.Client, stage: Stage
) -> None:
    job = train(client, stage, base={"quantization": scheme})
    adapter = client.get(f"/adapters/{job['adapter_id']}").json()
    assert adapter["base_model"] == f"tiny@{scheme}"
    assert adapter["certificate"]["passed"]
    about = job["metrics"]["base"]
    assert about["derived"]["bytes"] < about["untouched"]["bytes"]
    receipt = answer(client, adapter_id=adapter["id"])["receipts"][0]
    assert receipt["base_fingerprint"] == adapter["base_fingerprint"]


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (
            {"pruning": {"method": "structured", "sparsity": 0.25}, "quantization": "int8"},
            "ffn-0.25-",
        ),
        ({"pruning": {"method": "wanda", "sparsity": 0.5}}, "wanda-0.5-"),
        ({"pruning": {"method": "movement", "sparsity": 0.3}}, "movement-0.3-"),
    ],
)
def test_pruning_by_the_job_s_own_rows_is_the_same_where_it_is_served(
    base: dict[str, Any], name: str, client: httpx.Client, stage: Stage
) -> None:
    job = train(client, stage, base=base)
    adapter = client.get(f"/adapters/{job['adapter_id']}").json()
    derivation = split_base_name(adapter["base_model"])[1]
    assert derivation.pruning is not None
    assert derivation.pruning.calibration is not None
    assert derivation.name.startswith(name)
    parent = describe_base(
        stage.settings.base_models["tiny"], name="tiny", models_dir=stage.settings.models_dir
    )
    assert open_store(stage.settings).exists(derived_key(plan_name(parent, derivation.pruning)))
    receipt = answer(client, adapter_id=adapter["id"])["receipts"][0]
    assert receipt["base_fingerprint"] == adapter["base_fingerprint"]

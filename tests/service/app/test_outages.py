"""What the edge answers while a part is down."""

from pathlib import Path

import httpx
import pytest

from app.main import create_app
from core.db import jobs
from core.settings import Settings, load_settings
from tests.service.app.conftest import Edge
from tests.service.app.rows import error_of, upload
from tests.service.app.running import run_server
from tests.service.servers.processes import free_port


class TestBrokerDown:
    @pytest.fixture
    def settings(self, database_url: str, tmp_path: Path) -> Settings:
        return load_settings(
            data_dir=tmp_path / "data",
            database_url=database_url,
            broker_url=f"redis://127.0.0.1:{free_port()}/0",
            inference_token="between-us",
        )

    def test_a_job_is_accepted_and_kept_for_the_sweep(
        self, client: httpx.Client, edge: Edge
    ) -> None:
        made = upload(client)
        response = client.post("/jobs", json={"dataset_id": made["id"], "base_model": "minilm"})
        assert (response.status_code, response.json()["status"]) == (202, "queued")
        with edge.database.write() as session:
            assert list(jobs.sweep(session, resend_after_seconds=3600)) == [response.json()["id"]]

    def test_readiness_names_the_broker(self, client: httpx.Client) -> None:
        response = client.get("/readyz")
        assert response.status_code == 503
        found = {name for name, check in response.json()["checks"].items() if not check["ok"]}
        assert found == {"broker"}
        assert client.get("/healthz").status_code == 200

    def test_probes_may_ask_by_head(self, client: httpx.Client) -> None:
        assert client.head("/readyz").status_code == 503
        alive = client.head("/healthz")
        assert (alive.status_code, alive.content) == (200, b"")


class TestInferenceDown:
    @pytest.fixture
    def edge(self, edge: Edge) -> Edge:
        edge.twin.is_loading = True
        return edge

    def test_readiness_names_inference(self, edge: Edge, client: httpx.Client) -> None:
        response = client.get("/readyz")
        assert response.status_code == 503
        found = {name for name, check in response.json()["checks"].items() if not check["ok"]}
        assert found == {"inference"}
        assert "still loading" in response.json()["checks"]["inference"]["reason"]
        edge.twin.is_loading = False
        assert client.get("/readyz").json()["status"] == "ready"


def test_predictions_without_inference(settings: Settings, edge: Edge) -> None:
    gone = settings.model_copy(update={"inference_url": f"http://127.0.0.1:{free_port()}"})
    with run_server(create_app(gone)) as url:
        headers = {"authorization": f"Bearer {edge.key}"}
        with httpx.Client(base_url=url, headers=headers, timeout=30) as client:
            response = client.post("/predict", json={"base_model": "minilm", "inputs": ["a"]})
            assert (response.status_code, error_of(response)["code"]) == (
                503,
                "inference_unavailable",
            )
            assert 0 < int(response.headers["retry-after"]) <= 120
            models = client.get("/models").json()
    assert models["inference"] == "down"
    assert [model["id"] for model in models["data"]] == ["minilm", "smollm2"]


def test_everything_down(tmp_path: Path) -> None:
    """The process lives, names every part that is down, and answers in the shape."""
    closed = f"127.0.0.1:{free_port()}"
    settings = load_settings(
        data_dir=tmp_path,
        database_url=f"postgresql://postgres@{closed}/none",
        broker_url=f"redis://{closed}/0",
        storage_url="s3://bucket/prefix",
        s3_endpoint=f"http://{closed}",
        s3_access_key_id="x",
        s3_secret_access_key="x",
        inference_url=f"http://{closed}",
    )
    with (
        run_server(create_app(settings)) as url,
        httpx.Client(base_url=url, headers={"x-api-key": "tk_some"}, timeout=30) as client,
    ):
        assert client.get("/healthz").status_code == 200
        response = client.get("/readyz")
        assert response.status_code == 503
        checks = response.json()["checks"]
        assert set(checks) == {"database", "broker", "storage", "inference"}
        assert not any(check["ok"] for check in checks.values())
        assert all(check["reason"] for check in checks.values())
        assert "127.0.0.1" not in response.text
        response = client.get("/jobs")
        assert (response.status_code, error_of(response)["code"]) == (503, "database_unavailable")
        assert 0 < int(response.headers["retry-after"]) <= 120

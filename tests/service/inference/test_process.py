"""The process as others see it: starting, ready, announced, ended."""

import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from core.db import Database, nodes
from core.settings import Settings, child_environment
from inference import bases as bases_module
from inference import served as served_module
from inference.nodes import Announcer
from inference.schemas import BaseOut
from peft_engine.bases.base import Base, BaseInfo
from tests.service.inference.conftest import (
    PATIENCE_SECONDS,
    Process,
    Row,
    Shelf,
    Start,
    wait_until,
)
from tests.service.inference.tiny import served_bytes
from tests.service.servers.processes import free_port

WRITE: Row = {"input": "my card", "base_model": "llama", "options": {"max_new_tokens": 2}}


def test_bases_tell_what_they_are(process: Process, tiny_bases: dict[str, Base]) -> None:
    found = [BaseOut.model_validate(one) for one in process.client.get("/bases").json()]
    assert [one.name for one in found] == ["bert", "llama"]
    for one in found:
        expected = tiny_bases[one.name]
        assert (one.state, one.ready, one.error) == ("ready", True, None)
        assert one.architecture == expected.architecture
        assert ("text-generation" in (one.tasks or ())) == (one.name == "llama")
        assert one.fingerprint == expected.fingerprint
        assert one.parameters == expected.parameters
        assert one.bytes == served_bytes(expected)
        assert one.kernel in {"bert": (None,), "llama": ("blas", "onednn", "torch")}[one.name]
        assert one.mixes_adapters in (True, False)
        assert one.precision_reason == "fp32 as it was asked for"
        assert one.max_length == expected.max_length
        assert (one.precision, one.device) == ("fp32", "cpu")


def test_ready_only_when_every_base_is_loaded(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases_module, "LOADING_WAIT_SECONDS", 0.05)
    free = threading.Event()
    load = served_module.load_derived

    def slow_load(parent: BaseInfo, *more: Any, **options: Any) -> Base:
        if parent.name == "llama":
            assert free.wait(PATIENCE_SECONDS)
        return load(parent, *more, **options)

    monkeypatch.setattr(served_module, "load_derived", slow_load)
    process = start(ready=False)
    process.parts.bases.all()[0].loaded.result(PATIENCE_SECONDS)
    assert process.client.get("/healthz").status_code == 200
    answer = process.client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["bases"] == {"bert": "ready", "llama": "loading"}
    error = process.error([WRITE], 503)
    assert (error["code"], error["param"]) == ("base_loading", "rows.0.base_model")
    free.set()
    process.parts.bases.all()[1].loaded.result(PATIENCE_SECONDS)
    assert process.client.get("/readyz").status_code == 200
    process.predict([WRITE])


def test_a_base_that_cannot_be_loaded_leaves_the_others_answering(
    start: Start, settings: Settings, shelf: Shelf
) -> None:
    known = {"gone": "/nowhere/at/all", **settings.base_models}
    process = start(ready=False, base_models=known)
    process.parts.bases.all()[-1].loaded.result(PATIENCE_SECONDS)
    assert process.client.get("/readyz").status_code == 503
    error = process.error([{"input": "x", "base_model": "gone"}], 503)
    assert (error["code"], error["param"]) == ("base_unavailable", "rows.0.base_model")
    process.predict([WRITE])


def test_the_shared_token_is_asked_for(start: Start) -> None:
    process = start(inference_token=Settings(inference_token="secret").inference_token)
    assert process.client.get("/healthz").status_code == 200
    for path in ("/bases", "/metrics"):
        assert process.client.get(path).status_code == 401
    assert process.error([WRITE], 401)["code"] == "invalid_api_key"
    process.client.headers["authorization"] = "Bearer wrong"
    process.error([WRITE], 401)
    process.client.headers["authorization"] = "Bearer secret"
    process.predict([WRITE])


def test_metrics_count_what_happened(process: Process, shelf: Shelf) -> None:
    stored = shelf.put("bert", seed=1)
    row = {"input": "my card", "base_model": "bert", "delta": stored.reference}
    process.predict([row, row])
    process.predict([row])
    process.error([{**row, "base_model": "none"}], 404)
    page = process.client.get("/metrics").text.splitlines()
    for line in (
        'tunery_inference_requests_total{outcome="ok"} 2',
        'tunery_inference_requests_total{outcome="base_not_found"} 1',
        "tunery_inference_rows_total 3",
        "tunery_inference_delta_loads_total 1",
        "tunery_inference_delta_hits_total 1",
        "tunery_inference_rows_in_flight 0",
        "tunery_inference_deltas 1",
    ):
        assert line in page


def test_the_process_announces_itself_and_takes_its_row_away(
    process: Process, database: Database
) -> None:
    announcer = Announcer(
        database,
        url="http://127.0.0.1:8010",
        device="cpu",
        bases=process.parts.bases,
        interval_seconds=0.01,
    )
    announcer.start()

    def seen() -> list[tuple[str, str]]:
        with database.read() as session:
            return [(node.id, node.status) for node in nodes.list_live(session)]

    wait_until(lambda: seen() == [(announcer.id, "ready")])
    with database.read() as session:
        node = nodes.list_live(session)[0]
    assert node.precision == {"bert": "fp32", "llama": "fp32"}
    assert [base["name"] for base in node.bases] == ["bert", "llama"]
    announcer.stop(PATIENCE_SECONDS)
    assert seen() == []


def test_a_database_that_is_not_there_does_not_keep_it_from_answering(process: Process) -> None:
    # the fixture's database was never migrated
    wait_until(lambda: process.parts.announcer._silent)
    process.predict([WRITE])


def test_the_process_ends_when_its_owner_thread_dies(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("a fault of the scheduler")

    monkeypatch.setattr(process.parts.scheduler, "take", fail)
    error = process.error([WRITE], 503)
    assert error["code"] == "unavailable"
    wait_until(lambda: process.server.should_exit)
    assert process.parts.owner.died


def test_what_still_waits_at_the_end_is_sent_elsewhere(
    process: Process, crowd: ThreadPoolExecutor
) -> None:
    with process.owner_held():
        waiting = crowd.submit(process.post, [WRITE])
        wait_until(lambda: process.parts.scheduler.state().rows_waiting == 1)
        process.server.stop_soon()
        answer = waiting.result(PATIENCE_SECONDS)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "shutting_down"
    assert int(answer.headers["retry-after"]) >= 1


def test_python_m_inference_serves_and_ends_on_sigterm(settings: Settings) -> None:
    port = free_port()
    own = settings.model_copy(
        update={"inference_port": port, "inference_url": f"http://127.0.0.1:{port}"}
    )
    child = subprocess.Popen(
        [sys.executable, "-m", "inference"], env=child_environment(own), stderr=subprocess.PIPE
    )
    try:
        with httpx.Client(base_url=own.inference_url, timeout=PATIENCE_SECONDS) as client:
            # importing torch and transformers takes long on a busy machine
            wait_until(lambda: _is_ready(client, child), seconds=200)
            answer = client.post("/predict", json={"rows": [WRITE]})
            assert answer.status_code == 200
        child.send_signal(signal.SIGTERM)
        _, log = child.communicate(timeout=PATIENCE_SECONDS)
        assert child.returncode == 0, log.decode()
        assert b"Traceback" not in log
    finally:
        child.kill()
        child.wait()


def _is_ready(client: httpx.Client, child: "subprocess.Popen[bytes]") -> bool:
    assert child.poll() is None
    try:
        return client.get("/readyz").status_code == 200
    except httpx.ConnectError:
        return False


def test_an_address_that_is_taken_is_no_orderly_end(process: Process, settings: Settings) -> None:
    taken = httpx.URL(process.client.base_url).port
    own = settings.model_copy(update={"inference_port": taken})
    child = subprocess.run(
        [sys.executable, "-m", "inference"],
        env=child_environment(own),
        stderr=subprocess.PIPE,
        timeout=200,
        check=False,
    )
    assert child.returncode > 0
    assert b"address already in use" in child.stderr

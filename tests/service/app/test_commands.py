"""`tunery jobs`, `datasets` and `adapters` against a running service."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.service.app.conftest import Edge
from tests.service.app.rows import jsonl, records
from tests.service.app.test_estimates import RESULT, conclude
from tests.service.app.test_key_commands import tunery


def test_a_job_is_held_and_let_go_and_its_story_read(edge: Edge, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl(records(40)))
    made = tunery(edge, "datasets", "upload", str(tmp_path / "rows.jsonl"))
    job = tunery(edge, "jobs", "create", made["id"], "--base-model", "minilm")
    assert tunery(edge, "jobs", "pause", job["id"])["status"] == "paused"
    assert tunery(edge, "jobs", "resume", job["id"])["status"] == "queued"
    assert tunery(edge, "jobs", "cancel", job["id"])["status"] == "cancelled"
    held = tunery(edge, "jobs", "create", made["id"], "--no-start", "--name", "held")
    assert (held["status"], "jobs/{id}:start" in held["reason"]) == ("paused", True)
    manifest = tunery(edge, "jobs", "manifest", held["id"])
    assert (manifest["spec"], manifest["status"]) == (held["spec"], "paused")
    assert tunery(edge, "jobs", "start", held["id"])["status"] == "queued"
    assert tunery(edge, "jobs", "cancel", held["id"])["status"] == "cancelled"
    story = tunery(edge, "jobs", "events", job["id"])
    states = [row["message"] for row in story if row["event"] == "status"]
    assert states == ["queued", "paused: user", "queued", "cancelled"]
    assert tunery(edge, "jobs", "events", job["id"], "--after", str(story[-1]["seq"])) == []
    assert tunery(edge, "datasets", "delete", made["id"])["deleted"] is True


def test_who_stops_watching_is_told_what_goes_on(edge: Edge, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl(records(40)))
    made = tunery(edge, "datasets", "upload", str(tmp_path / "rows.jsonl"))
    argv = [sys.executable, "-m", "cli", "--url", edge.url, "--api-key", edge.key]
    argv += ["jobs", "create", made["id"], "--base-model", "minilm", "--watch"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as watching:
        assert watching.stderr is not None
        named = watching.stderr.readline()
        assert "queued" in watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        said = watching.stderr.read()
    assert watching.returncode == 130
    (job,) = tunery(edge, "jobs", "list")
    assert job["status"] == "queued"
    assert named == f"Watching {job['id']}; Ctrl-C leaves it running\n"
    assert f"{job['id']} goes on: `tunery jobs watch {job['id']}` shows it again" in said
    assert f"`tunery jobs cancel {job['id']}` stops it" in said


def test_an_estimate_is_asked_for_and_followed(edge: Edge, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl(records(40)))
    made = tunery(edge, "datasets", "upload", str(tmp_path / "rows.jsonl"))
    client, pause = edge.client(edge.key), threading.Event()

    def measure() -> None:
        while not (found := client.get("/estimates").json()["data"]):
            pause.wait(0.05)
        conclude(edge, found[0]["id"], RESULT)

    worker = threading.Thread(target=measure)
    worker.start()
    found = tunery(edge, "jobs", "estimate", made["id"], "--set", "training.epochs=2")
    worker.join(30)
    assert (found["status"], found["result"]) == ("succeeded", RESULT)
    assert found["spec"]["training"]["epochs"] == 2
    assert tunery(edge, "jobs", "list") == []


def test_other_columns_and_shares_are_named(edge: Edge, tmp_path: Path) -> None:
    rows = [{"sentence": row["text"], "kind": row["label"]} for row in records(40)]
    (tmp_path / "rows.jsonl").write_bytes(jsonl(rows))
    asked = ("mapping.text=sentence", "mapping.label=kind", "split.fractions=[0.5, 0.25, 0.25]")
    options = [word for setting in asked for word in ("--set", setting)]
    made = tunery(edge, "datasets", "upload", str(tmp_path / "rows.jsonl"), *options)
    assert (made["status"], made["report"]["mapping"]) == (
        "ready",
        {"text": "sentence", "label": "kind"},
    )
    assert {name: own["rows"] for name, own in made["report"]["splits"].items()} == {
        "train": 20,
        "validation": 10,
        "test": 10,
    }


def test_an_adapter_is_deleted(edge: Edge) -> None:
    adapter = edge.publish("old")
    assert tunery(edge, "adapters", "delete", "old@1")["id"] == adapter.id
    assert tunery(edge, "adapters", "list") == []


def test_a_sweep_is_asked_for_shown_and_cancelled(edge: Edge, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(jsonl(records(40)))
    made = tunery(edge, "datasets", "upload", str(tmp_path / "rows.jsonl"))
    words = ["--search", "method.r=[4, 8]", "--search", "training.seed=3"]
    words += ["--search", 'training.learning_rate={"min": 1e-4, "max": 1e-2, "log": true}']
    words += ["--strategy", "tpe", "--max-jobs", "3", "--set", "training.epochs=1", "--name", "x"]
    sweep = tunery(edge, "sweeps", "create", made["id"], *words)
    assert sweep["job"]["training"] == {"epochs": 1}
    assert sweep["job"]["adapter_name"] == "x"
    assert sweep["search"]["training.seed"] == {"values": [3]}
    assert (sweep["strategy"], sweep["max_jobs"], sweep["max_parallel"]) == ("tpe", 3, 4)
    assert [own["id"] for own in tunery(edge, "sweeps", "list")] == [sweep["id"]]
    assert tunery(edge, "sweeps", "get", sweep["id"])["status"] == "running"
    assert tunery(edge, "sweeps", "cancel", sweep["id"])["status"] == "cancelling"

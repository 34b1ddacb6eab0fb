"""`tunery batches` against a running service."""

import json
import subprocess
import sys
from pathlib import Path

from tests.service.app.test_key_commands import tunery
from tests.service.batches.office import Office, asking, jsonl


def run(office: Office, *words: str) -> subprocess.CompletedProcess[str]:
    edge = office.edge
    argv = [sys.executable, "-m", "cli", "--url", edge.url, "--api-key", edge.key, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_a_batch_is_made_watched_and_its_answers_downloaded(office: Office, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(jsonl([*asking(["a", "b"]), *asking(["c"], "intents@1")]))
    office.start()
    made = tunery(office.edge, "batches", "create", str(path), "--metadata", "team=care", "--watch")
    assert (made["status"], made["metadata"]) == ("completed", {"team": "care"})
    (listed,) = tunery(office.edge, "batches", "list")
    assert listed == tunery(office.edge, "batches", "get", made["id"])
    target = tmp_path / "answers.jsonl"
    done = run(office, "batches", "output", made["id"], str(target))
    assert done.stdout.startswith(f"{target}: ")
    answers = [json.loads(line) for line in target.read_text().splitlines()]
    assert [answer["custom_id"] for answer in answers] == ["a", "b", "c"]
    none = run(office, "batches", "output", made["id"], str(target), "--errors")
    assert none.returncode == 1
    assert "no error file" in none.stderr
    shown = run(office, "batches", "get", made["id"])
    assert "3 of 3" in shown.stdout


def test_what_is_wrong_with_a_file_is_shown(office: Office, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(jsonl(asking(["a"], "nobody")) + b"{\n")
    office.start()
    done = run(office, "batches", "create", str(path), "--watch")
    assert done.returncode == 1
    assert "line 1: there is no model 'nobody'" in done.stdout
    assert "line 2: the line is not valid JSON" in done.stdout


def test_a_batch_is_cancelled(office: Office, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(jsonl(asking(["a"])))
    made = tunery(office.edge, "batches", "create", str(path))
    assert made["status"] == "validating"
    assert tunery(office.edge, "batches", "cancel", made["id"])["status"] == "cancelling"

"""`tunery serve` as a person meets it: refusals that help, and nothing left behind."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.stack import Stack, clean_environment
from tests.processes import is_alive, wait_until


def run_serve(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", "serve", *options],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_second_service_on_the_same_data_is_refused(stack: Stack) -> None:
    done = run_serve("--data-dir", str(stack.data_dir), "--port", "1")
    assert done.returncode == 1
    assert f"Another `tunery serve` (process {stack.process.pid})" in done.stdout


def test_a_taken_port_is_told_before_anything_starts(stack: Stack, tmp_path: Path) -> None:
    done = run_serve("--data-dir", str(tmp_path), "--port", str(stack.port))
    assert done.returncode == 1
    assert f"Cannot listen on 127.0.0.1:{stack.port}" in done.stdout
    assert "--port" in done.stdout
    assert not (tmp_path / "tunery.db").exists()


def test_auth_off_is_refused_on_an_open_address(tmp_path: Path) -> None:
    options = ["--data-dir", str(tmp_path), "--host", "0.0.0.0"]
    done = subprocess.run(
        [sys.executable, "-m", "cli", "serve", *options],
        env=clean_environment() | {"TUNERY_AUTH": "off"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "loopback" in done.stderr


def test_the_key_is_private_and_shown_once(stack: Stack) -> None:
    path = stack.data_dir / "api-key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert stack.output.count(path.read_text(encoding="utf-8").strip()) == 1


def test_all_that_it_wrote_is_closed_to_others(stack: Stack) -> None:
    assert stack.data_dir.stat().st_mode & 0o077, "the test wants a directory that is open"
    written = {path.name: path for path in stack.data_dir.iterdir() if path.name != "serve.out"}
    assert {"tunery.db", "logs", "broker", "api-key"} <= written.keys()
    for name, path in written.items():
        assert path.stat().st_mode & 0o077 == 0, name


@pytest.mark.timeout(600)
def test_nothing_is_left_when_it_ends(
    tmp_path: Path, models_dir: Path, intents: dict[str, Path]
) -> None:
    stack = Stack(tmp_path, models_dir)
    dataset = stack.upload(intents, name="intents", task="text-classification")
    spec = {"dataset_id": dataset["id"], "base_model": "minilm", "training": {"max_steps": 24}}
    job = stack.post("/jobs", spec)
    stack.wait_for_step(job["id"], 2)
    try:
        for attempt, number, code in ((1, signal.SIGINT, 0), (2, signal.SIGKILL, -signal.SIGKILL)):
            stack.wait_for_attempt(job["id"], attempt)
            wait_until(lambda: len(stack.pids) >= 8)  # seven programs and a trainer
            pids = stack.pids
            assert stack.stop(number) == code
            wait_until(lambda pids=pids: not any(is_alive(pid) for pid in pids), seconds=10)
            # And what was begun goes on at the next start.
            stack.start()
        ended = stack.wait_for_end(job["id"])
        assert ended["status"] == "succeeded", ended
        assert ended["attempt"] == 3
    finally:
        stack.stop()

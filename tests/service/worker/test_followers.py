"""How a lead starts the other processes of a job, and what it says when they do not come."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.settings import Settings, load_settings
from peft_engine.configs import JobSpec
from peft_engine.errors import ConfigError, TrainingError
from worker import followers
from worker.failures import Explained, explain

SPEC = JobSpec.model_validate(
    {"dataset_id": "ds_1", "base_model": "tiny", "training": {"devices": 3}}
)
WORDS = """
import sys
from multiprocessing.connection import Connection
line = Connection(int(next(word for word in sys.argv if word.startswith("--line=")).split("=")[1]))
assert b'"devices":3' in line.recv_bytes()
"""
SILENT = "import sys; sys.exit(3)"
REFUSING = WORDS + (
    """line.send_bytes(b'{"code": "storage_unavailable", "message": "gone", "param": null,"""
    """ "retry": true, "fresh_process": false}')"""
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(data_dir=tmp_path, device="cpu", threads=1)


def start(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Meet others that are a program of the test."""
    monkeypatch.setattr(followers, "FOLLOWER_COMMAND", (sys.executable, "-c", program))
    with followers.lead(settings, SPEC, tick=tick):
        pytest.fail("nobody was ready")


def test_one_that_dies_before_it_is_ready_is_lost(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError, match="before it was ready") as lost:
        start(settings, monkeypatch, SILENT)
    failure = explain(lost.value)
    assert (failure.code, failure.retry, failure.fresh_process) == ("peer_lost", True, True)


def test_what_one_explains_is_what_the_owner_is_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Explained) as told:
        start(settings, monkeypatch, REFUSING)
    failure = explain(told.value)
    assert (failure.code, failure.message, failure.retry) == ("storage_unavailable", "gone", True)


def test_a_wait_can_be_ended(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followers, "_GRACE_SECONDS", 0.1)
    monkeypatch.setattr(followers, "_LOOK_SECONDS", 0.1)

    def unwanted() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        start(settings, monkeypatch, "import time; time.sleep(600)", unwanted)


def test_each_accelerator_is_one_process_alone(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = settings.model_copy(update={"device": "cuda:1"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    seen = [each["CUDA_VISIBLE_DEVICES"] for each in followers._environments(cuda, 3)]
    assert seen == ["4", "6"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    seen = [each["CUDA_VISIBLE_DEVICES"] for each in followers._environments(cuda, 3)]
    assert seen == ["0", "2"]
    with pytest.raises(ConfigError, match="sees 4") as few:
        followers._environments(cuda, 5)
    assert (few.value.code, few.value.param) == ("too_many_devices", "training.devices")


def test_processes_of_a_cpu_share_its_threads(settings: Settings) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        (one,) = followers._environments(settings, 2)
        assert one["TUNERY_THREADS"] == "2"
    finally:
        torch.set_num_threads(before)

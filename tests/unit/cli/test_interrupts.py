"""Ctrl-C while a command is still being imported."""

import signal
import subprocess
import sys

import pytest


@pytest.mark.parametrize("last", ["typer", "httpx", "sqlalchemy"])
def test_ctrl_c_during_the_imports_ends_without_a_word(last: str) -> None:
    argv = [sys.executable, "-X", "importtime", "-m", "cli", "--help"]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as started:
        assert started.stderr is not None
        for line in started.stderr:
            if line.rpartition("|")[2].strip() == last:
                break
        started.send_signal(signal.SIGINT)
        said, told = started.communicate()
    assert (started.returncode, said) == (130, "")
    assert [line for line in told.splitlines() if not line.startswith("import time:")] == []

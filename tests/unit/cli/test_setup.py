"""`tunery setup` as a person runs it: in a terminal Ctrl-C reaches the whole group."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from cli.setup import FETCHED
from tests.processes import descendants, running_with, wait_until


def test_an_interrupted_preparation_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / FETCHED).touch()
    argv = [sys.executable, "-m", "cli", "setup", "--models-dir", str(tmp_path)]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as setup:
        assert setup.stdout is not None
        assert "Preparing minilm" in setup.stdout.readline()
        wait_until(lambda: bool(descendants(setup.pid)))
        # Out of the terminal's reach: whoever is interrupted while it imports prints a traceback.
        assert setup.pid not in {os.getpgid(pid) for pid in descendants(setup.pid)}
        os.killpg(setup.pid, signal.SIGINT)
        said = setup.stdout.read()
    assert (setup.returncode, said.count("Traceback")) == (130, 0), said
    assert "the same command goes on" in said
    assert running_with(str(tmp_path)) == []

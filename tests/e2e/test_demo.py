"""The demo as a person runs it: interrupted in the middle, then once more to its end."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cli.demo import RUN_FILE
from tests.e2e.stack import QUICK, clean_environment
from tests.processes import running_with, wait_until

DEMO_SECONDS = 540.0


class Demo:
    """One run of `tunery demo` with its output in a file."""

    def __init__(self, data_dir: Path, models_dir: Path, output: Path) -> None:
        self._output = output
        argv = [sys.executable, "-m", "cli", "demo", "--data-dir", str(data_dir)]
        argv += ["--models-dir", str(models_dir), "--quick"]
        with output.open("w", encoding="utf-8") as file:
            self.process = subprocess.Popen(
                argv, env=clean_environment() | QUICK, stdout=file, stderr=file
            )

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8")


@pytest.mark.timeout(1200)
def test_the_demo_goes_on_where_it_was_interrupted(tmp_path: Path, models_dir: Path) -> None:
    data_dir = tmp_path / "demo"
    first = Demo(data_dir, models_dir, tmp_path / "first.out")
    wait_until(
        lambda: " training step " in first.output.partition("Text generation")[2],
        seconds=DEMO_SECONDS,
    )

    first.process.send_signal(signal.SIGINT)

    assert first.process.wait(60) == 130, first.output
    assert "the same command goes on from here" in first.output
    assert running_with(str(data_dir)) == []

    second = Demo(data_dir, models_dir, tmp_path / "second.out")
    assert second.process.wait(DEMO_SECONDS) == 0, second.output
    shown = second.output
    assert "had succeeded before the interruption" in shown
    assert "was left unfinished and goes on" in shown
    assert "Base model smollm2: ready" in shown
    assert shown.count("on the test split") == 2
    assert shown.count("Receipt: adapter adp_") == 2
    assert "accuracy" in shown
    assert "bleu" in shown
    assert not (data_dir / RUN_FILE).exists()
    assert running_with(str(data_dir)) == []

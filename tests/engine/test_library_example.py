"""The example of the engine without the service, run as it stands, on a base of a second."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from tests.tiny_bases import write_tiny_bert

SCRIPT = Path(__file__).parents[2] / "examples" / "tune_as_a_library.py"


def test_the_example_tunes_two_adapters_and_asks_both_and_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_tiny_bert(tmp_path / "base")
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path / "models"), str(base)])
    capsys.readouterr()
    script = runpy.run_path(str(SCRIPT), run_name="__main__")
    said = re.split("[\r\n]+", capsys.readouterr().out.strip("\r\n"))  # progress ends in \r

    lines = [line for line in said if not line.startswith("  step ")]
    patterns = [
        rf"{name}: test accuracy 0\.\d{{3}} -> 0\.\d{{3}}, sha256:[0-9a-f]{{12}}"
        for name in script["INTENTS"]
    ]
    patterns += [
        rf"{name}: ({'|'.join(labels)})\w* \([01]\.\d\d\)"
        for name, labels in script["INTENTS"].items()
    ]
    patterns.append(r"plain base: (a lost card|a wrong rate|the weather) \([01]\.\d\d\)")
    assert len(lines) == len(patterns), lines
    assert len(said) > len(lines), "no progress was shown"
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), line

"""A short soak of the real processes on tiny bases: see ``benchmarks/serving/soak.py``."""

from pathlib import Path

from benchmarks.serving.soak import Soak, run_soak
from peft_engine.bases.base import Base


def test_a_soak_finds_no_wrong_answer(tiny_bases: dict[str, Base], tmp_path: Path) -> None:
    soak = Soak(seconds=15, clients=6, readers=18, writers=6, new_tokens=8)
    summary, _ = run_soak(soak, tiny_bases, tmp_path / "models", tmp_path / "data")
    assert summary["disagreements"] == summary["errors_not_provoked"] == 0, summary["first_of_them"]
    assert summary["tracebacks_in_logs"] == 0
    assert summary["left_in_flight"] is None
    assert summary["answers_checked"] > 50
    assert summary["first_replica"]["delta_evictions_total"] > 0

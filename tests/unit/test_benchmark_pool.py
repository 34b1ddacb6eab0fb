"""Runs of a benchmark side by side: all are made, one that fails harms no other."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from benchmarks.quality.journal import Journal
from benchmarks.quality.pool import run_jobs
from peft_engine.errors import DataError


def make_runner(path: Path) -> Callable[[int], None]:
    journal = Journal(path)

    def run(job: int) -> None:
        if job == 2:
            raise DataError("two is not to be had", code="no_two")
        journal.add({"key": str(job)})

    return run


def test_runs_side_by_side_are_all_made_though_one_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "runs.jsonl"
    failed = run_jobs([0, 1, 2, 3], partial(make_runner, path), workers=2, threads=1)
    assert failed == 1
    assert sorted(line["key"] for line in Journal(path)) == ["0", "1", "3"]
    told = capsys.readouterr().err
    assert "failed: 2" in told
    assert "two is not to be had" in told


def test_in_one_process_a_failure_ends_the_run(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    with pytest.raises(DataError, match="two is not"):
        run_jobs([1, 2, 3], partial(make_runner, path), workers=1, threads=1)
    assert [line["key"] for line in Journal(path)] == ["1"]

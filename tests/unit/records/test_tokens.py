"""Lengths of rows in tokens, and which of them are told."""

from pathlib import Path

from peft_engine.records import TokenMeasure
from tests.unit.records.test_reading import ROWS, build, jsonl


def test_a_long_context_is_not_cut(tmp_path: Path) -> None:
    context = "Rome is a city. " * 500
    rows = [
        {"question": f"What is {n}?", "context": f"{n} {context}", "answers": []} for n in range(9)
    ]
    report = build(tmp_path, jsonl(rows))
    assert (report.task, report.status) == ("question-answering", "ready")
    assert report.tokens["estimate"].limit is None
    assert "row_too_long" not in {warning.code for warning in report.warnings}


def test_token_measures_of_bases(tmp_path: Path) -> None:
    short = TokenMeasure("short", 3, lambda texts: [len(text.split()) for text in texts])
    wide = TokenMeasure("wide", 9, lambda texts: [len(text.split()) for text in texts])
    rows = [*ROWS, {"text": "one two three four five", "label": "odd"}]
    report = build(tmp_path, jsonl(rows), measures=[short, wide])
    assert report.tokens["short"].over_limit_rows == 1
    assert report.tokens["short"].max == 5
    assert report.tokens["short"].p50 == 3
    assert report.tokens["wide"].over_limit_rows == 0
    [warning] = report.warnings
    assert "short" in warning.message
    assert warning.lines == [41]

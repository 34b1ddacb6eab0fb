"""Lists and objects in the cells of a table: forms of others are turned as in JSON Lines."""

import csv
import io
import json
from pathlib import Path

import pytest

from tests.unit.records.test_reading import all_rows, build, jsonl

SQUAD = [
    {
        "question": f"what is {i}",
        "context": "Paris, so far",
        "answers": {"text": ["Paris"], "answer_start": [0]},
    }
    for i in range(12)
]
SHAREGPT = [
    {"conversations": [{"from": "human", "value": f"[hi] {i}"}, {"from": "gpt", "value": "yo"}]}
    for i in range(12)
]


def cells_of(rows: list[dict[str, object]]) -> bytes:
    """Rows as a table: lists and objects as JSON in a cell."""
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow(v if isinstance(v, str) else json.dumps(v) for v in row.values())
    return lines.getvalue().encode()


@pytest.mark.parametrize("rows", [SQUAD, SHAREGPT], ids=["SQuAD", "ShareGPT"])
@pytest.mark.parametrize("named", [True, False], ids=["task named", "task told"])
def test_other_forms_are_turned_in_tables_too(
    tmp_path: Path, rows: list[dict[str, object]], named: bool
) -> None:
    (tmp_path / "json").mkdir()
    wanted = build(tmp_path / "json", jsonl(rows))
    found = build(tmp_path, cells_of(rows), "x.csv", task=wanted.task if named else None)
    assert (found.status, found.task, found.kind) == ("ready", wanted.task, wanted.kind)
    assert [note.code for note in found.notes] == ["converted_form"]
    assert all_rows(tmp_path) == all_rows(tmp_path / "json")


@pytest.mark.parametrize(
    ("rows", "column"), [(SQUAD, "answers"), (SHAREGPT, "conversations")], ids=["SQuAD", "ShareGPT"]
)
def test_a_broken_cell_of_another_form(
    tmp_path: Path, rows: list[dict[str, object]], column: str
) -> None:
    broken = [*rows[:2], rows[2] | {column: "[{'from': 'human'}]"}, *rows[3:]]
    report = build(tmp_path, cells_of(broken), "x.csv")
    told = [(p.line, p.column, p.code) for p in report.problems]
    assert told == [(4, column, "single_quotes")]

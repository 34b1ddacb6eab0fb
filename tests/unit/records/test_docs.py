"""The page for users and the code say the same."""

import re
from pathlib import Path

from peft_engine.records import TASKS, Limits
from peft_engine.records.problems import CODES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "datasets.md").read_text(encoding="utf-8")


def test_the_page_lists_every_code() -> None:
    table = "".join(f"| `{code}` | {line} |\n" for code, line in CODES.items())
    assert PAGE.endswith("| code | meaning |\n|---|---|\n" + table)


def test_the_page_lists_every_task_and_the_limits() -> None:
    for task in TASKS:
        assert f"| `{task}` |" in PAGE
    limits = Limits()
    for number in (limits.max_labels, limits.max_keys):
        assert f"{number:,}" in PAGE
    for number in (limits.max_label_characters, limits.max_choices, limits.min_rows):
        assert re.search(rf"\b{number}\b", PAGE)


def test_the_code_uses_no_code_that_is_not_in_the_table_and_no_row_of_it_is_dead() -> None:
    folder = ROOT / "peft_engine" / "records"
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for path in folder.rglob("*.py")
        if path.name != "problems.py"
    )
    for code in CODES:
        assert f'"{code}"' in source, f"nothing says {code}"
    said = re.findall(
        r'(?:\.bad|\.notice|\.add|Refused|Unreadable|Refusal)\(\s*"([a-z0-9_]+)",', source
    )
    assert set(said) <= CODES.keys()
    assert len(set(said)) > 40

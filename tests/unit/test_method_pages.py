"""The pages in docs/methods say what the code says."""

import re
from pathlib import Path

import pytest

from peft_engine.configs.methods import METHOD_NAMES
from peft_engine.configs.methods.tables import CONFIGS, methods_table, options_table

PAGES = Path(__file__).parents[2] / "docs" / "methods"


def test_every_method_is_in_every_table() -> None:
    assert tuple(CONFIGS) == METHOD_NAMES
    assert {path.stem for path in PAGES.glob("*.md")} == {*METHOD_NAMES, "README"}
    assert methods_table() in (PAGES / "README.md").read_text()


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_a_page_shows_paper_equation_use_cost_and_options(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text()
    assert options_table(name) in page
    assert all(f"\n## {part}\n" in page for part in ("When", "What it costs", "Options"))
    opening = page.partition("\n## ")[0]
    assert "arXiv" in opening
    assert re.search(r"`[^`]* = [^`]*`", opening), "an equation"

"""What pages point to exists, and a status beside a code is the code's."""

import re
from collections.abc import Iterator
from pathlib import Path

from core.error_codes import ERROR_CODES

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "examples").rglob("*.md"),
    *(ROOT / "benchmarks").rglob("*.md"),
]
LINK = re.compile(r"\]\(([^)\s]+)\)")
STATUS = re.compile(r"\b([45]\d\d) `([a-z_]+)`")


def plain(page: Path) -> str:
    """The text without blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(page: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", plain(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links() -> Iterator[tuple[Path, str]]:
    """Page and target of each link that stays here."""
    for page in PAGES:
        for target in LINK.findall(plain(page)):
            if not target.startswith(("http:", "https:")):
                yield page, target


def test_links_lead_somewhere() -> None:
    found = list(links())
    assert len(found) > 100
    for page, target in found:
        name, _, anchor = target.partition("#")
        goal = page.parent / name if name else page
        assert goal.exists(), (page.name, target)
        assert not anchor or anchor in anchors(goal), (page.name, target)


def test_a_status_beside_a_code_is_its_own() -> None:
    found = [(page.name, *pair) for page in PAGES for pair in STATUS.findall(plain(page))]
    assert len(found) > 20
    for page, status, code in found:
        assert (page, code, ERROR_CODES[code].status) == (page, code, int(status))

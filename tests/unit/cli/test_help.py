"""What ``--help`` says, and whether pages name commands and options that there are."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from cli.main import app

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "docker-compose.yml", *(ROOT / "docs").rglob("*.md")]
LINE = re.compile(r"(?:^|[`\s\"])tunery ([a-z][^`\n#]*)", re.M)


def commands(group: Any, *path: str) -> Iterator[tuple[str, Any]]:
    """Every command with its path."""
    for name, own in group.commands.items():
        yield " ".join((*path, name)), own
        if hasattr(own, "commands"):
            yield from commands(own, *path, name)


KNOWN = dict(commands(typer.main.get_command(app)))


def named() -> Iterator[tuple[str, str]]:
    """Page and words of each command that a page names; of `keys create | list` the first."""
    for page in PAGES:
        for words in LINE.findall(page.read_text(encoding="utf-8")):
            yield page.name, " ".join(words.replace("\\", " ").split())


@pytest.mark.parametrize("command", KNOWN)
def test_help_shows_no_section_of_a_docstring(command: str) -> None:
    text = KNOWN[command].help or ""
    assert text
    assert not re.search(r"^ *(Args|Returns|Raises|Yields):", text, re.M)


def test_pages_name_commands_and_options_that_there_are() -> None:
    found = sorted(set(named()))
    assert len(found) > 10
    for page, line in found:
        words = re.split(r"[ |]+", line)
        path = next((" ".join(words[:n]) for n in (2, 1) if " ".join(words[:n]) in KNOWN), None)
        assert path is not None, (page, line)
        command = KNOWN[path]
        # a group is named alone, or with one of its commands
        assert not hasattr(command, "commands") or len(words) == 1, (page, line)
        options = {option for own in command.params for option in own.opts + own.secondary_opts}
        asked = {word.strip("[]") for word in words if word.lstrip("[").startswith("--")}
        assert asked <= options | {"--help"}, (page, line)

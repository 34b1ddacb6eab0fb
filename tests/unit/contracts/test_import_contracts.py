"""The import contracts hold; each bites when a forbidden import stands in a copy of the tree."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("app", "cli", "core", "inference", "peft_engine", "worker")

FORBIDDEN = [
    ("app/services/__init__.py", "import worker", "The building"),
    ("inference/__init__.py", "import app.services", "The building"),
    ("core/__init__.py", "import app", "The building"),
    ("core/__init__.py", "import peft_engine.errors", "The building"),
    ("peft_engine/__init__.py", "import core.errors", "The building"),
    ("worker/__init__.py", "import cli", "The building"),
    ("app/services/__init__.py", "import sqlalchemy", "Only core.db speaks SQL"),
    ("core/ids.py", "import sqlalchemy", "Only core.db speaks SQL"),
    ("app/services/__init__.py", "import celery", "Only core.queue and worker speak Celery"),
    ("app/services/__init__.py", "import torch", "never reach torch"),
    ("app/services/__init__.py", "import peft_engine.delta", "never reach torch"),
    ("peft_engine/configs/__init__.py", "import torch", "never reach torch"),
    ("core/ids.py", "import safetensors", "never reach torch"),
    ("peft_engine/__init__.py", "import fastapi", "The engine knows no web"),
    ("peft_engine/errors.py", "import pydantic_settings", "The engine knows no web"),
    ("app/schemas/shared.py", "import app.services", "Inside app"),
    ("worker/protocol.py", "import worker.tasks", "Inside worker"),
    ("inference/tickets.py", "import inference.server", "Inside inference"),
    ("core/storage/store.py", "import core.queue", "Inside core"),
    ("cli/supervisor.py", "import cli.programs", "Inside cli"),
    ("peft_engine/records/lines.py", "import peft_engine.records.build", "No cycles"),
    ("peft_engine/parts/sites.py", "import peft_engine.router", "Inside peft_engine"),
    (
        "peft_engine/tasks/text_generation.py",
        "import peft_engine.tasks.text_classification",
        "No task imports another",
    ),
    ("app/novelty.py", "", "Inside app"),
]


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    shutil.copy(ROOT / "pyproject.toml", folder)
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder


def lint(folder: Path) -> tuple[int, str]:
    """Runs the linter in a folder, whose packages then win over the installed ones."""
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command], cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def test_the_contracts_hold(copied: Path) -> None:
    code, output = lint(copied)
    assert code == 0, output
    assert "0 broken" in output


@pytest.mark.parametrize(("file", "line", "contract"), FORBIDDEN)
def test_a_forbidden_import_breaks_its_contract(
    copied: Path, file: str, line: str, contract: str
) -> None:
    path = copied / file
    before = path.read_text(encoding="utf-8") if path.exists() else None
    path.write_text(f"{before or ''}\n{line}\n", encoding="utf-8")
    try:
        code, output = lint(copied)
    finally:
        path.unlink() if before is None else path.write_text(before, encoding="utf-8")
    assert code == 1, output
    broken = [row for row in output.splitlines() if row.endswith("BROKEN")]
    assert any(contract in row for row in broken), output

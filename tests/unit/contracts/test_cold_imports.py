"""A cold import in a fresh process: what the edges without weights load, and what they never load.

Import contracts read source; only a real import sees what a package's `__init__` drags in.
"""

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "safetensors", "sklearn", "peft")
LIGHT = ("app.main", "cli.main", "core.queue", "core.db", "core.storage", "peft_engine.configs")
RECORDS = ("peft_engine.records", "peft_engine.errors")


@pytest.mark.parametrize("module", [*LIGHT, *RECORDS])
def test_a_cold_import_loads_nothing_heavy(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({HEAVY!r} & sys.modules.keys()))".replace(
        repr(HEAVY), repr(set(HEAVY))
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "package", ["app", "cli", "core", "inference", "peft_engine", "worker", "worker.celery_app"]
)
def test_a_package_loads_no_torch_and_no_optuna_by_itself(package: str) -> None:
    script = f"import sys, {package}; print({{'torch', 'optuna'}} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"

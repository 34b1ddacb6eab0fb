"""Configurations of any shape: each is read or refused with its reasons, and breaks nothing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig as PeftLora

from peft_engine.bases.base import Base
from peft_engine.errors import EngineError
from peft_engine.exchange.importing import ImportOptions, import_adapter, read_base_hint
from tests.engine.exchange.adapterhub.exact_base import write_exact_base
from tests.engine.exchange.conftest import load
from tests.engine.exchange.peers import train_with_peft

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

GOLDEN = Path(__file__).parent / "adapterhub" / "golden"
CONFIG = "adapter_config.json"
SHAPES: tuple[Any, ...] = (None, True, 5, -1, 1e308, "x", [], [5], [[0, 1]], {}, {"query": "x"})


def is_refused(base: Base, folder: Path) -> bool:
    """Any other error than one of ours goes through, and fails the test."""
    try:
        read_base_hint(folder)
        import_adapter(base, folder, ImportOptions())
    except EngineError:
        return True
    return False


def try_all(base: Base, folder: Path, *, inside: str | None = None) -> int:
    """Give every option every shape; returns how often that was refused."""
    good = json.loads((folder / CONFIG).read_text())
    refused = 0
    for name in good if inside is None else good[inside]:
        for shape in SHAPES:
            bad = json.loads(json.dumps(good))
            (bad if inside is None else bad[inside])[name] = shape
            (folder / CONFIG).write_text(json.dumps(bad))
            refused += is_refused(base, folder)
    (folder / CONFIG).write_text(json.dumps(good))
    import_adapter(base, folder, ImportOptions())
    return refused


def test_options_of_peft(llama: Base, tmp_path: Path) -> None:
    config = PeftLora(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    train_with_peft(llama, "CAUSAL_LM", config, tmp_path)
    assert try_all(llama, tmp_path) > 100


@pytest.mark.parametrize("name", ["lora", "pfeiffer"])
def test_options_of_adapterhub(name: str, tmp_path: Path) -> None:
    base = load(write_exact_base("bert", tmp_path / "bert"))
    folder = Path(shutil.copytree(GOLDEN / name, tmp_path / name))
    assert try_all(base, folder) > 10
    assert try_all(base, folder, inside="config") > 50

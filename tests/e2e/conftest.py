"""A running service for the tests of this folder, and small cuts of real data."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.base_models import fetched_models_dir
from tests.e2e.stack import MINILM, Stack
from tests.tiny_bases import write_tiny_bert, write_tiny_llama, write_tiny_t5

DATA = Path(__file__).parents[2] / "examples" / "data"
# Enough rows to train for some seconds, few enough labels to learn them in that time.
LABELS = 6
ROWS = {"train": 240, "validation": 30, "test": 40}


@pytest.fixture(scope="session")
def models_dir() -> Path:
    return fetched_models_dir()


@pytest.fixture(scope="session")
def intents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A few intents of banking77 in three files."""
    folder = tmp_path_factory.mktemp("intents")
    source = DATA / "banking77_intent"
    labels: list[str] = []
    files = {}
    for split, rows in ROWS.items():
        lines = (source / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines]
        labels = labels or sorted({record["label"] for record in records})[:LABELS]
        chosen = [record for record in records if record["label"] in labels][:rows]
        path = folder / f"{split}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in chosen), encoding="utf-8")
        files["file" if split == "train" else f"{split}_file"] = path
    return files


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, models_dir: Path) -> Iterator[Stack]:
    """One service for all tests that do not stop it: a real base, and a tiny one of each family."""
    folder = tmp_path_factory.mktemp("bases")
    bases = {
        "tiny-bert": write_tiny_bert(folder / "bert"),
        "tiny-llama": write_tiny_llama(folder / "llama"),
        "tiny-t5": write_tiny_t5(folder / "t5"),
    }
    with Stack(
        # made by the stack itself: those of pytest are closed to others already
        tmp_path_factory.mktemp("stack") / "data",
        models_dir,
        bases={**MINILM, **{name: str(path) for name, path in bases.items()}},
        settings={"TUNERY_DEVICES_PER_JOB": "2"},
    ) as stack:
        yield stack


@pytest.fixture(scope="session")
def dataset_id(stack: Stack, intents: dict[str, Path]) -> str:
    return str(stack.upload(intents, name="intents", task="text-classification")["id"])

"""Bases whose logits are about one, so that fp32 leaves six digits of them behind the point."""

from pathlib import Path

import pytest

from peft_engine.bases.base import Base, load_base
from tests.tiny_bases import (
    write_tiny_bert,
    write_tiny_distilbert,
    write_tiny_gpt2,
    write_tiny_llama,
    write_tiny_roberta,
    write_tiny_t5,
)

SPREAD = 0.08


def load(folder: Path) -> Base:
    return load_base(str(folder), name=folder.name, models_dir=folder.parent)


@pytest.fixture(scope="session")
def calm_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calm")


@pytest.fixture(scope="session")
def bert(calm_dir: Path) -> Base:
    return load(write_tiny_bert(calm_dir / "bert", spread=SPREAD))


@pytest.fixture(scope="session")
def roberta(calm_dir: Path) -> Base:
    return load(write_tiny_roberta(calm_dir / "roberta", spread=SPREAD))


@pytest.fixture(scope="session")
def distilbert(calm_dir: Path) -> Base:
    return load(write_tiny_distilbert(calm_dir / "distilbert", spread=SPREAD))


@pytest.fixture(scope="session")
def llama(calm_dir: Path) -> Base:
    return load(write_tiny_llama(calm_dir / "llama", spread=SPREAD))


@pytest.fixture(scope="session")
def gpt2(calm_dir: Path) -> Base:
    return load(write_tiny_gpt2(calm_dir / "gpt2", spread=SPREAD))


@pytest.fixture(scope="session")
def t5(calm_dir: Path) -> Base:
    return load(write_tiny_t5(calm_dir / "t5", spread=0.5))

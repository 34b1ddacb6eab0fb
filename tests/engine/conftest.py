"""Tiny bases of every family that the engine knows, deltas for them, and heads where they stand.

Everything stands on the device that the engine picks: where there is a GPU, the tests run on it.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from peft_engine.bases.base import Base, load_base
from peft_engine.configs.manifest import HeadSpec, Manifest
from peft_engine.configs.methods import LoraConfig, MethodConfig
from peft_engine.delta import Delta, tensor_name
from peft_engine.methods.table import METHODS
from peft_engine.parts.sites import split_path
from peft_engine.parts.stacks import part_read
from peft_engine.runtime import pick_device
from peft_engine.tasks.protocol import Head
from tests.tiny_bases import (
    write_tiny_bart,
    write_tiny_bert,
    write_tiny_gpt2,
    write_tiny_llama,
    write_tiny_t5,
)

DEVICE = pick_device()

ROUNDING_FACTOR = 1 if DEVICE.type == "cpu" else 10
"""How many times as far rounding may move a number on this device. A GPU adds fp32 products of
another height in another order: gradients through all methods at once moved by 2.5e-5 of the
largest, hidden states of two layers by 4e-6, where a CPU stays within 1e-5 and 1e-6 (measured on an
H200). A fault of routing makes a hundred times that."""


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def base(family: str, request: pytest.FixtureRequest) -> Base:
    """The base that a parameter or a fixture called ``family`` names."""
    found: Base = request.getfixturevalue(family)
    return found


@pytest.fixture(scope="session")
def bert(models_dir: Path) -> Base:
    folder = write_tiny_bert(models_dir / "bert")
    return load_base(str(folder), name="bert", models_dir=models_dir)


@pytest.fixture(scope="session")
def sentence_bert(models_dir: Path) -> Base:
    """A BERT that declares its pooling, as sentence encoders do."""
    folder = write_tiny_bert(models_dir / "sentence-bert", seed=1)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return load_base(str(folder), name="sentence-bert", models_dir=models_dir)


@pytest.fixture(scope="session")
def llama(models_dir: Path) -> Base:
    folder = write_tiny_llama(models_dir / "llama")
    return load_base(str(folder), name="llama", models_dir=models_dir)


@pytest.fixture(scope="session")
def gpt2(models_dir: Path) -> Base:
    folder = write_tiny_gpt2(models_dir / "gpt2")
    return load_base(str(folder), name="gpt2", models_dir=models_dir)


@pytest.fixture(scope="session")
def t5(models_dir: Path) -> Base:
    folder = write_tiny_t5(models_dir / "t5")
    return load_base(str(folder), name="t5", models_dir=models_dir)


@pytest.fixture(scope="session")
def bart(models_dir: Path) -> Base:
    folder = write_tiny_bart(models_dir / "bart")
    return load_base(str(folder), name="bart", models_dir=models_dir)


@pytest.fixture(params=["bert", "llama", "gpt2"])
def any_base(request: pytest.FixtureRequest) -> Base:
    base: Base = request.getfixturevalue(request.param)
    return base


def make_delta(
    base: Base,
    *,
    seed: int,
    config: MethodConfig | tuple[MethodConfig, ...] | None = None,
    labels: tuple[str, ...] | None = None,
    strength: float = 0.3,
) -> Delta:
    """A delta with a strong effect: every tensor is random."""
    config = config or LoraConfig(r=4, alpha=8)
    configs = config if isinstance(config, tuple) else (config,)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for config in configs:
        method = METHODS[config.type]
        part = part_read(base.trunk, has_head=labels is not None)
        for site in method.sites(part, config):
            module = base.trunk.get_submodule(split_path(site.path)[0])
            for name, value in method.create(module, site, config, generator).items():
                noise = torch.randn(value.shape, generator=generator)
                shaken = value + strength * noise if value.is_floating_point() else value
                tensors[tensor_name(site.path, config.type, name)] = shaken
    if labels is not None:
        shape = (len(labels), base.hidden_size)
        tensors["head:weight"] = torch.randn(shape, generator=generator)
        tensors["head:bias"] = torch.randn(len(labels), generator=generator)
    manifest = Manifest(
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        architecture=base.architecture,
        precision=base.precision,
        task="text-classification" if labels else "text-generation",
        methods=configs,
        labels=labels,
        head=HeadSpec(pooling=base.pooling.mode, normalize=True, scale=1.0) if labels else None,
        template_digest=base.template_digest,
        max_length=48,
    )
    return Delta.of(tensors, manifest).to(DEVICE)


def head_on(base: Base, head: Head) -> Head:
    """The head on the device of a base: tasks make theirs on the CPU, and training moves them."""
    return replace(head, tensors={name: t.to(base.device) for name, t in head.tensors.items()})


def random_ids(rows: int, tokens: int, *, seed: int = 0) -> torch.Tensor:
    """(rows, tokens) ids that every tiny vocabulary has, no special ones among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, 20, (rows, tokens), generator=generator).to(DEVICE)

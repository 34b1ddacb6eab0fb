"""Adapters of the real AdapterHub library: read with its logits, and written as it wrote them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peft_engine.bases.base import Base
from peft_engine.configs.methods import BottleneckConfig, Ia3Config, LoraConfig, MethodConfig
from peft_engine.errors import ExchangeError
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.hub_export import write_hub
from tests.engine.exchange.adapterhub.exact_base import write_exact_base
from tests.engine.exchange.adapterhub.send import CASES, PLAIN, delta_of
from tests.engine.exchange.conftest import load
from tests.engine.exchange.peers import bring, our_logits

GOLDEN = Path(__file__).parent / "adapterhub" / "golden"
NAMES = sorted(path.name for path in GOLDEN.iterdir())
CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Base]:
    folder = tmp_path_factory.mktemp("exact")
    families = ("bert", "roberta", "distilbert")
    return {name: load(write_exact_base(name, folder / name)) for name in families}


def send(base: Base, delta: Any, folder: Path) -> list[str | None]:
    found = Findings()
    folder.mkdir()
    write_hub(base, delta, folder, found)
    return [problem.where for problem in found.problems]


@pytest.mark.parametrize("name", NAMES)
def test_golden_adapters_come_and_go(name: str, bases: dict[str, Base], tmp_path: Path) -> None:
    expected = json.loads((GOLDEN / name / "expected.json").read_text())
    base = bases[expected["base"]]
    brought = bring(base, GOLDEN / name)
    theirs = torch.tensor(expected["logits"])
    assert float((our_logits(base, brought.delta).cpu() - theirs).abs().max()) <= 1e-6
    assert send(base, brought.delta, tmp_path / "out") == []
    for file in ("adapter", "model_head"):
        same_tensors(GOLDEN / name, tmp_path / "out", file)
    for file in (CONFIG, "head_config.json"):
        theirs_, ours = (
            json.loads((f / file).read_text()) for f in (GOLDEN / name, tmp_path / "out")
        )
        assert trimmed(ours["config"]) == trimmed(theirs_["config"])


def same_tensors(golden: Path, out: Path, file: str) -> None:
    ours = {
        k.replace("tunery", "golden"): t for k, t in load_file(out / f"{file}.safetensors").items()
    }
    if (golden / f"{file}.safetensors").exists():
        theirs = load_file(golden / f"{file}.safetensors")
    else:
        theirs = torch.load(golden / f"pytorch_{file}.bin", weights_only=True)  # noqa: TID251
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def trimmed(config: dict[str, Any]) -> dict[str, Any]:
    """Without what acts in training alone, or says nothing."""
    silent = {"activation_function"} if config.get("layers") == 1 else set()
    silent |= {"label2id"} if config.get("head_type") == "question_answering" else set()
    return {key: value for key, value in config.items() if key not in silent}


@pytest.mark.parametrize("case", CASES)
def test_ours_come_back(case: str, bases: dict[str, Base], tmp_path: Path) -> None:
    family, config, spec = CASES[case]
    base = bases[family]
    delta = delta_of(base, config, spec)
    assert send(base, delta.to(CPU), tmp_path / "out") == []
    again = bring(base, tmp_path / "out").delta
    assert torch.allclose(our_logits(base, again), our_logits(base, delta), atol=1e-6, rtol=0)
    assert again.manifest.labels == delta.manifest.labels


def test_old_loras_are_read_at_scale_one(bases: dict[str, Base], tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "lora", tmp_path / "old")
    config = json.loads((tmp_path / "old" / CONFIG).read_text())
    config["version"] = "adapters.1.0.1"
    (tmp_path / "old" / CONFIG).write_text(json.dumps(config))
    (method,) = bring(bases["bert"], tmp_path / "old").delta.manifest.methods
    assert isinstance(method, LoraConfig)
    assert (method.r, method.alpha) == (4, 4)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "gating": ("houlsby", {"use_gating": True}, "unsupported_option"),
    "compacter": ("houlsby", {"phm_layer": True}, "unsupported_option"),
    "invertible": ("pfeiffer", {"inv_adapter": "nice"}, "unsupported_option"),
    "own norm": ("pfeiffer", {"ln_before": True}, "unsupported_option"),
    "residual": ("houlsby", {"residual_before_ln": False}, "unsupported_option"),
    "activation": ("houlsby", {"non_linearity": "mish"}, "unsupported_option"),
    "later option": ("houlsby", {"of_a_later_version": 1}, "unsupported_option"),
    "layer left out": ("houlsby", {"leave_out": [0]}, "unused_tensor"),
    "reft": ("houlsby", {"architecture": "reft"}, "unsupported_kind"),
    "union": ("houlsby", {"architecture": "union", "configs": []}, "unsupported_kind"),
    "vera": ("lora", {"vera_d": 0.1}, "unsupported_option"),
    "more matrices": ("lora", {"attn_matrices": ["q", "k", "v"]}, "missing_tensor"),
    "another rank": ("lora", {"r": 2}, "wrong_shape"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_place(case: str, bases: dict[str, Base], tmp_path: Path) -> None:
    name, change, code = REFUSED[case]
    shutil.copytree(GOLDEN / name, tmp_path / "in")
    config = json.loads((tmp_path / "in" / CONFIG).read_text())
    config["config"] |= change
    (tmp_path / "in" / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ExchangeError) as caught:
        bring(bases["bert"], tmp_path / "in")
    assert code in {problem.code for problem in caught.value.problems}


def test_factors_before_the_activation(bases: dict[str, Base], tmp_path: Path) -> None:
    """(IA)³ of AdapterHub scales the FFN where ours does not; keys and values are the same."""
    options = {"architecture": "lora", "composition_mode": "scale", "r": 1, "alpha": 1}
    options |= {"attn_matrices": ["k", "v"], "intermediate_lora": True}
    shutil.copytree(GOLDEN / "houlsby", tmp_path / "in")
    config = json.loads((tmp_path / "in" / CONFIG).read_text())
    config |= {"config": options}
    (tmp_path / "in" / CONFIG).write_text(json.dumps(config))
    tensors = {
        f"bert.encoder.layer.{n}.{path}.loras.golden.lora_B": torch.full((width, 1), 1.5)
        for n in (0, 1)
        for path, width in (
            ("attention.self.key", 32),
            ("attention.self.value", 32),
            ("intermediate.dense", 48),
        )
    }
    save_file(tensors, tmp_path / "in" / WEIGHTS)
    with pytest.raises(ExchangeError) as caught:
        bring(bases["bert"], tmp_path / "in")
    places = [f"encoder.layer.{n}.intermediate.dense" for n in (0, 1)]
    assert [problem.where for problem in caught.value.problems] == places
    config["config"]["intermediate_lora"] = False
    (tmp_path / "in" / CONFIG).write_text(json.dumps(config))
    save_file({k: t for k, t in tensors.items() if "self" in k}, tmp_path / "in" / WEIGHTS)
    assert bring(bases["bert"], tmp_path / "in").delta.manifest.methods == (Ia3Config(),)


@pytest.mark.parametrize(
    ("config", "places"),
    [
        (Ia3Config(), ["methods"]),
        (LoraConfig(r=2, dora=True, targets=("query",)), ["lora.dora"]),
        (LoraConfig(r=2, targets=("query", "key"), rank_pattern={"key": 3}), ["lora.r"]),
        (
            LoraConfig(r=2, targets=("attention.output.dense",)),
            [f"encoder.layer.{n}.attention.output.dense" for n in (0, 1)],
        ),
        (
            LoraConfig(r=2, targets=("layer.0.attention.self.query", "key")),
            ["encoder.layer.1.attention.self.query"],
        ),
    ],
)
def test_deltas_without_a_place(
    config: MethodConfig, places: list[str], bases: dict[str, Base], tmp_path: Path
) -> None:
    delta = delta_of(bases["bert"], config, PLAIN)
    assert send(bases["bert"], delta.to(CPU), tmp_path / "out") == places


def test_other_families_are_not_exchanged(llama: Base, bert: Base, tmp_path: Path) -> None:
    delta = delta_of(llama, BottleneckConfig(size=2), PLAIN)
    assert send(llama, delta.to(CPU), tmp_path / "out") == ["base_model"]
    with pytest.raises(ExchangeError) as caught:
        bring(llama, GOLDEN / "houlsby")
    assert {problem.where for problem in caught.value.problems} >= {"model_type"}

"""Whole models and GGUF files out of a delta: the same function, read back by others."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import AnyHeadSpec, HeadSpec, SpanHeadSpec, TagHeadSpec
from peft_engine.configs.methods import (
    BitfitConfig,
    BottleneckConfig,
    FullConfig,
    Ia3Config,
    LastLayers,
    LoraConfig,
    MaskConfig,
    MethodConfig,
    NormConfig,
    PrefixConfig,
)
from peft_engine.delta import Delta
from peft_engine.errors import ExchangeError
from peft_engine.exchange.exporting import export_adapter
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.gguf_lora import write_gguf
from peft_engine.exchange.merged import write_merged
from tests.engine.conftest import make_delta
from tests.engine.exchange.peers import LABELS, foreign_logits, our_logits

ATOL = 1e-5
"""A weight is rounded once after the addition, and every product with it."""

MERGED: dict[str, tuple[MethodConfig, ...]] = {
    "lora": (LoraConfig(r=4, layers=LastLayers(last=1)),),
    "dora and norms": (LoraConfig(r=2, dora=True), NormConfig()),
    "ia3": (Ia3Config(),),
    "mask": (MaskConfig(selection="random", density=0.05),),
    "full": (FullConfig(),),
}


def merge(base: Base, delta: Delta, folder: Path) -> list[str | None]:
    folder.mkdir()
    found = Findings()
    write_merged(base, delta.to(torch.device("cpu")), folder, found)
    return [problem.where for problem in found.problems]


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("kind", MERGED)
def test_merged_models_write_as_their_adapters(
    family: str, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base: Base = request.getfixturevalue(family)
    delta = make_delta(base, seed=1, config=MERGED[kind], strength=0.05)
    problems = merge(base, delta, tmp_path / "out")
    if family == "t5" and kind == "full":
        assert problems == ["embeddings"]
        return
    assert problems == []
    classes = {"t5": AutoModelForSeq2SeqLM}
    model = classes.get(family, AutoModelForCausalLM).from_pretrained(tmp_path / "out").eval()
    theirs = foreign_logits(model.to(base.device), base)
    assert torch.allclose(our_logits(base, delta), theirs, atol=ATOL, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("my card")["input_ids"]


HEADS: dict[str, tuple[str, AnyHeadSpec, type]] = {
    "classes": (
        "roberta",
        HeadSpec(pooling="cls", normalize=False, scale=0.5, hidden="tanh"),
        AutoModelForSequenceClassification,
    ),
    "several labels": (
        "distilbert",
        HeadSpec(kind="multi-label", pooling="cls", normalize=False, scale=1.0, hidden="relu"),
        AutoModelForSequenceClassification,
    ),
    "tags": ("bert", TagHeadSpec(token="first", scale=0.5), AutoModelForTokenClassification),
    "answers": ("bert", SpanHeadSpec(scale=1.0, abstains=True), AutoModelForQuestionAnswering),
}


@pytest.mark.parametrize("case", HEADS)
def test_merged_models_have_the_head(
    case: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    family, spec, kind = HEADS[case]
    base: Base = request.getfixturevalue(family)
    labels = {"tags": ("O", "B-x", "I-x"), "answers": ("start", "end")}.get(case, LABELS)
    delta = make_delta(base, seed=1, labels=labels, strength=0.05)
    hidden = {"head:hidden_weight": torch.eye(32) * 0.3, "head:hidden_bias": torch.ones(32) * 0.1}
    tensors = dict(delta.tensors) | (hidden if getattr(spec, "hidden", None) else {})
    update = {"head": spec, "labels": None if case == "answers" else labels}
    delta = Delta.of(tensors, delta.manifest.model_copy(update=update))
    assert merge(base, delta, tmp_path / "out") == []
    model = kind.from_pretrained(tmp_path / "out").eval().to(base.device)  # type: ignore[attr-defined]
    theirs = foreign_logits(model, base)
    assert torch.allclose(our_logits(base, delta), theirs, atol=ATOL, rtol=1e-5)
    if case != "answers":
        assert model.config.id2label == dict(enumerate(labels))
    if case == "several labels":
        assert model.config.problem_type == "multi_label_classification"


@pytest.mark.parametrize(
    ("config", "places"),
    [
        ((BottleneckConfig(size=2),), ["bottleneck"]),
        ((PrefixConfig(length=2),), ["prefix"]),
        ((LoraConfig(r=2), Ia3Config()), ["methods"]),
        (
            (BitfitConfig(norms=False, layers=(1,)),),
            [
                f"layers.1.{n}"
                for n in (
                    "self_attn.q_proj",
                    "self_attn.k_proj",
                    "self_attn.o_proj",
                    "mlp.gate_proj",
                    "mlp.up_proj",
                    "mlp.down_proj",
                )
            ],
        ),
    ],
)
def test_what_weights_cannot_hold(
    config: tuple[MethodConfig, ...], places: list[str], llama: Base, tmp_path: Path
) -> None:
    delta = make_delta(llama, seed=1, config=config, strength=0.2)
    assert merge(llama, delta, tmp_path / "out") == places
    assert not list((tmp_path / "out").iterdir())


def test_derived_bases_are_not_merged(llama: Base, tmp_path: Path) -> None:
    derived = replace(llama, info=replace(llama.info, parent_fingerprint="sha256:x"))
    delta = make_delta(llama, seed=1)
    assert merge(derived, delta, tmp_path / "out") == ["base_model"]


# ---- GGUF ----


def test_gguf_holds_the_products_in_the_order_of_llama_cpp(llama: Base, tmp_path: Path) -> None:
    config = LoraConfig(r=4, alpha=6, rank_pattern={"q_proj": 2}, alpha_pattern={"up_proj": 3.0})
    delta, found = make_delta(llama, seed=1, config=config), Findings()
    write_gguf(llama, delta.to(torch.device("cpu")), tmp_path / "a.gguf", found)
    assert found.problems == []
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    tensors = {tensor.name: torch.from_numpy(np.array(tensor.data)) for tensor in reader.tensors}
    at = delta.at_sites()
    assert len(tensors) == 2 * len(at)
    order = LlamaTensorProcessor()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for path, methods in at.items():
        name = f"{names.get_name(f'model.{path}')}.weight"
        down, up = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        product = fields["adapter.lora.alpha"] / len(down) * (up @ down)
        heads = {"q_proj": 4, "k_proj": 2}.get(path.rpartition(".")[2])
        if heads is not None:
            # how transformers reads a weight of llama.cpp
            product = torch.from_numpy(
                order._reverse_permute_weights(product.numpy(), heads, heads)
            )
        own = methods["lora"]
        wanted = config.scale_at(path) * (own["B"] @ own["A"])
        assert torch.allclose(product, wanted.cpu(), atol=1e-6)


@pytest.mark.parametrize(
    ("family", "config", "labels", "places"),
    [
        ("gpt2", LoraConfig(r=2), None, ["base_model"]),
        ("bert", LoraConfig(r=2), LABELS, ["base_model", "head"]),
        ("llama", LoraConfig(r=2, dora=True), None, ["methods"]),
        ("llama", NormConfig(), LABELS, ["head", "methods"]),
    ],
)
def test_what_gguf_cannot_hold(
    family: str,
    config: MethodConfig,
    labels: tuple[str, ...] | None,
    places: list[str],
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    base: Base = request.getfixturevalue(family)
    delta = make_delta(base, seed=1, config=config, labels=labels)
    with pytest.raises(ExchangeError) as caught:
        export_adapter(base, delta, "gguf", tmp_path)
    assert caught.value.code == "export_not_possible"
    assert [problem.where for problem in caught.value.problems] == places


def test_the_same_delta_gives_the_same_file(llama: Base, tmp_path: Path) -> None:
    delta = make_delta(llama, seed=1)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        export_adapter(llama, delta, "peft-portable", tmp_path / name)
    first, second = ((tmp_path / name / "adapter.zip").read_bytes() for name in ("a", "b"))
    assert first == second

"""Adapters of the real PEFT become ours and ours become theirs: the same logits to 1e-6."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from peft import (
    BeftConfig,
    IA3Config,
    LNTuningConfig,
    PrefixTuningConfig,
    ShiraConfig,
)
from peft import LoraConfig as PeftLora

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import HeadSpec, SpanHeadSpec, TagHeadSpec, ValueHeadSpec
from peft_engine.configs.methods import (
    BitfitConfig,
    Ia3Config,
    LastLayers,
    LoraConfig,
    MaskConfig,
    MethodConfig,
    NormConfig,
    PrefixConfig,
)
from peft_engine.delta import Delta, load_delta, save_delta
from peft_engine.exchange.exporting import export_adapter
from tests.engine.conftest import make_delta
from tests.engine.exchange.peers import (
    LABELS,
    TAGS,
    bring,
    foreign_inputs,
    foreign_logits,
    foreign_model,
    load_with_peft,
    our_hidden,
    our_logits,
    real,
    send,
    train_with_peft,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

ATOL = 1e-6
"""Of logits that are about one."""

FAMILIES = ("bert", "roberta", "distilbert", "llama", "gpt2", "t5")
QUERY = {"bert": "query", "roberta": "query", "distilbert": "q_lin", "llama": "q_proj"}
QUERY |= {"gpt2": "c_attn", "t5": "q"}
FFN = {"bert": "intermediate.dense", "roberta": "intermediate.dense", "distilbert": "lin1"}
FFN |= {"llama": "up_proj", "gpt2": "c_fc", "t5": "wi"}
NORM = {"bert": "LayerNorm", "roberta": "LayerNorm", "distilbert": "output_layer_norm"}
NORM |= {"llama": "input_layernorm", "gpt2": "ln_1", "t5": "layer_norm"}
GENERATE = {"llama": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def task_of(family: str) -> str:
    return GENERATE.get(family, "SEQ_CLS")


def assert_alike(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) <= ATOL


THEIRS: dict[str, Callable[[str], Any]] = {
    "lora": lambda f: PeftLora(task_type=task_of(f), r=3, target_modules=[QUERY[f]]),
    "lora patterns": lambda f: PeftLora(
        task_type=task_of(f),
        r=3,
        lora_alpha=5,
        target_modules=[QUERY[f], FFN[f]],
        rank_pattern={QUERY[f]: 2},
        alpha_pattern={FFN[f]: 7},
        use_rslora=True,
    ),
    "dora": lambda f: PeftLora(
        task_type=task_of(f), r=3, use_dora=True, target_modules=[QUERY[f], FFN[f]]
    ),
    "ia3": lambda f: IA3Config(task_type=task_of(f), **ia3_modules(f)),
    "ln tuning": lambda f: LNTuningConfig(task_type=task_of(f), target_modules=[NORM[f]]),
    "shira": lambda f: ShiraConfig(task_type=task_of(f), r=2, target_modules=[QUERY[f], FFN[f]]),
    "beft": lambda f: BeftConfig(task_type=task_of(f), target_modules=[QUERY[f]]),
}
CONV1D_UNKNOWN = {"shira", "beft"}
"""Kinds of PEFT that know no Conv1D, of which GPT-2 is made."""


def ia3_modules(family: str) -> dict[str, Any]:
    """PEFT's own defaults, where it has some."""
    if family != "distilbert":
        return {}
    return {"target_modules": ["k_lin", "v_lin", "lin2"], "feedforward_modules": ["lin2"]}


@pytest.mark.parametrize("kind", THEIRS)
def test_theirs_become_ours(base: Base, family: str, kind: str, tmp_path: Path) -> None:
    if family == "gpt2" and kind in CONV1D_UNKNOWN:
        pytest.skip("PEFT has no such kind for Conv1D")
    model = train_with_peft(base, task_of(family), THEIRS[kind](family), tmp_path)
    theirs = foreign_logits(model, base)
    brought = bring(base, tmp_path)
    assert_alike(our_logits(base, brought.delta), theirs)
    plain = foreign_logits(foreign_model(base, task_of(family)), base)
    assert float((theirs - plain).abs().max()) > 1e3 * ATOL
    stored = load_delta(save_delta(brought.delta))
    assert stored.digest == brought.delta.digest


def ours(base: Base, config: MethodConfig | tuple[MethodConfig, ...]) -> Delta:
    """A delta with a head that transformers has a class for, or none where the base writes."""
    if base.generates:
        return make_delta(base, seed=3, config=config, strength=0.05)
    delta = make_delta(base, seed=3, config=config, labels=LABELS, strength=0.05)
    generator = torch.Generator().manual_seed(1)
    hidden = {
        "head:hidden_weight": torch.randn(32, 32, generator=generator) * 0.2,
        "head:hidden_bias": torch.randn(32, generator=generator) * 0.2,
    }
    weight = delta.tensors["head:weight"] * 0.2
    act = "relu" if base.info.model_type == "distilbert" else "tanh"
    spec = HeadSpec(pooling="cls", normalize=False, scale=0.5, hidden=act)
    manifest = delta.manifest.model_copy(update={"head": spec})
    return Delta.of({**delta.tensors, **hidden, "head:weight": weight}, manifest)


def suffixes(family: str) -> tuple[str, ...]:
    return (QUERY[family], FFN[family])


OURS: dict[str, Callable[[str], MethodConfig | tuple[MethodConfig, ...]]] = {
    "lora": lambda _: LoraConfig(r=4, alpha=8),
    "lora patterns": lambda f: LoraConfig(
        r=4,
        alpha=3,
        rslora=True,
        targets=suffixes(f),
        rank_pattern={QUERY[f]: 2},
        alpha_pattern={FFN[f]: 5.5},
        layers=LastLayers(last=1),
    ),
    "dora": lambda _: LoraConfig(r=2, alpha=8, dora=True),
    "ia3": lambda _: Ia3Config(),
    "norm": lambda _: NormConfig(),
    "mask": lambda f: MaskConfig(selection="random", density=0.05, targets=suffixes(f)),
    # one r for all: the smaller matrices are filled up above the half that a mask may have
    "thick mask": lambda f: MaskConfig(selection="random", density=0.45, targets=suffixes(f)),
    "rows": lambda f: MaskConfig(
        selection="magnitude", pattern="neuron", density=0.07, targets=(FFN[f],)
    ),
    "new biases": lambda _: BitfitConfig(norms=False, biases="all"),
    "all biases": lambda _: BitfitConfig(biases="existing"),
    "lora and biases": lambda _: (LoraConfig(r=2), BitfitConfig(biases="existing")),
}
NO_PLACE = {
    *(("gpt2", kind) for kind in ("mask", "thick mask", "rows")),  # Conv1D
    ("gpt2", "new biases"),
    *((f, kind) for f in ("llama", "t5") for kind in ("all biases", "lora and biases")),
}


@pytest.mark.parametrize("kind", OURS)
def test_ours_become_theirs_and_come_back(
    base: Base, family: str, kind: str, tmp_path: Path
) -> None:
    if (family, kind) in NO_PLACE:
        pytest.skip("the base has no such biases, or PEFT no such kind for Conv1D")
    delta = ours(base, OURS[kind](family))
    found = send(base, delta, tmp_path / "out")
    assert found.problems == []
    theirs = foreign_logits(load_with_peft(base, task_of(family), tmp_path / "out"), base)
    assert_alike(our_logits(base, delta), theirs)
    again = bring(base, tmp_path / "out").delta
    assert_alike(our_logits(base, again), theirs)
    assert again.manifest.labels == delta.manifest.labels
    assert again.manifest.max_length == delta.manifest.max_length


@pytest.mark.parametrize("options", [{}, {"layers": LastLayers(last=1)}, {"rslora": True}])
def test_the_portable_form_has_one_rank_and_every_layer(
    base: Base, family: str, options: dict[str, Any], tmp_path: Path
) -> None:
    delta = make_delta(
        base,
        seed=4,
        strength=0.05,
        config=LoraConfig(
            r=4, targets=suffixes(family), rank_pattern={QUERY[family]: 2}, **options
        ),
    )
    if base.architecture == "encoder":
        pytest.skip("without a head there is nothing to compare")
    assert send(base, delta, tmp_path / "out", portable=True).problems == []
    model = load_with_peft(base, task_of(family), tmp_path / "out")
    assert_alike(our_logits(base, delta), foreign_logits(model, base))
    config = model.peft_config["default"]  # type: ignore[index]
    assert (config.r, config.lora_alpha) == (4, 4)
    assert not config.rank_pattern
    assert not config.use_rslora


HEADS = {
    "TOKEN_CLS": (("bert", "roberta", "distilbert", "llama", "gpt2"), {"labels": TAGS}),
    "QUESTION_ANS": (("bert", "roberta", "distilbert"), {}),
    "SEQ_CLS": (("llama", "gpt2"), {"labels": LABELS}),
}


@pytest.mark.parametrize(
    ("task_type", "family"), [(task, f) for task, (families, _) in HEADS.items() for f in families]
)
def test_heads_come_and_go(
    task_type: str, family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base: Base = request.getfixturevalue(family)
    peft_config = PeftLora(task_type=task_type, r=2, target_modules=[QUERY[family]])
    theirs = foreign_logits(train_with_peft(base, task_type, peft_config, tmp_path / "a"), base)
    delta = bring(base, tmp_path / "a", **HEADS[task_type][1]).delta
    assert_alike(our_logits(base, delta), theirs)
    assert send(base, delta, tmp_path / "b").problems == []
    again = load_with_peft(base, task_type, tmp_path / "b")
    assert_alike(foreign_logits(again, base), theirs)
    assert isinstance(delta.manifest.head, HeadSpec | TagHeadSpec | SpanHeadSpec)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_regression_heads_come_and_go(base: Base, family: str, tmp_path: Path) -> None:
    peft_config = PeftLora(task_type="SEQ_CLS", r=2, target_modules=[QUERY[family]])
    model = train_with_peft(base, "SEQ_CLS", peft_config, tmp_path / "a", labels=1)
    theirs = foreign_logits(model, base)
    delta = bring(base, tmp_path / "a").delta
    assert isinstance(delta.manifest.head, ValueHeadSpec)
    assert_alike(our_logits(base, delta), theirs)
    wider = delta.manifest.head.model_copy(update={"spread": 2.5})
    delta = Delta.of(delta.tensors, delta.manifest.model_copy(update={"head": wider}))
    assert send(base, delta, tmp_path / "b").problems == []
    again = load_with_peft(base, "SEQ_CLS", tmp_path / "b", labels=1)
    assert_alike(foreign_logits(again, base), theirs * 2.5)
    ours = delta.manifest.head.model_copy(update={"normalize": True})  # as heads are trained here
    delta = Delta.of(delta.tensors, delta.manifest.model_copy(update={"head": ours}))
    problems = send(base, delta, tmp_path / "c").problems
    assert [problem.where for problem in problems] == ["head.normalize"]


@pytest.mark.parametrize("task_type", ["CAUSAL_LM", "SEQ_CLS"])
def test_prefixes_are_turned(llama: Base, task_type: str, tmp_path: Path) -> None:
    config = PrefixTuningConfig(task_type=task_type, num_virtual_tokens=5)
    model = train_with_peft(llama, task_type, config, tmp_path / "a")
    theirs = foreign_logits(model, llama)
    delta = bring(llama, tmp_path / "a").delta
    assert delta.manifest.methods == (PrefixConfig(length=5, gate="none"),)
    assert_alike(our_logits(llama, delta), theirs)
    assert send(llama, delta, tmp_path / "b").problems == []
    again = load_with_peft(llama, task_type, tmp_path / "b")
    assert_alike(foreign_logits(again, llama), theirs)


@pytest.mark.parametrize("form", ["peft", "peft-portable"])
def test_a_head_without_a_place_may_be_left_out(form: Any, bert: Base, tmp_path: Path) -> None:
    delta = make_delta(bert, seed=1, labels=LABELS, strength=0.05)
    exported = export_adapter(bert, delta, form, tmp_path, head="leave-out")
    with ZipFile(exported.path) as archive:
        archive.extractall(tmp_path / "out")
    model = load_with_peft(bert, "FEATURE_EXTRACTION", tmp_path / "out")
    with torch.no_grad():
        theirs = real(model(**foreign_inputs(bert)).last_hidden_state)
    assert_alike(real(our_hidden(bert, delta)), theirs)

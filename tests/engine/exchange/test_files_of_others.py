"""Files that are damaged, contradict themselves or hold more than is known: all is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import BeftConfig, IA3Config, LNTuningConfig, PrefixTuningConfig, ShiraConfig
from peft import LoraConfig as PeftLora
from safetensors.torch import load_file, save_file
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import AnyHeadSpec, HeadSpec, TagHeadSpec
from peft_engine.configs.methods import LoraConfig
from peft_engine.errors import ExchangeError
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.folder import MAX_JSON_BYTES
from peft_engine.exchange.hub_export import write_hub
from peft_engine.exchange.peft_export import write_peft
from tests.engine.exchange.adapterhub.exact_base import write_exact_base
from tests.engine.exchange.adapterhub.send import delta_of
from tests.engine.exchange.conftest import load
from tests.engine.exchange.peers import bring, our_logits, train_with_peft

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LAYER = "base_model.model.model.layers.0"
GOLDEN = Path(__file__).parent / "adapterhub" / "golden"

Tensors = dict[str, Tensor]
Reasons = set[tuple[str, str | None]]

KINDS: dict[str, Any] = {
    "lora": PeftLora(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]),
    "ia3": IA3Config(task_type="CAUSAL_LM"),
    "norms": LNTuningConfig(task_type="CAUSAL_LM", target_modules=["input_layernorm"]),
    "shira": ShiraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]),
    "beft": BeftConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


@pytest.fixture(scope="module")
def made(llama: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good adapter of each kind, which the tests spoil."""
    root = tmp_path_factory.mktemp("made")
    for kind, config in KINDS.items():
        train_with_peft(llama, "CAUSAL_LM", config, root / kind)
    return root


@pytest.fixture(scope="module")
def bert_of_hub(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return load(write_exact_base("bert", tmp_path_factory.mktemp("exact") / "bert"))


def reasons(base: Base, folder: Path, **options: Any) -> Reasons:
    with pytest.raises(ExchangeError) as caught:
        bring(base, folder, **options)
    assert caught.value.code == "adapter_invalid"
    return {(problem.code, problem.where) for problem in caught.value.problems}


# ---- files that cannot be read ----------------------------------------------------------------


def a_graph_of_numbers(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    values = {"sparse": torch.eye(2).to_sparse(), "complex": torch.ones(2, dtype=torch.complex64)}
    torch.save(values | {"flags": torch.ones(2, dtype=torch.bool)}, folder / "adapter_model.bin")


def a_list(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save([torch.ones(2)], folder / "adapter_model.bin")


UNREADABLE: dict[str, tuple[Callable[[Path], Any], Reasons]] = {
    "no JSON": (lambda f: (f / CONFIG).write_text("{"), {("bad_config", CONFIG)}),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), {("bad_config", CONFIG)}),
    "too large": (
        lambda f: (f / CONFIG).write_bytes(b" " * (MAX_JSON_BYTES + 1)),
        {("bad_config", CONFIG)},
    ),
    "of nobody": (lambda f: (f / CONFIG).write_text("{}"), {("unsupported_kind", CONFIG)}),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), {("missing_file", None)}),
    "cut": (lambda f: (f / WEIGHTS).write_bytes(b"\x10" * 12), {("bad_tensors", WEIGHTS)}),
    "a list of tensors": (a_list, {("bad_tensors", "adapter_model.bin")}),
    "other types": (
        a_graph_of_numbers,
        {("bad_tensors", "sparse"), ("bad_tensors", "complex"), ("bad_tensors", "flags")},
    ),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_what_cannot_be_read(case: str, llama: Base, made: Path, tmp_path: Path) -> None:
    spoil, expected = UNREADABLE[case]
    shutil.copytree(made / "lora", tmp_path / "in")
    spoil(tmp_path / "in")
    assert reasons(llama, tmp_path / "in") >= expected


# ---- tensors of PEFT --------------------------------------------------------------------------


def change(name: str, value: Tensor | Callable[[Tensor], Tensor] | None) -> Callable[..., None]:
    """Put in, change or take out one tensor."""

    def spoil(tensors: Tensors) -> None:
        if value is None:
            del tensors[name]
        else:
            new = value if isinstance(value, Tensor) else value(tensors[name])
            tensors[name] = new.contiguous()

    return spoil


def lora_at(module: str) -> Callable[..., None]:
    def spoil(tensors: Tensors) -> None:
        for letter in "AB":
            tensors[f"{module}.lora_{letter}.weight"] = torch.ones(2, 2)

    return spoil


Q, NORM = f"{LAYER}.self_attn.q_proj", f"{LAYER}.input_layernorm"
OWN_Q, OWN_NORM = "layers.0.self_attn.q_proj", "layers.0.input_layernorm"
SPOILED: dict[str, tuple[str, Callable[..., None], Reasons]] = {
    "no such module": (
        "lora",
        lora_at(f"{LAYER}.self_attn.z_proj"),
        {("unsupported_site", "model.layers.0.self_attn.z_proj")},
    ),
    "a norm": ("lora", lora_at(NORM), {("unsupported_site", OWN_NORM)}),
    "two values": (
        "lora",
        change(f"{Q}.lora_A.weight".removeprefix("base_model.model."), torch.ones(2, 32)),
        {("unused_tensor", f"{Q}.lora_A.weight".removeprefix("base_model.model."))},
    ),
    "factors of queries": (
        "ia3",
        change(f"{Q}.ia3_l", torch.ones(32, 1)),
        {("unsupported_site", OWN_Q)},
    ),
    "factors of the other side": (
        "ia3",
        change(f"{LAYER}.self_attn.k_proj.ia3_l", lambda own: own.T),
        {("wrong_shape", "layers.0.self_attn.k_proj")},
    ),
    "too few factors": (
        "ia3",
        change(f"{LAYER}.self_attn.k_proj.ia3_l", lambda own: own[1:]),
        {("wrong_shape", "layers.0.self_attn.k_proj")},
    ),
    "no norm": (
        "norms",
        change(f"{Q}.ln_tuning_layers.weight", torch.ones(32)),
        {("unsupported_site", OWN_Q)},
    ),
    "a short norm": (
        "norms",
        change(f"{NORM}.ln_tuning_layers.weight", torch.ones(3)),
        {("wrong_shape", f"{OWN_NORM}:norm.weight")},
    ),
    "a short bias": (
        "beft",
        change(f"{Q}.beft_bias", torch.ones(1, 3)),
        {("wrong_shape", OWN_Q)},
    ),
    "a bias of a norm": (
        "beft",
        change(f"{NORM}.beft_bias", torch.ones(1, 32)),
        {("unsupported_site", OWN_NORM)},
    ),
    "values without places": (
        "shira",
        change(f"{Q}.shira_indices", None),
        {("missing_tensor", f"{OWN_Q}.shira_indices")},
    ),
    "more places than values": (
        "shira",
        change(f"{Q}.shira_weight", lambda own: own[1:]),
        {("wrong_shape", OWN_Q)},
    ),
    "places outside": (
        "shira",
        change(f"{Q}.shira_indices", lambda own: own + 1000),
        {("wrong_shape", OWN_Q)},
    ),
    "a factor of no dimension": (
        "ia3",
        change(f"{LAYER}.self_attn.k_proj.ia3_l", torch.tensor(1.0)),
        {("bad_tensors", f"{LAYER}.self_attn.k_proj.ia3_l")},
    ),
    "a prefix of no dimension": (
        "prefix",
        change("prompt_embeddings", torch.tensor(1.0)),
        {("bad_tensors", "prompt_embeddings")},
    ),
    "a longer prefix": (
        "prefix",
        change("prompt_embeddings", lambda own: torch.cat([own, own])),
        {("wrong_shape", "prompt_embeddings")},
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_tensors_without_a_place(case: str, llama: Base, made: Path, tmp_path: Path) -> None:
    kind, spoil, expected = SPOILED[case]
    shutil.copytree(made / kind, tmp_path / "in")
    tensors = load_file(tmp_path / "in" / WEIGHTS)
    spoil(tensors)
    save_file(tensors, tmp_path / "in" / WEIGHTS)
    assert reasons(llama, tmp_path / "in") >= expected


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [
        ("task_type", "FEATURE_EXTRACTION", "unsupported_task"),
        ("task_type", "QUESTION_ANS", "unsupported_head"),
        ("rank_pattern", {"(": 2}, "unsupported_option"),
        ("target_modules", [1], "unsupported_option"),
        ("alpha_pattern", {"q_proj": "much"}, "unsupported_option"),
    ],
)
def test_options_without_a_meaning(
    option: str, value: Any, code: str, llama: Base, made: Path, tmp_path: Path
) -> None:
    shutil.copytree(made / "lora", tmp_path / "in")
    config = json.loads((tmp_path / "in" / CONFIG).read_text()) | {option: value}
    (tmp_path / "in" / CONFIG).write_text(json.dumps(config))
    assert code in {code for code, _ in reasons(llama, tmp_path / "in")}


def test_an_encoder_needs_a_head(bert: Base, tmp_path: Path) -> None:
    config = PeftLora(task_type="FEATURE_EXTRACTION", r=2, target_modules=["query"])
    train_with_peft(bert, "FEATURE_EXTRACTION", config, tmp_path)
    assert ("unsupported_task", "task_type") in reasons(bert, tmp_path)


# ---- AdapterHub -------------------------------------------------------------------------------

HUB: dict[str, tuple[str, str, dict[str, Any], Reasons]] = {
    "another family": (
        "houlsby",
        "",
        {"model_type": "roberta", "hidden_size": 64},
        {("another_base", "model_type"), ("another_base", "hidden_size")},
    ),
    "no options": ("houlsby", "", {"config": [1]}, {("bad_config", "config")}),
    "another name": (
        "houlsby",
        "",
        {"name": "other"},
        {("unused_tensor", "bert.encoder.layer.0.output.adapters.golden.adapter_down.0.weight")},
    ),
    "layers that are not there": (
        "houlsby",
        "config",
        {"leave_out": [7]},
        {("unsupported_option", "leave_out")},
    ),
    "no layer": ("houlsby", "config", {"leave_out": [0, 1]}, {("unsupported_option", "leave_out")}),
    "another composition": (
        "lora",
        "config",
        {"composition_mode": "concat"},
        {("unsupported_option", "composition_mode")},
    ),
    "rank of words": ("lora", "config", {"r": "many"}, {("unsupported_option", "r")}),
    "no place": (
        "lora",
        "config",
        {"attn_matrices": [], "intermediate_lora": False, "output_lora": False},
        {("missing_tensor", "attn_matrices")},
    ),
}


@pytest.mark.parametrize("case", HUB)
def test_configurations_of_the_hub(case: str, bert_of_hub: Base, tmp_path: Path) -> None:
    name, part, changes, expected = HUB[case]
    shutil.copytree(GOLDEN / name, tmp_path / "in")
    config = json.loads((tmp_path / "in" / CONFIG).read_text())
    (config[part] if part else config).update(changes)
    (tmp_path / "in" / CONFIG).write_text(json.dumps(config))
    assert reasons(bert_of_hub, tmp_path / "in") >= expected


HUB_HEADS: dict[str, tuple[str, dict[str, Any], str]] = {
    "kind": ("houlsby", {"head_type": "causal_lm"}, "head_type"),
    "pooler": ("houlsby", {"use_pooler": True}, "use_pooler"),
    "layers": ("houlsby", {"layers": 3}, "layers"),
    "activation": ("houlsby", {"activation_function": "mish"}, "activation_function"),
    "a layer over tokens": ("houlsby", {"head_type": "tagging"}, "layers"),
}


@pytest.mark.parametrize("case", HUB_HEADS)
def test_heads_of_the_hub(case: str, bert_of_hub: Base, tmp_path: Path) -> None:
    name, changes, where = HUB_HEADS[case]
    shutil.copytree(GOLDEN / name, tmp_path / "in")
    stated = json.loads((tmp_path / "in" / "head_config.json").read_text())
    stated["config"] |= changes
    (tmp_path / "in" / "head_config.json").write_text(json.dumps(stated))
    assert ("unsupported_head", where) in reasons(bert_of_hub, tmp_path / "in")


def test_an_adapter_of_the_hub_without_its_head(bert_of_hub: Base, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "houlsby", tmp_path / "in")
    (tmp_path / "in" / "head_config.json").unlink()
    assert ("missing_file", "head_config.json") in reasons(bert_of_hub, tmp_path / "in")


HEADS: dict[str, tuple[AnyHeadSpec, set[str]]] = {
    "mean at unit length": (
        HeadSpec(pooling="mean", normalize=True, scale=1.0),
        {"head.pooling", "head.normalize"},
    ),
    "threshold": (
        HeadSpec(kind="multi-label", pooling="cls", normalize=False, scale=1.0, threshold=0.3),
        {"head.threshold"},
    ),
    "words": (
        TagHeadSpec(
            token="last",
            scale=1.0,
            spelling=True,
            words=8,
            transitions=True,
            outside_penalty=0.5,
        ),
        {"head.spelling", "head.words", "head.transitions", "head.outside_penalty"},
    ),
}


@pytest.mark.parametrize("form", ["hub", "peft"])
@pytest.mark.parametrize("case", HEADS)
def test_heads_that_others_cannot_compute(
    case: str, form: str, bert_of_hub: Base, tmp_path: Path
) -> None:
    spec, expected = HEADS[case]
    delta = delta_of(bert_of_hub, LoraConfig(r=2, targets=("query",)), spec).to(torch.device("cpu"))
    found = Findings()
    if form == "hub":
        write_hub(bert_of_hub, delta, tmp_path, found)
    else:
        write_peft(bert_of_hub, delta, tmp_path, found, portable=False)
    places = {problem.where for problem in found.problems}
    assert places >= expected
    assert ("head.token" in places) == (case == "words" and form == "hub")
    assert not list(tmp_path.iterdir())


# ---- what comes in by another way -------------------------------------------------------------


def test_more_ranks_than_patterns_hold(
    llama: Base, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks and factors of single modules go into the matrices: the same function."""
    patterns = {"rank_pattern": {"0.self_attn.q_proj": 3}, "alpha_pattern": {"v_proj": 5}}
    config = PeftLora(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], use_rslora=True, **patterns
    )
    train_with_peft(llama, "CAUSAL_LM", config, tmp_path)
    as_told = bring(llama, tmp_path).delta
    monkeypatch.setattr("peft_engine.exchange.peft_lora._MAX_PATTERNS", 0)
    folded = bring(llama, tmp_path).delta
    (method,) = folded.manifest.methods
    assert isinstance(method, LoraConfig)
    assert (method.r, method.alpha, method.rslora, method.rank_pattern) == (3, 3, False, {})
    difference = our_logits(llama, folded) - our_logits(llama, as_told)
    assert float(difference.abs().max()) <= 1e-6


@pytest.mark.parametrize("pattern", [None, "layers"])
def test_a_choice_of_layers_is_read(pattern: str | None, llama: Base, tmp_path: Path) -> None:
    config = PeftLora(
        task_type="CAUSAL_LM",
        r=2,
        target_modules=["q_proj"],
        layers_to_transform=1,
        layers_pattern=pattern,
    )
    train_with_peft(llama, "CAUSAL_LM", config, tmp_path)
    assert set(bring(llama, tmp_path).delta.at_sites()) == {"layers.1.self_attn.q_proj"}

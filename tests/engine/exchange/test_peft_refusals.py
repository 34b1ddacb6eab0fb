"""What cannot be held here of a file of PEFT, and there of a delta of ours: all of it, told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, PrefixTuningConfig, PromptTuningConfig
from peft import LoraConfig as PeftLora
from safetensors.torch import load_file, save_file
from torch import Tensor

from peft_engine.bases.base import Base, load_base
from peft_engine.configs.methods import (
    BitfitConfig,
    BottleneckConfig,
    FullConfig,
    LoraConfig,
    MaskConfig,
    MethodConfig,
    PrefixConfig,
)
from peft_engine.errors import ExchangeError
from peft_engine.exchange.exporting import export_adapter
from tests.engine.conftest import make_delta
from tests.engine.exchange.peers import LABELS, bring, send, train_with_peft
from tests.tiny_bases import write_tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
FIRST = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def folder(llama: Base, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good adapter, which each test spoils."""
    path = tmp_path_factory.mktemp("good")
    config = PeftLora(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    train_with_peft(llama, "CAUSAL_LM", config, path)
    return path


def spoiled(
    folder: Path,
    target: Path,
    *,
    config: dict[str, Any] | None = None,
    tensors: Callable[[dict[str, Tensor]], None] | None = None,
) -> Path:
    target.mkdir(exist_ok=True)
    own = json.loads((folder / CONFIG).read_text()) | (config or {})
    (target / CONFIG).write_text(json.dumps(own))
    found = load_file(folder / WEIGHTS)
    if tensors is not None:
        tensors(found)
    save_file(found, target / WEIGHTS)
    return target


def reasons(base: Base, folder: Path, **options: Any) -> list[tuple[str, str | None]]:
    with pytest.raises(ExchangeError) as caught:
        bring(base, folder, **options)
    assert caught.value.code == "adapter_invalid"
    return [(problem.code, problem.where) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("alora_invocation_tokens", [1, 2]),
        ("layer_replication", [[0, 2]]),
        ("lora_bias", True),
        ("trainable_token_indices", [3]),
        ("use_qalora", True),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("something_of_a_later_version", 0.5),
    ],
)
def test_options_that_change_the_function(
    llama: Base, folder: Path, tmp_path: Path, option: str, value: Any
) -> None:
    changed = spoiled(folder, tmp_path, config={option: value})
    assert reasons(llama, changed) == [("unsupported_option", option)]


def test_options_that_are_off_are_none(llama: Base, folder: Path, tmp_path: Path) -> None:
    config = {"something_of_a_later_version": False, "another": None, "third": {}}
    assert bring(llama, spoiled(folder, tmp_path, config=config)).format == "peft"


@pytest.mark.parametrize(
    "pattern",
    ["(a+)+$", "(", ".*.*.*.*.*x", "[a-z_.]?" * 40 + "#", "(a|[a-z_.]|)" * 40 + "#", "(?i)q_proj"],
)
def test_expressions_that_may_never_end(
    llama: Base, folder: Path, tmp_path: Path, pattern: str
) -> None:
    changed = spoiled(folder, tmp_path, config={"target_modules": pattern})
    assert reasons(llama, changed) == [("unsupported_option", "target_modules")]
    (tmp_path / "ranks").mkdir()
    changed = spoiled(folder, tmp_path / "ranks", config={"rank_pattern": {pattern: 2}})
    assert reasons(llama, changed) == [("unsupported_option", "rank_pattern")]


@pytest.mark.parametrize("pattern", ["x{}", ".*.*.*.*x{}"])
def test_more_expressions_than_a_model_has_modules(
    llama: Base, folder: Path, tmp_path: Path, pattern: str
) -> None:
    patterns = {pattern.format(number): 2 for number in range(5000)}
    changed = spoiled(folder, tmp_path, config={"rank_pattern": patterns})
    assert reasons(llama, changed) == [("unsupported_option", "rank_pattern")]


def test_expressions_that_end(llama: Base, folder: Path, tmp_path: Path) -> None:
    patterns = {
        r".*\.layers\.(7|8)\..*(q_proj|k_proj|v_proj|o_proj|up_proj|down_proj)": 2,
        r"^(?:.*?\.)?model\.layers\.[0-9]{2}\.(self_attn|mlp)\.x_proj": 2,
    }
    patterns |= {rf"^model\.layers\.{number}\.x_proj": 2 for number in range(1000)}
    assert bring(llama, spoiled(folder, tmp_path, config={"rank_pattern": patterns})).delta


def test_every_tensor_is_used_and_there(llama: Base, folder: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        del tensors[f"{FIRST}.lora_B.weight"]
        tensors["base_model.model.lm_head.weight"] = torch.zeros(2, 2)
        tensors["base_model.model.model.layers.7.mlp.up_proj.lora_A.weight"] = torch.zeros(2, 32)
        name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
        tensors[name] = torch.zeros(2, 31)

    assert sorted(reasons(llama, spoiled(folder, tmp_path, tensors=change)), key=str) == [
        ("missing_tensor", "layers.0.self_attn.q_proj.lora_B.weight"),
        ("unsupported_site", "model.layers.7.mlp.up_proj"),
        ("unused_tensor", "lm_head.weight"),
        ("wrong_shape", "layers.1.self_attn.q_proj"),
    ]


def test_target_modules_without_tensors(llama: Base, folder: Path, tmp_path: Path) -> None:
    changed = spoiled(folder, tmp_path, config={"target_modules": ["q_proj", "v_proj"]})
    paths = [f"layers.{n}.self_attn.v_proj" for n in (0, 1)]
    assert reasons(llama, changed) == [("missing_tensor", path) for path in paths]


def test_another_rank_than_told(llama: Base, folder: Path, tmp_path: Path) -> None:
    assert {code for code, _ in reasons(llama, spoiled(folder, tmp_path, config={"r": 8}))} == {
        "wrong_shape"
    }


@pytest.mark.parametrize(
    ("option", "value"), [("r", 8), ("lora_alpha", 0), ("lora_alpha", "x"), ("lora_dropout", 2)]
)
def test_values_out_of_bounds(
    llama: Base, folder: Path, tmp_path: Path, option: str, value: Any
) -> None:
    assert reasons(llama, spoiled(folder, tmp_path, config={option: value}))


def test_values_that_are_no_numbers(llama: Base, folder: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{FIRST}.lora_A.weight"][0, 0] = torch.nan

    assert reasons(llama, spoiled(folder, tmp_path, tensors=change)) == [
        ("bad_tensors", f"{FIRST}.lora_A.weight")
    ]


def test_another_base(gpt2: Base, folder: Path) -> None:
    assert reasons(gpt2, folder)[0] == ("unsupported_site", "model.layers.0.self_attn.q_proj")


def test_a_pickle_with_code(llama: Base, folder: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / CONFIG).write_text((folder / CONFIG).read_text())
    torch.save({"x": Attack()}, tmp_path / "adapter_model.bin")
    assert reasons(llama, tmp_path) == [("bad_tensors", "adapter_model.bin")]
    assert not (tmp_path / "ran").exists()


def test_a_pickle_of_tensors(llama: Base, folder: Path, tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_text((folder / CONFIG).read_text())
    torch.save(load_file(folder / WEIGHTS), tmp_path / "adapter_model.bin")
    assert bring(llama, tmp_path).delta.digest == bring(llama, folder).delta.digest


def test_kinds_without_a_place(llama: Base, tmp_path: Path) -> None:
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    train_with_peft(llama, "CAUSAL_LM", config, tmp_path)
    assert reasons(llama, tmp_path) == [("unsupported_kind", "peft_type")]


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5"])
def test_prefixes_where_positions_do_not_turn(
    family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    base: Base = request.getfixturevalue(family)
    task = {"gpt2": "CAUSAL_LM", "bert": "SEQ_CLS", "t5": "SEQ_2_SEQ_LM"}[family]
    config = PrefixTuningConfig(task_type=task, num_virtual_tokens=3)
    train_with_peft(base, task, config, tmp_path)
    assert ("positions_differ", "PREFIX_TUNING") in reasons(base, tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        IA3Config(task_type="CAUSAL_LM"),
    ],
    ids=["prefix", "ia3"],
)
def test_kinds_that_need_to_know_the_parts_of_a_family(config: Any, tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "neox", "GPTNeoXForCausalLM")
    neox = load_base(str(folder), name="neox", models_dir=tmp_path)
    train_with_peft(neox, "CAUSAL_LM", config, tmp_path / "theirs")
    assert reasons(neox, tmp_path / "theirs") == [("unsupported_kind", None)]


def test_heads_need_what_they_read(distilbert: Base, bert: Base, tmp_path: Path) -> None:
    config = PeftLora(task_type="SEQ_CLS", r=2, target_modules=["q_lin"])
    train_with_peft(distilbert, "SEQ_CLS", config, tmp_path / "a")

    def forget(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if "pre_classifier" in name]:
            del tensors[name]

    spoiled(tmp_path / "a", tmp_path / "a", tensors=forget)
    missing = [("missing_tensor", f"pre_classifier.{n}") for n in ("weight", "bias")]
    assert reasons(distilbert, tmp_path / "a")[:2] == missing
    config = IA3Config(task_type="TOKEN_CLS")
    train_with_peft(bert, "TOKEN_CLS", config, tmp_path / "b")
    assert ("labels_needed", "labels") in reasons(bert, tmp_path / "b")
    wrong = reasons(bert, tmp_path / "b", labels=("O", "B-x"))
    assert ("wrong_labels", "labels") in wrong


EXPORTS: dict[str, tuple[str, MethodConfig | tuple[MethodConfig, ...], set[str]]] = {
    "two methods": ("llama", (LoraConfig(r=2), BottleneckConfig(size=2)), {"method_not_possible"}),
    "bottleneck": ("llama", BottleneckConfig(size=2), {"method_not_possible"}),
    "full": ("llama", FullConfig(), {"method_not_possible"}),
    "gated prefix": ("llama", PrefixConfig(length=2), {"method_not_possible"}),
    "positions": ("gpt2", PrefixConfig(length=2, gate="none"), {"positions_differ"}),
    "conv1d": ("gpt2", MaskConfig(selection="random"), {"site_not_possible"}),
    "no bias": (
        "llama",
        (LoraConfig(r=2), BitfitConfig(biases="all")),
        {"site_not_possible"},
    ),
}


@pytest.mark.parametrize("case", EXPORTS)
def test_deltas_without_a_place(case: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    family, config, codes = EXPORTS[case]
    base: Base = request.getfixturevalue(family)
    found = send(base, make_delta(base, seed=1, config=config), tmp_path)
    assert {problem.code for problem in found.problems} == codes
    assert not list(tmp_path.iterdir())


def test_heads_without_a_place(bert: Base, tmp_path: Path) -> None:
    delta = make_delta(bert, seed=1, labels=LABELS)
    found = send(bert, delta, tmp_path)
    places = [problem.where for problem in found.problems]
    assert places == ["head.pooling", "head.normalize", "head.hidden"]


def test_a_head_over_one_of_two_stacks_stays(t5: Base, tmp_path: Path) -> None:
    delta = make_delta(t5, seed=1, labels=LABELS)
    with pytest.raises(ExchangeError) as caught:
        export_adapter(t5, delta, "peft", tmp_path, head="leave-out")
    assert "head_not_possible" in {problem.code for problem in caught.value.problems}


def test_dora_is_not_portable(llama: Base, tmp_path: Path) -> None:
    delta = make_delta(llama, seed=1, config=LoraConfig(r=2, dora=True))
    found = send(llama, delta, tmp_path, portable=True)
    assert [problem.where for problem in found.problems] == ["lora.dora"]

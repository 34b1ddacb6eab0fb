"""Families of bases beside the matrix: what works on them, and what is refused in words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_engine.bases.base import Base, load_base
from peft_engine.configs.methods import LoraConfig
from peft_engine.delta import Delta, check_delta
from peft_engine.errors import BaseModelError, ConfigError
from peft_engine.router import Router
from peft_engine.serving import Engine
from peft_engine.training.trainable import create_trainable
from tests.engine.conftest import random_ids
from tests.engine.matrix_table import METHODS, TASKS, TOLERANCES, named, rate_of
from tests.engine.test_matrix import (
    Bench,
    assert_answers,
    assert_base_untouched,
    assert_covers_and_moves,
    assert_zero_effect,
    prepare,
    same,
    spec_of,
    tune,
)
from tests.tiny_bases import write_tiny_bert, write_tiny_model

OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}
DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "position_buckets": 8,
    "norm_rel_ebd": "layer_norm",
}
"""As version 3 has them."""

NO_SDPA: dict[str, dict[str, Any]] = {
    "MPNetModel": {},
    "DebertaModel": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "DebertaV2Model": DEBERTA,
    # as it is published it caps its logits, which is refused for a reason of its own
    "Gemma2ForCausalLM": {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "sliding_window": 16,
        "final_logit_softcapping": None,
    },
    "BloomForCausalLM": {},
    "GPTNeoForCausalLM": {
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "num_heads": 4,
        "window_size": 16,
    },
}
"""Families for which transformers has no sdpa, with their options."""

ON_MPNET = (
    "lora",
    "dora",
    "houlsby",
    "pfeiffer",
    "parallel",
    "bitfit",
    "ia3",
    "norm",
    "mask",
    "full",
)


def load(folder: Path, name: str, **options: Any) -> Base:
    return load_base(
        str(write_tiny_model(folder / name, name, **options)),
        name=name,
        models_dir=folder,
        device="cpu",
        precision="fp32",
    )


@pytest.fixture(scope="module")
def mpnet(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    base = load(tmp_path_factory.mktemp("mpnet"), "MPNetModel")
    weights = {key: value.clone() for key, value in base.model.state_dict().items()}
    return Bench(base, weights, Router(base.trunk), Engine(base))


@pytest.mark.parametrize("name", NO_SDPA)
def test_a_family_without_sdpa_computes_plain_products(name: str, tmp_path: Path) -> None:
    base = load(tmp_path, name, **NO_SDPA[name])
    with torch.no_grad():
        hidden = base.trunk(input_ids=random_ids(2, 5) % 20).last_hidden_state
    assert hidden.shape == (2, 5, 32)
    assert bool(hidden.isfinite().all())


def test_a_base_that_transformers_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_bert(tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "no-such-type"}))
    with pytest.raises(BaseModelError, match="no-such-type") as caught:
        load_base(str(folder), name="odd", models_dir=tmp_path)
    assert caught.value.code == "base_unsupported"


@pytest.mark.parametrize("method", ON_MPNET)
def test_mpnet_is_trained_and_answers_in_company_as_alone(mpnet: Bench, method: str) -> None:
    row = TASKS["classification"]
    spec = spec_of(named(METHODS[method], "bert"), row, rate=rate_of(method, "bert"))
    delta, losses = tune(mpnet, spec, row)
    assert_zero_effect(mpnet, "classification", losses[0])
    assert min(losses[1:]) < TOLERANCES.lowered * losses[0], losses
    assert_covers_and_moves(mpnet, spec, row, delta)
    assert_base_untouched(mpnet)
    assert_answers(mpnet, "classification", delta)


def test_mpnet_has_no_place_for_a_prefix(mpnet: Bench) -> None:
    row = TASKS["classification"]
    with pytest.raises(ConfigError, match="MPNet") as caught:
        tune(mpnet, spec_of(METHODS["prefix"], row, rate=0.01), row)
    assert caught.value.code == "no_such_site"


@pytest.mark.parametrize("method", ["lora", "bitfit", "norm", "ia3", "mask", "full"])
@pytest.mark.parametrize(
    ("name", "options"), [("OPTForCausalLM", OPT), ("DebertaV2Model", DEBERTA)], ids=["opt", "deb"]
)
def test_modules_that_see_no_rows_are_refused_before_the_first_step(
    name: str, options: dict[str, Any], method: str, tmp_path: Path
) -> None:
    base = load(tmp_path, name, **options)
    with pytest.raises(ConfigError, match="row by row") as caught:
        create_trainable(base, METHODS[method], seed=0, head=None)
    assert caught.value.code == "base_unsupported"


def test_what_sees_rows_in_opt_learns(tmp_path: Path) -> None:
    base, row = load(tmp_path, "OPTForCausalLM", **OPT), TASKS["generation"]
    bench = Bench(base, {}, Router(base.trunk), Engine(base))
    lora = LoraConfig(r=4, alpha=8, targets=("q_proj", "v_proj"))
    delta, losses = tune(bench, spec_of((lora,), row, rate=0.003), row)
    assert min(losses[1:]) < TOLERANCES.lowered * losses[0]
    rows = prepare(bench, row, [delta, None, delta], places=(0, 2, 4))
    alone = [bench.engine.predict([one])[0].output for one in rows]
    for found, wanted in zip(bench.engine.predict(rows), alone, strict=True):
        same(found.output, wanted)


def test_the_ends_of_the_sublayers_of_deberta_see_rows(tmp_path: Path) -> None:
    base, row = load(tmp_path, "DebertaV2Model", **DEBERTA), TASKS["classification"]
    bench = Bench(base, {}, Router(base.trunk), Engine(base))
    _, losses = tune(bench, spec_of(METHODS["houlsby"], row, rate=0.003), row)
    assert min(losses[1:]) < TOLERANCES.lowered * losses[0]


def test_a_stored_delta_on_modules_that_see_no_rows_is_refused(tmp_path: Path) -> None:
    base = load(tmp_path, "OPTForCausalLM", **OPT)
    lora = LoraConfig(r=4, alpha=8, targets=("q_proj",))
    delta = create_trainable(base, (lora,), seed=0, head=None).freeze(
        base, task="text-generation", max_length=8
    )
    manifest = delta.manifest.model_copy(update={"methods": (LoraConfig(r=4, alpha=8),)})
    with pytest.raises(ConfigError, match="row by row"):
        check_delta(
            Delta.of(dict(delta.tensors), manifest),
            base.trunk,
            fingerprint=base.fingerprint,
            template_digest=base.template_digest,
        )


def test_full_takes_the_linear_between_narrow_tables_and_the_layers(tmp_path: Path) -> None:
    base, row = load(tmp_path, "ElectraModel", embedding_size=16), TASKS["classification"]
    weights = {key: value.clone() for key, value in base.model.state_dict().items()}
    bench = Bench(base, weights, Router(base.trunk), Engine(base))
    spec = spec_of(METHODS["full"], row, rate=0.0003)
    delta, _ = tune(bench, spec, row)
    assert_covers_and_moves(bench, spec, row, delta)
    learned = {name.partition(":full.")[0] for name in delta.tensors if ":full." in name}
    owners = {name.rpartition(".")[0] for name, _ in base.trunk.named_parameters()}
    assert learned == owners


@pytest.mark.parametrize("method", ["full", "bitfit", "bitfit everywhere", "lora", "mask"])
def test_a_base_of_shared_layers_is_refused_rather_than_trained_in_part(
    method: str, tmp_path: Path
) -> None:
    base = load(tmp_path, "AlbertModel", embedding_size=16)
    with pytest.raises(ConfigError, match="AlbertModel") as caught:
        create_trainable(base, METHODS[method], seed=0, head=None)
    assert caught.value.code == "no_such_site"


@pytest.mark.parametrize("method", ["prefix", "houlsby", "ia3"])
def test_a_base_that_shares_some_names_with_a_family_is_not_of_it(
    method: str, tmp_path: Path
) -> None:
    """Phi has BART's ``fc2`` and ``self_attn.k_proj``."""
    base = load(tmp_path, "PhiForCausalLM")
    with pytest.raises(ConfigError, match="is not known") as caught:
        create_trainable(base, METHODS[method], seed=0, head=None)
    assert caught.value.code == "no_such_site"

"""Families of bases beside the matrix: what works on them, and what is refused in words."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peft_engine.bases.base import Base, load_base
from peft_engine.errors import BaseModelError, ConfigError
from peft_engine.router import Router
from peft_engine.serving import Engine
from tests.engine.conftest import random_ids
from tests.engine.matrix_table import METHODS, TASKS, TOLERANCES, named, rate_of
from tests.engine.test_matrix import (
    Bench,
    assert_answers,
    assert_base_untouched,
    assert_covers_and_moves,
    assert_zero_effect,
    spec_of,
    tune,
)
from tests.tiny_bases import write_tiny_bert, write_tiny_model

NO_SDPA: dict[str, dict[str, Any]] = {
    "MPNetModel": {},
    "DebertaModel": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "DebertaV2Model": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
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

ON_MPNET = ("lora", "dora", "houlsby", "pfeiffer", "parallel", "bitfit", "ia3", "norm", "mask")


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

"""Several adapters as one: PEFT's own numbers, the closed forms, and what does not go together."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from peft_engine.bases.base import Base
from peft_engine.configs.merge import MergeSpec
from peft_engine.configs.methods import (
    BitfitConfig,
    BottleneckConfig,
    FullConfig,
    HeadOnlyConfig,
    Ia3Config,
    LoraConfig,
    MaskConfig,
    MethodConfig,
    NormConfig,
)
from peft_engine.delta import Delta, check_delta
from peft_engine.errors import ExchangeError
from peft_engine.exchange.evaluating import evaluate_delta
from peft_engine.exchange.merge_formulas import merge_changes
from peft_engine.exchange.merging import merge_deltas
from peft_engine.methods.table import METHODS
from peft_engine.parts.sites import Site
from peft_engine.plan import Actor
from peft_engine.training.forwards import EvaluationForward
from tests.engine.conftest import make_delta
from tests.engine.exchange.peers import LABELS, foreign_model, our_logits, router_of, send

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

WEIGHTS = (0.7, 1.3)
CPU = torch.device("cpu")
CONFIGS = (
    LoraConfig(r=4, alpha=8, targets=("q_proj", "up_proj")),
    LoraConfig(r=2, alpha=3, targets=("q_proj", "up_proj")),
)


def deltas_of(base: Base, configs: tuple[MethodConfig, ...] = CONFIGS, **more: Any) -> list[Delta]:
    return [
        make_delta(base, seed=seed, config=config, **more).to(CPU)
        for seed, config in enumerate(configs)
    ]


def merge(base: Base, deltas: list[Delta], **options: Any) -> Delta:
    merged = merge_deltas(base, deltas, WEIGHTS[: len(deltas)], MergeSpec(**options))
    check_delta(
        merged, base.trunk, fingerprint=base.fingerprint, template_digest=base.template_digest
    )
    return merged


def products(delta: Delta) -> dict[str, torch.Tensor]:
    (config,) = delta.manifest.methods
    assert isinstance(config, LoraConfig)
    return {
        path: config.scale_at(path) * (own["lora"]["B"] @ own["lora"]["A"])
        for path, own in delta.at_sites().items()
    }


PEERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({}, {"combination_type": "cat"}),
    "svd": ({"r": 3}, {"combination_type": "svd", "svd_rank": 3}),
    "ties": (
        {"method": "ties", "density": 0.4, "r": 5},
        {"combination_type": "ties_svd", "density": 0.4, "svd_rank": 5},
    ),
    "ties by adapters": (
        {"method": "ties", "density": 0.7, "majority": "frequency", "r": 5},
        {
            "combination_type": "ties_svd",
            "density": 0.7,
            "majority_sign_method": "frequency",
            "svd_rank": 5,
        },
    ),
    "dare that drops nothing": (
        {"method": "dare-ties", "density": 1.0, "r": 6},
        {"combination_type": "dare_ties_svd", "density": 1.0, "svd_rank": 6},
    ),
}


@pytest.mark.parametrize("case", PEERS)
def test_merges_are_those_of_peft(case: str, llama: Base, tmp_path: Path) -> None:
    options, peer_options = PEERS[case]
    deltas = deltas_of(llama)
    for name, delta in zip("ab", deltas, strict=True):
        assert send(llama, delta, tmp_path / name).problems == []
    model: Any = PeftModel.from_pretrained(
        foreign_model(llama, "CAUSAL_LM"), str(tmp_path / "a"), adapter_name="a"
    )
    model.load_adapter(str(tmp_path / "b"), adapter_name="b")
    model.to("cpu")  # as ours: another device has another singular value decomposition
    model.add_weighted_adapter(["a", "b"], list(WEIGHTS), "merged", **peer_options)
    for path, ours in products(merge(llama, deltas, **options)).items():
        layer = model.get_submodule(f"base_model.model.model.{path}")
        theirs = layer.get_delta_weight("merged")
        assert torch.allclose(ours, theirs.cpu(), atol=1e-6), path


def test_what_is_dropped_is_made_up_for_by_the_rest() -> None:
    """DARE: kept values are 1 / density as large, and the mean over draws is the whole."""
    change = torch.linspace(-1, 1, 4000).view(40, 100)
    spec = MergeSpec(method="dare-linear", density=0.25)
    draws = [
        merge_changes([change], [1.0], spec, torch.Generator().manual_seed(seed))
        for seed in range(400)
    ]
    ratios = (draws[0] / change).round(decimals=4).unique()
    assert ratios.tolist() == [0.0, 4.0]
    deviation = change.abs().max() * math.sqrt(3 / len(draws))
    assert (torch.stack(draws).mean(0) - change).abs().max() < 5 * deviation
    again = merge_changes([change], [1.0], spec, torch.Generator().manual_seed(0))
    assert torch.equal(again, draws[0])


def test_any_methods_that_add_to_weights_merge_into_a_dense_one(bert: Base) -> None:
    configs = (
        (LoraConfig(r=2), NormConfig()),
        (MaskConfig(selection="random", density=0.1), BitfitConfig()),
    )
    deltas = [
        make_delta(bert, seed=seed, config=own, labels=LABELS, strength=0.05).to(CPU)
        for seed, own in enumerate(configs)
    ]
    merged = merge_deltas(bert, deltas, (1.0, 0.0), MergeSpec(into="dense"))
    assert merged.manifest.methods == (FullConfig(),)
    assert torch.allclose(our_logits(bert, merged), our_logits(bert, deltas[0]), atol=1e-5)
    assert set(merged.head) == {"weight", "bias"}


PAIRS = itertools.combinations(
    (
        LoraConfig(r=2),
        MaskConfig(selection="random", density=0.1),
        LoraConfig(r=2, dora=True),
        Ia3Config(),
        NormConfig(),
        BitfitConfig(),
    ),
    2,
)
ACT_ON_OTHERS = ({"lora", "ia3"}, {"mask", "ia3"}, {"mask", "dora"}, {"dora", "ia3"})


def names_of(config: tuple[MethodConfig, ...]) -> list[str]:
    return ["dora" if getattr(own, "dora", False) else own.type for own in config]


@pytest.mark.parametrize(
    "config", [pair for pair in PAIRS if pair[0].type != pair[1].type], ids=names_of
)
def test_a_merge_of_one_with_two_methods_is_that_one_or_refused(
    config: tuple[MethodConfig, ...], bert: Base
) -> None:
    delta = make_delta(bert, seed=1, config=config, labels=LABELS, strength=0.05).to(CPU)
    if set(names_of(config)) in ACT_ON_OTHERS:
        with pytest.raises(ExchangeError) as caught:
            merge_deltas(bert, [delta], [1.0], MergeSpec(into="dense"))
        assert {problem.code for problem in caught.value.problems} == {"merge_not_exact"}
    else:
        merged = merge_deltas(bert, [delta], [1.0], MergeSpec(into="dense"))
        assert torch.allclose(our_logits(bert, merged), our_logits(bert, delta), atol=1e-5)


def test_adapters_that_are_heads_alone_merge(bert: Base) -> None:
    deltas = deltas_of(bert, (HeadOnlyConfig(), HeadOnlyConfig()), labels=LABELS)
    merged = merge(bert, deltas)
    assert merged.manifest.methods == (HeadOnlyConfig(),)
    assert set(merged.tensors) == {"head:weight", "head:bias"}


@pytest.mark.parametrize("taken_away", [-0.5, -0.99, -1.0, -3.0])
def test_what_is_taken_away_has_no_part_in_the_head(taken_away: float, bert: Base) -> None:
    deltas = [make_delta(bert, seed=seed, labels=LABELS).to(CPU) for seed in range(2)]
    merged = merge_deltas(bert, deltas, (1.0, taken_away), MergeSpec())
    assert all(torch.equal(merged.head[name], own) for name, own in deltas[0].head.items())
    alone = merge_deltas(bert, deltas[:1], (taken_away,), MergeSpec())
    assert all(torch.equal(alone.head[name], own) for name, own in deltas[0].head.items())


def test_only_one_site_is_dense_at_a_time(bert: Base) -> None:
    """Sixteen small adapters of a large base would not fit into memory otherwise."""
    mask = MaskConfig(selection="random", density=0.1)
    deltas = deltas_of(bert, (mask,) * 16, labels=LABELS)
    dense, seen = METHODS["mask"].dense, list[str]()

    def noted(module: Any, site: Site, *others: Any) -> Any:
        seen.append(site.path)
        return dense(module, site, *others)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(METHODS["mask"]), "dense", staticmethod(noted))
        merge_deltas(bert, deltas, [0.1] * 16, MergeSpec())
    asked_first = 16  # whether the method is a change of weights at all
    assert seen[asked_first:] == [path for path in sorted(set(seen)) for _ in deltas]


def test_the_same_merge_has_the_same_digest(llama: Base) -> None:
    options = {"method": "dare-ties", "density": 0.5, "r": 4}
    first, second = (merge(llama, deltas_of(llama), **options) for _ in range(2))
    assert first.digest == second.digest
    assert merge(llama, deltas_of(llama), **options, seed=1).digest != first.digest


def test_a_merge_of_one_is_that_one(llama: Base) -> None:
    (delta, _) = deltas_of(llama)
    merged = merge_deltas(llama, [delta], [1.0], MergeSpec())
    assert torch.allclose(our_logits(llama, merged), our_logits(llama, delta), atol=1e-5)


@pytest.mark.parametrize(
    ("configs", "options", "codes"),
    [
        ((LoraConfig(r=2), BottleneckConfig(size=2)), {}, {"method_not_possible"}),
        ((LoraConfig(r=2), NormConfig()), {}, {"site_not_possible"}),
        ((LoraConfig(r=2), BitfitConfig()), {"into": "dense"}, {"site_not_possible"}),
    ],
)
def test_what_does_not_merge(
    configs: tuple[MethodConfig, ...], options: dict[str, Any], codes: set[str], llama: Base
) -> None:
    with pytest.raises(ExchangeError) as caught:
        merge(llama, deltas_of(llama, configs), **options)
    assert caught.value.code == "merge_not_possible"
    assert {problem.code for problem in caught.value.problems} == codes


def test_strangers_do_not_merge(bert: Base, llama: Base) -> None:
    (first, _), other = deltas_of(llama), make_delta(bert, seed=1, labels=LABELS).to(CPU)
    with pytest.raises(ExchangeError) as caught:
        merge_deltas(llama, [first, other], WEIGHTS, MergeSpec())
    codes = [problem.code for problem in caught.value.problems]
    assert codes == ["base_mismatch", "task_mismatch", "head_mismatch"]


def test_a_merge_is_evaluated_on_rows(bert: Base) -> None:
    deltas = [make_delta(bert, seed=seed, labels=LABELS).to(CPU) for seed in range(2)]
    merged = merge_deltas(bert, deltas, WEIGHTS, MergeSpec())
    records = [{"text": text, "label": "yes"} for text in ("my card", "where is my order")]
    merged = merged.to(bert.device)
    forward = EvaluationForward(bert, router_of(bert), Actor.of(merged), lambda: None)
    found = evaluate_delta(forward, merged, records)
    assert found["rows"] == 2
    assert {"accuracy", "loss"} <= found["values"].keys()

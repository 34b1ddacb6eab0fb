"""LoRA against its closed form, against PEFT, and against itself in every way rows can be mixed."""

from itertools import pairwise

import pytest
import torch
from peft import LoraConfig as PeftLoraConfig
from peft import get_peft_model
from torch import Tensor, nn

from peft_engine.bases.base import Base
from peft_engine.configs.methods import LoraConfig
from peft_engine.delta import Delta
from peft_engine.errors import ConfigError
from peft_engine.methods.lora import Lora
from peft_engine.parts.segments import Segment, Segments
from peft_engine.parts.sites import Site
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from tests.engine.conftest import DEVICE, make_delta, random_ids

ATOL = 1e-5


def hidden(base: Base, router: Router, ids: Tensor, actors: list[Actor | None]) -> Tensor:
    """(B, T, D) hidden states in the order of the rows as they were given."""
    plan = Plan.build(actors)
    with router.use(plan):
        found = base.trunk(input_ids=ids[list(plan.order)]).last_hidden_state
    restored = torch.empty_like(found)
    restored[list(plan.order)] = found
    return restored


def test_closed_form_at_one_site() -> None:
    config = LoraConfig(r=2, alpha=3)
    params = {"A": torch.randn(2, 5), "B": torch.randn(4, 2)}
    x, y = torch.randn(3, 6, 5), torch.randn(3, 6, 4)
    segments = Segments((Segment(params, config, 0, 3),), rows=3)
    expected = y + 1.5 * x @ (params["B"] @ params["A"]).T
    assert torch.allclose(Lora().post(nn.Linear(5, 4), segments, x, y), expected, atol=ATOL)


def test_start_values_change_nothing(any_base: Base) -> None:
    config = LoraConfig(r=4)
    lora = Lora()
    generator = torch.Generator().manual_seed(1)
    sites = {}
    for site in lora.sites(any_base.trunk, config):
        made = lora.create(any_base.trunk.get_submodule(site.path), site, config, generator)
        sites[site.path] = {"lora": {name: value.to(DEVICE) for name, value in made.items()}}
    ids = random_ids(3, 7)
    with torch.no_grad():
        plain = any_base.trunk(input_ids=ids).last_hidden_state
        actor = Actor({"lora": config}, sites, {})
        tuned = hidden(any_base, Router(any_base.trunk), ids, [actor] * 3)
    assert torch.equal(plain, tuned)


@pytest.mark.parametrize("ranks", [(4, 4), (2, 4, 8, 16), (200, 100, 50)])
@pytest.mark.parametrize("tokens", [1, 9])
def test_mixed_rows_equal_single_rows(any_base: Base, ranks: tuple[int, ...], tokens: int) -> None:
    """Of one token two deltas take the loop, four the mask, three of high rank the loop again."""
    deltas = [
        make_delta(any_base, seed=rank, config=LoraConfig(r=rank, alpha=rank), strength=0.1)
        for rank in ranks
    ]
    actors: list[Actor | None] = [Actor.of(delta) for delta in deltas]
    rows = [*actors, None, *reversed(actors), None, actors[0]]
    ids = random_ids(len(rows), tokens)
    router = Router(any_base.trunk)
    with torch.no_grad():
        plain = any_base.trunk(input_ids=ids).last_hidden_state
        mixed = hidden(any_base, router, ids, rows)
        for row, actor in enumerate(rows):
            single = hidden(any_base, router, ids[row : row + 1], [actor])
            assert torch.allclose(mixed[row], single[0], atol=ATOL)
            changed = (mixed[row] - plain[row]).abs().max()
            assert changed > 1e-2 if actor is not None else changed < ATOL


def test_gradients_of_mixed_rows_equal_those_of_solo_runs(bert: Base) -> None:
    ids = random_ids(6, 8)
    owners = [0, 1, 0, 1, 1, 0]

    def gradients(rows: list[int], which: set[int]) -> list[dict[str, Tensor]]:
        deltas = [make_delta(bert, seed=seed) for seed in (1, 2)]
        for delta in deltas:
            for tensor in delta.tensors.values():
                tensor.requires_grad_()
        actors = [Actor.of(delta) for delta in deltas]
        out = hidden(bert, Router(bert.trunk), ids[rows], [actors[owners[row]] for row in rows])
        out.square().sum().backward()
        return [
            {n: t.grad for n, t in deltas[i].tensors.items() if t.grad is not None} for i in which
        ]

    together = gradients(list(range(6)), {0, 1})
    for number in (0, 1):
        own = [row for row, owner in enumerate(owners) if owner == number]
        (alone,) = gradients(own, {number})
        assert alone.keys() == together[number].keys()
        for name, expected in alone.items():
            assert torch.allclose(together[number][name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own call
def test_parity_with_peft(any_base: Base) -> None:
    """The same A and B in PEFT's own LoRA layers give the same hidden states."""
    config = LoraConfig(r=4, alpha=8)
    delta = make_delta(any_base, seed=5, config=config)
    ids = random_ids(4, 9)
    with torch.no_grad():
        ours = hidden(any_base, Router(any_base.trunk), ids, [Actor.of(delta)] * 4)
        theirs = _peft_hidden(any_base, delta, ids)
    assert torch.allclose(ours, theirs, atol=ATOL)


def _peft_hidden(base: Base, delta: Delta, ids: Tensor) -> Tensor:
    from copy import deepcopy

    paths = [site.path for site in Lora().sites(base.trunk, LoraConfig())]
    trunk = deepcopy(base.trunk)
    for module in trunk.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    wrapped = get_peft_model(
        trunk,
        PeftLoraConfig(r=4, lora_alpha=8, target_modules=paths, fan_in_fan_out=base.name == "gpt2"),
    ).eval()
    state = dict(wrapped.named_parameters())
    for path in paths:
        for ours, theirs in (("A", "lora_A"), ("B", "lora_B")):
            name = f"base_model.model.{path}.{theirs}.default.weight"
            state[name].copy_(delta.tensors[f"{path}:lora.{ours}"])
    found: Tensor = wrapped(input_ids=ids).last_hidden_state
    return found


def test_dense_form_is_the_same_change(llama: Base) -> None:
    config = LoraConfig(r=3, alpha=5)
    site = Lora().sites(llama.trunk, config)[0]
    params = {name: torch.randn(shape) for name, shape in Lora().shapes(site, config).items()}
    x = torch.randn(2, 4, site.in_features)
    y = torch.zeros(2, 4, site.out_features)
    segments = Segments((Segment(params, config, 0, 2),), rows=2)
    dense = Lora().dense(nn.Linear(4, 4), site, config, params)["weight"]
    assert torch.allclose(
        Lora().post(llama.trunk.get_submodule(site.path), segments, x, y), x @ dense.T, atol=1e-4
    )


def test_sites_are_all_linears_of_the_layers_and_nothing_else(any_base: Base) -> None:
    sites = Lora().sites(any_base.trunk, LoraConfig())
    per_layer = {"bert": 6, "llama": 7, "gpt2": 4}[any_base.name]
    assert len(sites) == 2 * per_layer
    assert {site.layer for site in sites} == {0, 1}
    assert not [site for site in sites if "pooler" in site.path or "head" in site.path]


def test_targets_and_layers_choose(llama: Base) -> None:
    config = LoraConfig(targets=("q_proj", "mlp.up_proj"), layers=(1,))
    paths = [site.path for site in Lora().sites(llama.trunk, config)]
    assert paths == ["layers.1.self_attn.q_proj", "layers.1.mlp.up_proj"]


@pytest.mark.parametrize(
    ("config", "word", "field"),
    [
        (LoraConfig(targets=("query",)), "q_proj", "targets"),
        (LoraConfig(layers=(0, 7)), "layers 0 to 1", "layers"),
        (LoraConfig(rank_pattern={"query": 2}), "q_proj", "rank_pattern"),
        (LoraConfig(alpha_pattern={"query": 2}), "q_proj", "alpha_pattern"),
    ],
)
def test_what_matches_nothing_is_refused_with_what_there_is(
    llama: Base, config: LoraConfig, word: str, field: str
) -> None:
    with pytest.raises(ConfigError, match=word) as caught:
        Lora().sites(llama.trunk, config)
    assert caught.value.param == f"method.{field}"


def test_start_values_follow_the_reference_distribution() -> None:
    site = Site("x", "linear", 0, 400, 50)
    made = Lora().create(
        nn.Linear(400, 50), site, LoraConfig(r=64), torch.Generator().manual_seed(0)
    )
    assert made["A"].abs().max() <= 1 / 20
    assert made["A"].std() == pytest.approx(1 / 20 / 3**0.5, rel=0.02)
    assert not made["B"].any()


def test_plan_sorts_rows_by_delta_and_leaves_the_base_last(bert: Base) -> None:
    first, second = (Actor.of(make_delta(bert, seed=seed)) for seed in (1, 2))
    plan = Plan.build([None, first, second, first, None])
    assert plan.order == (1, 3, 2, 0, 4)
    stage = plan.stages["encoder.layer.0.attention.self.query"][0]
    assert [(s.lo, s.hi) for s in stage.segments] == [(0, 2), (2, 3)]
    assert all(left.hi <= right.lo for left, right in pairwise(stage.segments))

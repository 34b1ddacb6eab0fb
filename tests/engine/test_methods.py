"""What is promised of every method, on every family of bases."""

import copy
from collections.abc import Iterator, Mapping
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_engine.configs.methods import (
    BitfitConfig,
    BottleneckConfig,
    FirstLayers,
    HeadOnlyConfig,
    Ia3Config,
    LastLayers,
    LoraConfig,
    MaskConfig,
    MethodConfig,
    NormConfig,
)
from peft_engine.errors import ConfigError
from peft_engine.methods.table import METHODS, ORDER
from peft_engine.parts.sites import Site, keep_sites, linear_sites, norm_sites
from peft_engine.plan import Actor
from peft_engine.router import Router
from tests.engine.conftest import DEVICE, ROUNDING_FACTOR, random_ids
from tests.engine.method_table import (
    FAMILIES,
    METHOD_CASES,
    Configs,
    cases_of,
    hidden,
    make_actor,
    make_trunk,
    read,
    sites_of,
    trained_tensors,
)

ATOL = 1e-5 * ROUNDING_FACTOR
STRENGTH = 0.1
# Endings of the keys and of the values whose biases do nothing that others do not do: none of the
# keys where they are turned by position (Llama), none at all where one module makes them (GPT-2).
IDLE_BIASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "bert": (("key",), ("value",)),
    "roberta": (("key",), ("value",)),
    "distilbert": (("k_lin",), ("v_lin",)),
    "llama": ((), ("v_proj",)),
    "gpt2": ((), ()),
    "t5": (("k",), ("v",)),
    "bart": (("k_proj",), ("v_proj",)),
}
VALUE_PATHS = {
    "bert": ("attention.self.value", "attention.output.dense"),
    "roberta": ("attention.self.value", "attention.output.dense"),
    "distilbert": ("v_lin", "out_lin"),
    "t5": ("v", "o"),
    "bart": ("v_proj", "out_proj"),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Iterator[tuple[str, nn.Module, Router]]:
    trunk = make_trunk(request.param)
    return request.param, trunk, Router(trunk)


def test_start_values_change_nothing(family: tuple[str, nn.Module, Router]) -> None:
    kind, trunk, router = family
    ids = random_ids(3, 7)
    with torch.no_grad():
        plain = read(trunk, ids)
        for name, configs in cases_of(kind).items():
            if name == "classic prefix":
                continue  # takes part of the softmax, whatever its values are
            actor = make_actor(trunk, configs, seed=1, strength=0)
            assert torch.allclose(hidden(trunk, router, ids, [actor] * 3), plain, atol=1e-6), name


@pytest.mark.parametrize("tokens", [1, 6])
def test_one_batch_of_all_kinds_equals_rows_one_by_one(
    family: tuple[str, nn.Module, Router], tokens: int
) -> None:
    """Two deltas of each kind and plain rows among them: PEFT answers most of these wrongly."""
    kind, trunk, router = family
    actors: dict[str, Actor | None] = {"base": None, "base again": None}
    for name, configs in cases_of(kind).items():
        for seed in (1, 2):
            actors[f"{name} {seed}"] = make_actor(trunk, configs, seed=seed, strength=STRENGTH)
    rows = [*actors.values(), *reversed(actors.values())]
    ids = random_ids(len(rows), tokens)
    with torch.no_grad():
        plain = read(trunk, ids)
        mixed = hidden(trunk, router, ids, rows)
        for row, (name, actor) in enumerate(actors.items()):
            alone = hidden(trunk, router, ids[row : row + 1], [actor])
            assert torch.allclose(mixed[row], alone[0], atol=ATOL), name
            changed = float((mixed[row] - plain[row]).abs().max())
            assert changed > 1e-3 if actor is not None else changed < 1e-6, name


def test_gradients_of_mixed_rows_equal_those_of_solo_runs(
    family: tuple[str, nn.Module, Router],
) -> None:
    kind, trunk, router = family
    ids = random_ids(2 * len(cases_of(kind)) + 1, 6)

    def gradients(actors: list[Actor | None], own_ids: Tensor) -> None:
        out = hidden(trunk, router, own_ids, actors)
        weights = torch.linspace(-1, 1, out.shape[-1], device=out.device)
        (out * weights).sum().backward()

    def make(configs: Configs) -> Actor:
        actor = make_actor(trunk, configs, seed=3, strength=STRENGTH)
        for tensor in trained_tensors(actor).values():
            tensor.requires_grad_()
        return Actor(actor.configs, actor.sites, {})

    together = [make(configs) for configs in cases_of(kind).values()]
    gradients([*together, None, *together], ids)
    for row, (name, configs) in enumerate(cases_of(kind).items()):
        alone = make(configs)
        gradients([alone] * 2, ids[[row, row + len(together) + 1]])
        mixed = trained_tensors(together[row])
        for tensor_name, tensor in trained_tensors(alone).items():
            assert tensor.grad is not None, (name, tensor_name)
            other = mixed[tensor_name].grad
            assert other is not None
            limit = ATOL * max(1.0, float(tensor.grad.abs().max()))
            assert torch.allclose(other, tensor.grad, atol=limit, rtol=1e-4), (name, tensor_name)


def test_every_trained_tensor_gets_a_gradient_at_the_start_or_one_step_later(
    family: tuple[str, nn.Module, Router],
) -> None:
    """At the start ``A`` of LoRA has none while ``B`` is zero; at every site something has."""
    kind, trunk, router = family
    ids = random_ids(2, 6)
    for name, configs in cases_of(kind).items():
        actor = make_actor(trunk, configs, seed=3, strength=0)
        own = trained_tensors(actor)
        for tensor in own.values():
            tensor.requires_grad_()
        out = hidden(trunk, router, ids, [Actor(actor.configs, actor.sites, {})] * 2)
        (out * torch.linspace(-1, 1, out.shape[-1], device=out.device)).sum().backward()
        alive = {n.partition(".")[0] for n, t in own.items() if t.grad is not None and t.grad.any()}
        assert {path.rsplit(":", 1)[0] for path in map(str, own)} == {
            n.rsplit(":", 1)[0] for n, t in own.items() if t.grad is not None and t.grad.any()
        }, name
        assert alive


DENSE = [
    name
    for name in METHOD_CASES
    if "+" not in name
    and name not in ("houlsby", "pfeiffer", "pfeiffer gelu", "parallel", "learned scale")
    and not name.endswith("prefix")
]


@pytest.mark.parametrize("name", DENSE)
def test_the_dense_form_is_the_same_change(
    family: tuple[str, nn.Module, Router], name: str
) -> None:
    _, trunk, router = family
    (config,) = METHOD_CASES[name]
    actor = make_actor(trunk, (config,), seed=4, strength=STRENGTH)
    merged = copy.deepcopy(trunk)
    for table in merged.modules():
        if isinstance(
            table, nn.Embedding
        ):  # one table for two stacks, each with a change of its own
            table.weight = nn.Parameter(table.weight.detach().clone(), requires_grad=False)
    placeless: list[tuple[nn.Module, torch.Tensor]] = []
    for site in sites_of(trunk, config):
        module = merged.get_submodule(site.path)
        found = METHODS[config.type].dense(
            trunk.get_submodule(site.path), site, config, actor.sites[site.path][config.type]
        )
        assert found is not None
        if "bias" in found and getattr(module, "bias", None) is None:
            if not isinstance(module, nn.Linear):
                # An RMSNorm has no place for a bias: what would be merged is added behind it.
                placeless.append((module, found.pop("bias")))
            else:
                module.bias = nn.Parameter(
                    torch.zeros(module.out_features, device=module.weight.device),
                    requires_grad=False,
                )
        for part, value in found.items():
            turned = value.T if part == "weight" and isinstance(module, Conv1D) else value
            getattr(module, part).data.add_(turned)
    for module in merged.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    for module, bias in placeless:
        module.register_forward_hook(lambda _module, _args, y, bias=bias: y + bias)
    ids = random_ids(2, 6)
    with torch.no_grad():
        ours = hidden(trunk, router, ids, [actor] * 2)
        theirs = read(merged, ids)
    assert torch.allclose(ours, theirs, atol=5e-5)


@pytest.mark.parametrize("layers", [(1,), LastLayers(last=1)])
def test_layers_choose(family: tuple[str, nn.Module, Router], layers: object) -> None:
    kind, trunk, _ = family
    for configs in cases_of(kind).values():
        for config in configs:
            chosen = sites_of(trunk, config.model_copy(update={"layers": layers}))
            assert chosen
            assert {site.layer for site in chosen} == {1}
    config = LoraConfig(layers=FirstLayers(first=1))
    assert {site.layer for site in sites_of(trunk, config)} == {0}


def test_kept_sites_are_those_of_a_walk(family: tuple[str, nn.Module, Router]) -> None:
    kind, trunk, _ = family
    kept = copy.deepcopy(trunk)
    keep_sites(kept)
    for configs in cases_of(kind).values():
        for config in configs:
            assert list(sites_of(kept, config)) == list(sites_of(trunk, config))
    for module in list(kept.modules()):  # what is kept is not looked for again
        module._modules.clear()
    assert list(linear_sites(kept)) == list(linear_sites(trunk))
    assert list(norm_sites(kept)) == list(norm_sites(trunk))


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(layers=(0, 2)),
        BitfitConfig(layers=LastLayers(last=3)),
        Ia3Config(layers=(5,)),
        NormConfig(layers=FirstLayers(first=9)),
        BottleneckConfig(layers=(2,)),
        MaskConfig(targets=("nowhere",)),
        LoraConfig(alpha_pattern={"nowhere": 3}),
    ],
)
def test_what_covers_nothing_is_an_error(
    family: tuple[str, nn.Module, Router], config: MethodConfig
) -> None:
    with pytest.raises(ConfigError) as caught:
        sites_of(family[1], config)
    assert caught.value.code == "no_such_site"


def test_bitfit_takes_existing_biases_only_or_all(family: tuple[str, nn.Module, Router]) -> None:
    name, trunk, _ = family
    if name in ("llama", "t5"):
        with pytest.raises(ConfigError):
            sites_of(trunk, BitfitConfig(biases="existing"))
        assert {s.kind for s in sites_of(trunk, BitfitConfig())} == {"linear", "norm"}
        return
    with_norms = sites_of(trunk, BitfitConfig(biases="existing"))
    assert sum(site.out_features for site in with_norms) == sum(
        weight.numel() for n, weight in trunk.named_parameters() if n.endswith("bias")
    )
    assert {s.kind for s in sites_of(trunk, BitfitConfig(norms=False))} == {"linear"}


def answer_with_biases(
    trunk: nn.Module, router: Router, config: BitfitConfig, added: Mapping[str, Tensor]
) -> Tensor:
    """Hidden states under these biases and zeros elsewhere."""
    actor = make_actor(trunk, (config,), seed=1, strength=0)
    for path, bias in added.items():
        actor.sites[path]["bitfit"]["bias"].add_(bias)
    return hidden(trunk, router, random_ids(2, 7), [actor] * 2)


def test_biases_that_bitfit_leaves_out_do_nothing_of_their_own(
    family: tuple[str, nn.Module, Router],
) -> None:
    """A bias of keys changes no answer, one of values no more than the bias it turns into."""
    name, trunk, router = family
    everything = BitfitConfig(biases="existing" if name not in ("llama", "t5") else "all")
    left_out = {site.path for site in sites_of(trunk, everything)}
    left_out -= {site.path for site in sites_of(trunk, BitfitConfig())}
    keys, values = IDLE_BIASES[name]
    assert {path.rsplit(".", 1)[-1] for path in left_out} == {*keys, *values}
    answer = partial(answer_with_biases, trunk, router, everything)

    with torch.no_grad():
        plain = answer({})
        for path in left_out:
            module, ending = trunk.get_submodule(path), path.rsplit(".", 1)[-1]
            bias = torch.randn(module.out_features, device=DEVICE)
            if ending in keys:
                assert torch.allclose(answer({path: bias}), plain, atol=ATOL), path
            elif name != "llama":  # there one head of values serves several of queries
                output = path.removesuffix(VALUE_PATHS[name][0]) + VALUE_PATHS[name][1]
                moved = trunk.get_submodule(output).weight @ bias
                assert not torch.allclose(answer({path: bias}), plain, atol=1e-3)
                assert torch.allclose(answer({path: bias}), answer({output: moved}), atol=ATOL)


def test_lean_biases_leave_out_norms_and_half_of_a_gated_ffn() -> None:
    trunk = make_trunk("llama")
    lean = sites_of(trunk, BitfitConfig(biases="lean"))
    linears = {site.path.rsplit(".", 1)[-1] for site in lean if site.kind == "linear"}
    assert linears == {"q_proj", "k_proj", "o_proj", "gate_proj", "down_proj"}
    assert [site.path for site in lean if site.kind == "norm"] == ["norm"]
    assert all(
        s.kind == "linear" for s in sites_of(trunk, BitfitConfig(biases="lean", norms=False))
    )


@pytest.mark.parametrize(
    ("norm", "readers"),
    [
        ("input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        ("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ],
)
def test_the_bias_of_a_norm_does_what_those_of_its_readers_do(
    norm: str, readers: tuple[str, ...]
) -> None:
    trunk = make_trunk("llama")
    answer = partial(answer_with_biases, trunk, Router(trunk), BitfitConfig(biases="all"))

    with torch.no_grad():
        layer = "layers.0"
        bias = torch.randn(trunk.get_submodule(f"{layer}.{norm}").weight.numel(), device=DEVICE)
        moved = {
            f"{layer}.{own}": trunk.get_submodule(f"{layer}.{own}").weight @ bias for own in readers
        }
        shifted = answer({f"{layer}.{norm}": bias})
        assert not torch.allclose(shifted, answer({}), atol=1e-3)
        assert torch.allclose(shifted, answer(moved), atol=ATOL)


def test_full_covers_every_weight_of_the_trunk(family: tuple[str, nn.Module, Router]) -> None:
    _, trunk, _ = family
    actor = make_actor(trunk, METHOD_CASES["full"], seed=1, strength=0)
    covered = sum(tensor.numel() for tensor in trained_tensors(actor).values())
    left_out = ("relative_attention", "embed_positions")
    all_ = sum(
        weight.numel()
        for name, weight in trunk.named_parameters(remove_duplicate=False)
        if not any(part in name for part in left_out)
    )
    assert covered == all_


def test_bases_with_unknown_names_are_refused_by_methods_that_need_them() -> None:
    odd = nn.ModuleDict({"layer": nn.ModuleList([nn.ModuleDict({"mixer": nn.Linear(4, 4)})])})
    for config in (Ia3Config(), BottleneckConfig()):
        with pytest.raises(ConfigError, match="it has mixer") as caught:
            sites_of(odd, config)
        assert caught.value.code == "no_such_site"
    assert len(sites_of(odd, LoraConfig())) == 1


def test_the_order_is_fixed_and_names_every_method() -> None:
    assert set(ORDER) | {"head-only"} == set(METHODS)
    assert ORDER.index("mask") < ORDER.index("lora") < ORDER.index("ia3") < ORDER.index("bitfit")
    assert ORDER[-1] == "bottleneck"
    assert METHODS["head-only"].sites(nn.Linear(2, 2), HeadOnlyConfig()) == ()


def test_deltas_that_answer_compute_what_they_compute_in_training(
    family: tuple[str, nn.Module, Router],
) -> None:
    """In serving products add where they are written, and sites write over one tensor in turn."""
    kind, trunk, router = family
    answering = [
        make_actor(trunk, configs, seed=seed, strength=STRENGTH)
        for seed, configs in enumerate(cases_of(kind).values())
    ]
    learning = [Actor(actor.configs, actor.sites, {}) for actor in answering]
    ids = random_ids(2 * len(answering) + 1, 6)
    with torch.no_grad():
        for own, other in zip(answering, learning, strict=True):
            found, expected = (
                hidden(trunk, router, ids[:3], [one, None, one]) for one in (own, other)
            )
            assert torch.allclose(found, expected, atol=ATOL)
        found, expected = (
            hidden(trunk, router, ids, [*actors, None, *actors]) for actors in (answering, learning)
        )
        assert torch.allclose(found, expected, atol=ATOL)


def test_a_pre_hook_never_writes_into_what_it_was_given() -> None:
    trunk = make_trunk("bert")
    for configs in ((Ia3Config(),), (BottleneckConfig(),), (BottleneckConfig(variant="parallel"),)):
        (config,) = configs
        actor = make_actor(trunk, configs, seed=1, strength=0.5)
        for site in sites_of(trunk, config):
            _assert_unwritten(trunk, actor, site, config.type)


def _assert_unwritten(trunk: nn.Module, actor: Actor, site: Site, method: str) -> None:
    from peft_engine.parts.segments import Segments
    from peft_engine.parts.sites import split_path

    width = 48 if "output.dense" in site.path else 32
    x = torch.randn(5, 3, width, device=DEVICE)
    before = x.clone()
    segments = Segments((actor.segment(site.path, method, 1, 3),), rows=5)
    module = trunk.get_submodule(split_path(site.path)[0])
    with torch.no_grad():
        changed = METHODS[method].pre(module, segments, x)
    assert torch.equal(x, before)
    assert torch.equal(changed[3:], x[3:])
    assert torch.equal(changed[:1], x[:1])


def test_an_overflow_in_one_delta_reaches_no_other_row() -> None:
    """Deltas that share one product are kept apart by overwriting, not by multiplying with zero."""
    trunk = make_trunk("bert")
    router = Router(trunk)
    for name in ("lora", "houlsby"):
        good = [make_actor(trunk, METHOD_CASES[name], seed=s, strength=STRENGTH) for s in (1, 2, 3)]
        huge = make_actor(trunk, METHOD_CASES[name], seed=4, strength=1e30)
        ids = random_ids(5, 2)
        with torch.no_grad():
            mixed = hidden(trunk, router, ids, [*good, huge, None])
            assert not mixed[3].isfinite().all()
            for row, actor in enumerate([*good, None]):
                place = row if actor is not None else 4
                alone = hidden(trunk, router, ids[place : place + 1], [actor])
                assert torch.allclose(mixed[place], alone[0], atol=ATOL)

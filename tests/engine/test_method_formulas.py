"""Each method against its formula written out by hand; against PEFT: ``test_peft_parity``."""

import copy
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu

from peft_engine.configs.methods import (
    BitfitConfig,
    BottleneckConfig,
    FullConfig,
    Ia3Config,
    LoraConfig,
    MaskConfig,
    NormConfig,
)
from peft_engine.methods.lora import Lora
from peft_engine.methods.table import METHODS
from peft_engine.parts import sparse
from peft_engine.parts.norms import normalise
from peft_engine.parts.segments import Segment, Segments
from peft_engine.parts.sites import Site, is_norm
from peft_engine.parts.sparse import Pattern
from peft_engine.plan import Actor
from peft_engine.router import Router
from tests.engine.conftest import DEVICE, random_ids
from tests.engine.method_table import ONE_STACK, hidden, make_actor, make_trunk, trained_tensors

ATOL = 1e-5


def at_one_site(method: str, config: Any, module: nn.Module, params: dict[str, Tensor]) -> Any:
    """``(x, y) -> y'`` for three rows under one delta, ``y`` computed from what ``pre`` gave."""

    def compute(x: Tensor) -> Tensor:
        segments = Segments((Segment(params, config, 0, len(x), path="site"),), rows=len(x))
        inner = METHODS[method].pre(module, segments, x)
        return METHODS[method].post(module, segments, inner, module(inner))

    return compute


# ---- closed forms at one site ----


def test_bitfit_adds_a_bias() -> None:
    module, bias, x = nn.Linear(5, 4), torch.randn(4), torch.randn(3, 6, 5)
    found = at_one_site("bitfit", BitfitConfig(), module, {"bias": bias})(x)
    assert torch.allclose(found, x @ module.weight.T + (module.bias + bias), atol=ATOL)


def test_bitfit_behind_a_layer_norm_is_a_new_bias() -> None:
    module, bias, x = nn.LayerNorm(5), torch.randn(5), torch.randn(3, 6, 5)
    found = at_one_site("bitfit", BitfitConfig(), module, {"bias": bias})(x)
    module.bias.data += bias
    assert torch.allclose(found, module(x), atol=ATOL)


def test_ia3_scales_outputs_and_inputs() -> None:
    module, x = nn.Linear(5, 4), torch.randn(3, 6, 5)
    out, inner = torch.randn(4), torch.randn(5)
    found = at_one_site("ia3", Ia3Config(), module, {"out": out})(x)
    assert torch.allclose(found, out * (x @ module.weight.T + module.bias), atol=ATOL)
    found = at_one_site("ia3", Ia3Config(), module, {"in": inner})(x)
    assert torch.allclose(found, (inner * x) @ module.weight.T + module.bias, atol=ATOL)


def test_ia3_of_a_fused_projection_leaves_queries_alone() -> None:
    module, x, factors = nn.Linear(5, 12), torch.randn(3, 6, 5), torch.randn(8)
    found = at_one_site("ia3", Ia3Config(), module, {"out": factors})(x)
    plain = module(x)
    assert torch.equal(found[..., :4], plain[..., :4])
    assert torch.allclose(found[..., 4:], factors * plain[..., 4:], atol=ATOL)


@pytest.mark.parametrize("gain", [1.0, 1e-8, 0.0])
def test_norm_tuning_needs_no_gain_to_divide_by(gain: float) -> None:
    module, x = nn.LayerNorm(5), torch.randn(3, 6, 5)
    module.weight.data.fill_(gain)
    params = {"weight": torch.randn(5), "bias": torch.randn(5)}
    found = at_one_site("norm", NormConfig(), module, params)(x)
    normal = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    expected = normal * (gain + params["weight"]) + module.bias + params["bias"]
    assert torch.allclose(found, expected, atol=ATOL)


@pytest.mark.parametrize("family", ONE_STACK)
def test_the_normalised_value_times_the_gain_is_what_the_base_computes(family: str) -> None:
    trunk = make_trunk(family)
    norms = [module for module in trunk.modules() if is_norm(module)]
    assert len(norms) >= 4
    for module in norms:
        x = 3 * torch.randn(4, 32, device=DEVICE) + 1
        expected = normalise(module, x) * module.weight + getattr(module, "bias", 0)  # type: ignore[operator]
        assert torch.allclose(module(x), expected, atol=ATOL)


def test_full_is_the_base_with_other_weights() -> None:
    module, x = nn.Linear(5, 4), torch.randn(3, 6, 5)
    params = {"weight": torch.randn(4, 5), "bias": torch.randn(4)}
    found = at_one_site("full", FullConfig(), module, params)(x)
    expected = x @ (module.weight + params["weight"]).T + module.bias + params["bias"]
    assert torch.allclose(found, expected, atol=ATOL)
    table, ids = nn.Embedding(7, 3), torch.tensor([[1, 2], [6, 1]])
    change = torch.randn(7, 3)
    found = at_one_site("full", FullConfig(), table, {"weight": change})(ids)
    assert torch.allclose(found, (table.weight + change)[ids], atol=ATOL)


def test_dora_gives_each_row_a_learned_length() -> None:
    module, x = nn.Linear(5, 4), torch.randn(3, 6, 5)
    config = LoraConfig(r=2, alpha=3, dora=True)
    params = {"A": torch.randn(2, 5), "B": torch.randn(4, 2), "magnitude": torch.randn(4)}
    direction = module.weight + 1.5 * params["B"] @ params["A"]
    length = module.weight.norm(dim=1) + params["magnitude"]
    weight = (length / direction.norm(dim=1)).unsqueeze(1) * direction
    found = at_one_site("lora", config, module, params)(x)
    assert torch.allclose(found, x @ weight.T + module.bias, atol=ATOL)


@pytest.mark.parametrize(("options", "scale"), [({}, 3.0), ({"rslora": True}, 6.0)])
def test_scales_and_patterns_of_lora(options: dict[str, Any], scale: float) -> None:
    config = LoraConfig(
        r=8, alpha=8, rank_pattern={"key": 4, "self.key": 4}, alpha_pattern={"key": 12}, **options
    )
    assert config.scale_at("layer.0.self.key") == pytest.approx(scale)
    assert config.rank_at("layer.0.self.key") == 4
    assert config.rank_at("layer.0.monkey") == 8
    longest = LoraConfig(r=8, rank_pattern={"dense": 2, "attention.output.dense": 3})
    assert longest.rank_at("0.attention.output.dense") == 3
    assert longest.rank_at("0.output.dense") == 2


def test_groups_of_lora_plus_and_lora_fa() -> None:
    plus = Lora().groups(LoraConfig(b_learning_rate_ratio=16))
    assert {group.names: group.learning_rate_scale for group in plus} == {("A",): 1, ("B",): 16}
    assert [group.names for group in Lora().groups(LoraConfig(freeze_a=True))] == [("B",)]
    dora = Lora().groups(LoraConfig(dora=True))
    assert [(group.names, group.decay) for group in dora] == [
        (("A", "B"), True),
        (("magnitude",), False),
    ]


# ---- masks ----


@pytest.mark.parametrize("pattern", ["unstructured", "neuron"])
def test_a_mask_changes_chosen_entries_only(pattern: Any) -> None:
    config = MaskConfig(selection="magnitude", pattern=pattern, density=0.25)
    module, x = nn.Linear(6, 8), torch.randn(3, 5, 6)
    site = Site("site", "linear", 0, 6, 8)
    method = METHODS["mask"]
    params = method.create(module, site, config, torch.Generator().manual_seed(0))
    params["values"] = torch.randn_like(params["values"])
    change = torch.zeros(8, 6)
    if pattern == "neuron":
        chosen = module.weight.abs().sum(1).topk(2).indices.sort().values
        assert torch.equal(params["rows"].long(), chosen)
        change[chosen] = params["values"]
    else:
        chosen = module.weight.detach().abs().reshape(-1).topk(12).indices.sort().values
        assert torch.equal(params["indices"].long(), chosen)
        change.view(-1)[chosen] = params["values"]
    found = at_one_site("mask", config, module, params)(x)
    assert torch.allclose(found, x @ (module.weight + change).T + module.bias, atol=ATOL)


@pytest.mark.parametrize(
    ("dense", "library"),
    [(False, True), (False, False), (True, False)],
    ids=["library", "gathered", "dense"],
)
@pytest.mark.parametrize("tokens", [1, 127, 300])
def test_sparse_products_and_their_gradients(
    tokens: int, dense: bool, library: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without a library that samples products, across the borders of chunks."""
    if not library:
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    indices = torch.randperm(30 * 20)[:40].sort().values.int()
    values = torch.randn(40, requires_grad=True)
    x = torch.randn(tokens, 20, requires_grad=True)
    found = sparse.SparseLinear.apply(x, values, Pattern.of(indices, (30, 20)), dense)
    gradient = torch.randn_like(found)
    ours = torch.autograd.grad(found, [x, values], gradient)
    matrix = torch.zeros(600).index_copy(0, indices.long(), values).view(30, 20)
    expected = x @ matrix.T
    theirs = torch.autograd.grad(expected, [x, values], gradient)
    assert torch.allclose(found, expected, atol=ATOL)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("dense", [False, True])
def test_sparse_products_pass_the_check_of_gradients(dense: bool) -> None:
    indices = torch.tensor([1, 5, 6, 19], dtype=torch.int32)
    pattern = Pattern.of(indices, (4, 5))
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    values = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda a, b: sparse.SparseLinear.apply(a, b, pattern, dense), (x, values)
    )


@pytest.mark.parametrize(
    "indices", [[0, 0, 3], [3, 1, 5], [-1, 2, 3], [0, 1, 20]], ids=["twice", "order", "low", "high"]
)
def test_indices_that_make_no_sense_are_seen(indices: list[int]) -> None:
    from peft_engine.methods.mask import Mask

    site = Site("site", "linear", 0, 5, 4)
    assert not Mask().check(site, {"indices": torch.tensor(indices, dtype=torch.int32)})
    assert Mask().check(site, {"indices": torch.tensor([0, 1, 19], dtype=torch.int32)})


# ---- bottlenecks: the formulas of AdapterHub, as forwards of the blocks themselves ----

Adapter = Callable[[Tensor], Tensor]


def adapters_of(actor: Actor, config: BottleneckConfig) -> Iterator[Adapter]:
    """``s · up(act(down(h)))`` of each site in turn."""
    act = {"houlsby": silu, "pfeiffer": relu, "parallel": relu}[config.variant]
    scale = 4.0 if config.variant == "parallel" else 1.0
    for methods in actor.sites.values():
        own = methods["bottleneck"]

        def adapter(h: Tensor, own: Any = own) -> Tensor:
            low = act(h @ own["down"].T + own["down_bias"])
            return scale * (low @ own["up"].T + own["up_bias"])

        yield adapter


def bert_like(block: nn.Module, adapter: Adapter, variant: str) -> None:
    """Replace the forward of a BERT output block, ``LN(dense(x) + res)``."""

    def forward(self: Any, x: Tensor, res: Tensor) -> Tensor:
        h = self.dense(x)
        if variant == "houlsby":
            found = self.LayerNorm(h + adapter(h) + res)
        elif variant == "pfeiffer":
            found = self.LayerNorm(h + adapter(self.LayerNorm(h + res)) + res)
        else:
            found = self.LayerNorm(h + adapter(res) + res)
        return found  # type: ignore[no-any-return]

    block.forward = MethodType(forward, block)


def distilbert_layer(layer: Any, ffn: Adapter, attention: Adapter | None, variant: str) -> None:
    def forward(self: Any, x: Tensor, attention_mask: Any = None, **kwargs: Any) -> Tensor:
        h, _ = self.attention(x, attention_mask=attention_mask, **kwargs)
        h = h if attention is None else h + attention(h)
        res = self.sa_layer_norm(h + x)
        h = self.ffn(res)
        norm = self.output_layer_norm
        source = {"houlsby": h, "pfeiffer": norm(h + res), "parallel": res}[variant]
        return norm(h + ffn(source) + res)  # type: ignore[no-any-return]

    layer.forward = MethodType(forward, layer)


def pre_norm_block(block: nn.Module, adapter: Adapter, variant: str) -> None:
    """An attention or an FFN whose output is added to the residual stream as it is."""
    plain = block.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = plain(*args, **kwargs)
        h = found[0] if isinstance(found, tuple) else found
        h = h + adapter(args[0] if variant == "parallel" else h)
        return (h, *found[1:]) if isinstance(found, tuple) else h

    block.forward = MethodType(forward, block)


def patch(family: str, trunk: Any, adapters: list[Adapter], variant: str) -> None:
    """Put adapters in by hand: those of attention first, as the sites are ordered."""
    layers = {
        "bert": lambda: trunk.encoder.layer,
        "roberta": lambda: trunk.encoder.layer,
        "distilbert": lambda: trunk.transformer.layer,
        "llama": lambda: trunk.layers,
        "gpt2": lambda: trunk.h,
        "t5 encoder": lambda: trunk.encoder.block,
    }[family]()
    attention = adapters[:2] if variant == "houlsby" else [None, None]
    for layer, ffn, own in zip(layers, adapters[-2:], attention, strict=True):
        if family == "distilbert":
            distilbert_layer(layer, ffn, own, variant)
        elif family in ("bert", "roberta"):
            bert_like(layer.output, ffn, variant)
            if own is not None:
                bert_like(layer.attention.output, own, variant)
        else:
            block = layer.layer[1].DenseReluDense if family == "t5 encoder" else layer.mlp
            pre_norm_block(block, ffn, variant)
            if own is not None:
                block = layer.layer[0].SelfAttention if family == "t5 encoder" else None
                block = block or getattr(layer, "self_attn", None) or layer.attn
                pre_norm_block(block, own, variant)


@pytest.mark.parametrize("family", ONE_STACK)
@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer", "parallel"])
def test_bottlenecks_follow_the_formulas_of_adapterhub(family: str, variant: Any) -> None:
    trunk = make_trunk(family)
    by_hand = copy.deepcopy(trunk)
    config = BottleneckConfig(variant=variant)
    actor = make_actor(trunk, (config,), seed=5, strength=0.1)
    patch(family, by_hand, list(adapters_of(actor, config)), variant)
    ids = random_ids(3, 7)
    own = trained_tensors(actor)
    for tensor in own.values():
        tensor.requires_grad_()
    ours = hidden(trunk, Router(trunk), ids, [Actor(actor.configs, actor.sites, {})] * 3)
    theirs = by_hand(input_ids=ids).last_hidden_state
    with torch.no_grad():
        plain = trunk(input_ids=ids).last_hidden_state
    assert (ours - plain).abs().max() > 1e-2
    assert torch.allclose(ours, theirs, atol=ATOL)
    weights = torch.linspace(-1, 1, 32, device=DEVICE)
    found = [torch.autograd.grad((o * weights).sum(), list(own.values())) for o in (ours, theirs)]
    for one, other in zip(*found, strict=True):
        limit = ATOL * max(1.0, float(other.abs().max()))
        assert torch.allclose(one, other, atol=limit, rtol=1e-4)


def test_widths_of_bottlenecks_are_those_of_adapterhub() -> None:
    assert BottleneckConfig(variant="houlsby").width(768) == 48
    assert BottleneckConfig(variant="parallel").width(768) == 384
    assert BottleneckConfig(reduction=12).width(768) == 64
    assert BottleneckConfig(size=5).width(768) == 5
    assert BottleneckConfig().width(8) == 1

"""Prefixes against their formula, against PEFT, and in every way that attention is computed."""

import copy
from typing import Any

import pytest
import torch
from peft import PrefixTuningConfig as PeftPrefixConfig
from peft import get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import (
    BartConfig,
    BartModel,
    DebertaV2Config,
    DebertaV2Model,
    DynamicCache,
    GPT2Config,
    GPT2Model,
    MPNetConfig,
    MPNetModel,
    T5Config,
    T5Model,
)

from peft_engine.bases.base import Base
from peft_engine.configs.methods import PrefixConfig
from peft_engine.errors import ConfigError
from peft_engine.generation import Sampling, generate
from peft_engine.parts.sites import ATTENTION
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from tests.engine.conftest import DEVICE, make_delta, random_ids
from tests.engine.method_table import hidden, make_actor, make_trunk, sites_of
from tests.engine.test_decoding import PROMPTS, alone, decoder_of, row_of, write

ATOL = 1e-5
GATED, CLASSIC = PrefixConfig(length=5), PrefixConfig(length=5, gate="none")
BOTH = pytest.mark.parametrize("config", [GATED, CLASSIC], ids=["gated", "classic"])
FAMILIES = ("bert", "roberta", "distilbert", "llama", "gpt2", "t5 encoder")
PEFT_WARNS = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")


def plain(trunk: nn.Module, ids: Tensor) -> Tensor:
    found: Tensor = trunk(input_ids=ids).last_hidden_state
    return found


# ---- the formula ----


def attention_by_hand(
    query: Tensor, key: Tensor, value: Tensor, own: dict[str, Tensor], *, scaling: float
) -> Tensor:
    """(B, Q, H, d), row by row, head by head and query by query; causal where Q = K > 1."""
    rows, heads, queries, width = query.shape
    shared = heads // key.shape[1]
    y = torch.zeros(rows, queries, heads, width)
    for row in range(rows):
        for head in range(heads):
            keys, values = key[row, head // shared], value[row, head // shared]
            prefix, content = own["keys"][head // shared], own["values"][head // shared]
            for place in range(queries):
                scores = keys[: place + 1] @ query[row, head, place] * scaling
                at_prefix = prefix @ query[row, head, place] * scaling
                tokens = scores.softmax(0) @ values[: place + 1]
                if "gate" in own:
                    y[row, place, head] = tokens + own["gate"][head] * (
                        at_prefix.softmax(0) @ content
                    )
                else:
                    share = at_prefix.exp().sum() / (at_prefix.exp().sum() + scores.exp().sum())
                    y[row, place, head] = (1 - share) * tokens
                    y[row, place, head] += share * (at_prefix.softmax(0) @ content)
    return y


@BOTH
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_layer_computes_the_formula(config: PrefixConfig, attention: str) -> None:
    """Grouped keys, rotated queries, a causal mask: what reaches o_proj is the sum by hand."""
    trunk = make_trunk("llama").cpu()
    trunk.set_attn_implementation(attention)
    seen: dict[str, Tensor] = {}
    layer = trunk.get_submodule("layers.0.self_attn")
    layer.o_proj.register_forward_pre_hook(lambda _, args: seen.update(y=args[0]))  # type: ignore[union-attr]
    actor = make_actor(trunk, (config,), seed=1, strength=0.5)
    actor = Actor(actor.configs, _on_cpu(actor), {})
    ids = random_ids(2, 4).cpu()
    cache = DynamicCache()
    with torch.no_grad(), Router(trunk).use(Plan.build([actor] * 2)):
        embedded = trunk.get_input_embeddings()(ids)  # type: ignore[operator]
        normal = trunk.get_submodule("layers.0.input_layernorm")(embedded)
        query = layer.q_proj(normal).view(2, 4, 4, 8).transpose(1, 2)  # type: ignore[operator]
        positions = torch.arange(4).unsqueeze(0)
        cos, sin = trunk.rotary_emb(embedded, positions)  # type: ignore[operator]
        turned = torch.cat([-query[..., 4:], query[..., :4]], -1)
        query = query * cos.unsqueeze(1) + turned * sin.unsqueeze(1)
        trunk(input_ids=ids, past_key_values=cache, use_cache=True)
    own = actor.sites[f"layers.0.self_attn{ATTENTION}"]["prefix"]
    key, value = cache.layers[0].keys, cache.layers[0].values
    assert key is not None
    assert value is not None
    assert key.shape == (2, 2, 4, 8)  # the prefix is not in the cache
    expected = attention_by_hand(query, key, value, dict(own), scaling=8**-0.5)
    assert torch.allclose(seen["y"], expected.flatten(2), atol=ATOL)


def _on_cpu(actor: Actor) -> dict[str, dict[str, dict[str, Tensor]]]:
    return {
        path: {m: {n: t.cpu() for n, t in own.items()} for m, own in methods.items()}
        for path, methods in actor.sites.items()
    }


# ---- parity with PEFT ----


def fill_peft(theirs: nn.Module, actor: Actor) -> None:
    """Our keys and values as ``prompt_embeddings`` (P, layers · 2 · G · d), layer by layer."""
    columns = []
    for methods in actor.sites.values():
        own = methods["prefix"]
        columns += [t.transpose(0, 1).flatten(1) for t in (own["keys"], own["values"])]
    weight = theirs.prompt_encoder["default"].embedding.weight  # type: ignore[index,union-attr]
    with torch.no_grad():
        weight.copy_(torch.cat(columns, dim=1))


@PEFT_WARNS
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_classic_prefixes_are_those_of_peft(family: str) -> None:
    """PEFT counts positions from behind the prefix, so that ours are shifted for the comparison."""
    trunk = make_trunk(family)
    theirs = copy.deepcopy(trunk)
    actor = make_actor(trunk, (CLASSIC,), seed=2, strength=0.5)
    theirs = get_peft_model(
        theirs, PeftPrefixConfig(num_virtual_tokens=5, task_type="FEATURE_EXTRACTION")
    ).eval()
    fill_peft(theirs, actor)
    ids, weights = random_ids(3, 6), torch.linspace(-1, 1, 32, device=DEVICE)
    leaves = [t.requires_grad_() for m in actor.sites.values() for t in m["prefix"].values()]
    actor = Actor(actor.configs, actor.sites, {})
    positions = torch.arange(5, 11, device=DEVICE).expand(3, -1)
    with Router(trunk).use(Plan.build([actor] * 3)):
        ours = trunk(input_ids=ids, position_ids=positions).last_hidden_state
    found = theirs(input_ids=ids).last_hidden_state
    assert (ours - plain(trunk, ids)).abs().max() > 1e-2
    assert torch.allclose(ours, found, atol=ATOL)
    (ours * weights).sum().backward()
    (found * weights).sum().backward()
    gradient = theirs.prompt_encoder["default"].embedding.weight.grad
    own = torch.cat(
        [leaf.grad.transpose(0, 1).flatten(1) for leaf in leaves if leaf.grad is not None], 1
    )
    assert torch.allclose(own, gradient, atol=ATOL, rtol=1e-4)


@PEFT_WARNS
def test_on_rotating_bases_turned_keys_take_the_place_of_shifted_positions() -> None:
    """How a file of PEFT is taken over exactly: its keys, turned back by the prefix's length."""
    trunk = make_trunk("llama")
    theirs = get_peft_model(
        copy.deepcopy(trunk),
        PeftPrefixConfig(num_virtual_tokens=5, task_type="FEATURE_EXTRACTION"),
    ).eval()
    actor = make_actor(trunk, (CLASSIC,), seed=2, strength=0.5)
    fill_peft(theirs, actor)
    ids, where = random_ids(3, 6), torch.tensor([[5]], device=DEVICE)
    with torch.no_grad():
        cos, sin = trunk.rotary_emb(ids.float(), where)  # type: ignore[operator]
        for methods in actor.sites.values():
            keys = methods["prefix"]["keys"]
            turned = torch.cat([keys[..., 4:], -keys[..., :4]], -1)
            keys.copy_(keys * cos + turned * sin)
        ours = hidden(trunk, Router(trunk), ids, [actor] * 3)
        assert torch.allclose(ours, theirs(input_ids=ids).last_hidden_state, atol=ATOL)


# ---- every way that attention is computed ----


@BOTH
@pytest.mark.parametrize("family", FAMILIES)
def test_eager_and_fused_attention_agree(family: str, config: PrefixConfig) -> None:
    fused, eager = make_trunk(family), make_trunk(family)
    eager.set_attn_implementation("eager")  # type: ignore[operator]
    actor = make_actor(fused, (config,), seed=3, strength=0.3)
    ids = random_ids(3, 7)
    with torch.no_grad():
        found = [hidden(t, Router(t), ids, [actor, None, actor]) for t in (fused, eager)]
    assert torch.allclose(*found, atol=ATOL)
    assert (found[0][0] - plain(fused, ids)[0]).abs().max() > 1e-2


@BOTH
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_padding_changes_nothing(family: str, config: PrefixConfig) -> None:
    trunk = make_trunk(family)
    router, actor = Router(trunk), make_actor(trunk, (config,), seed=3, strength=0.3)
    ids = random_ids(2, 7)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    with torch.no_grad():
        with router.use(Plan.build([actor, None])):
            padded = trunk(input_ids=ids, attention_mask=mask).last_hidden_state
        with router.use(Plan.build([actor])):
            alone = trunk(input_ids=ids[:1, :4]).last_hidden_state
    assert torch.allclose(padded[0, :4], alone[0], atol=ATOL)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_plan_nothing_is_there(family: str) -> None:
    """Bit by bit, with a plan of another method and with rows of no prefix too."""
    trunk = make_trunk(family)
    ids = random_ids(4, 6)
    with torch.no_grad():
        before = plain(trunk, ids)
        router = Router(trunk)
        actors = [make_actor(trunk, (c,), seed=4, strength=0.3) for c in (GATED, CLASSIC)]
        with router.use(Plan.build([*actors, None, None])):
            mixed = plain(trunk, ids)
        assert torch.equal(plain(trunk, ids), before)
        assert torch.equal(mixed[2:], before[2:])
        assert not torch.allclose(mixed[:2], before[:2], atol=1e-2)


def test_many_short_rows_share_one_product() -> None:
    """Gated prefixes of unequal lengths in one product, rows without one among them."""
    for family in ("llama", "bert"):
        trunk = make_trunk(family)
        router = Router(trunk)
        actors: list[Actor | None] = [
            make_actor(trunk, (PrefixConfig(length=length),), seed=length, strength=0.3)
            for length in (1, 3, 4, 9)
        ]
        lora = make_actor(trunk, (), seed=1, strength=0.3)
        rows = [actors[0], lora, actors[1], None, *actors, actors[2]]
        ids = random_ids(len(rows), 1)
        with torch.no_grad():
            mixed = hidden(trunk, router, ids, rows)
            for place, actor in enumerate(rows):
                alone = hidden(trunk, router, ids[place : place + 1], [actor])
                assert torch.allclose(mixed[place], alone[0], atol=ATOL)


@pytest.mark.parametrize("base_name", ["llama", "gpt2"])
def test_decoding_with_a_cache_is_reading_the_whole(
    base_name: str, request: pytest.FixtureRequest
) -> None:
    """Prompts of unequal lengths, both kinds and plain rows, one token at a time."""
    base: Base = request.getfixturevalue(base_name)
    deltas = [make_delta(base, seed=s, config=c) for s, c in ((1, GATED), (2, CLASSIC))]
    first, second = (Actor.of(delta) for delta in deltas)
    plan = Plan.build([first, first, second, second, None])
    generator = torch.Generator().manual_seed(3)
    prompts = [torch.randint(5, 200, (n,), generator=generator).tolist() for n in (3, 7, 5, 2, 4)]
    router = Router(base.trunk)
    with router.use(plan):
        found = generate(base, prompts, [Sampling(max_new_tokens=6)] * 5)
    for actor, prompt, row in zip(
        [first, first, second, second, None], prompts, found, strict=True
    ):
        whole = torch.tensor([[*prompt, *row.ids]], device=base.device)
        with torch.no_grad(), router.use(Plan.build([actor])):
            states = base.trunk(input_ids=whole, use_cache=False).last_hidden_state
        chosen = base.vocabulary_logits(states[0, len(prompt) - 1 : -1]).argmax(-1)
        assert chosen.tolist() == row.ids


def test_rows_of_the_decoding_batch_write_what_they_write_alone(llama: Base) -> None:
    """Both kinds and the base, more rows than slots: the cache is shared and rows move in it."""
    owners: list[Actor | None] = [
        Actor.of(make_delta(llama, seed=seed, config=config, strength=0.5))
        for seed, config in ((1, GATED), (2, CLASSIC), (3, PrefixConfig(length=2)))
    ]
    owners.append(None)
    rows = [
        row_of(llama, PROMPTS[number % 5], owners[number % 4], max_new_tokens=3 + number)
        for number in range(8)
    ]
    write(decoder_of(llama), *rows)
    for row in rows:
        expected = alone(llama, row.prompt, row.owner, max_new_tokens=row.sampling.max_new_tokens)
        assert row.ids == expected.ids
    plain_ids = alone(llama, rows[4].prompt, max_new_tokens=7).ids
    assert rows[4].ids != plain_ids


def encoder_decoder(family: str) -> nn.Module:
    torch.manual_seed(5)
    if family == "t5":
        config = T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
        trunk: nn.Module = T5Model(config)
    else:
        widths = {
            f"{side}_{name}": value
            for side in ("encoder", "decoder")
            for name, value in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
        }
        trunk = BartModel(BartConfig(vocab_size=40, d_model=32, init_std=0.3, **widths))
    return trunk.requires_grad_(False).eval().to(DEVICE)


@BOTH
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_self_attention_of_encoder_and_decoder(family: str, config: PrefixConfig) -> None:
    trunk = encoder_decoder(family)
    sites = sites_of(trunk, config)
    assert len(sites) == 4  # two layers on both sides, no cross-attention
    router, actor = Router(trunk), make_actor(trunk, (config,), seed=1, strength=0.3)
    ids, answers = random_ids(3, 6), random_ids(3, 5, seed=1)
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": answers}
    with torch.no_grad():
        before = trunk(**inputs).last_hidden_state
        with router.use(Plan.build([actor, actor, None])):
            mixed = trunk(**inputs).last_hidden_state
            # what comes later is not seen: the mask survives the prefix
            shorter = trunk(**(inputs | {"decoder_input_ids": answers[:, :3]})).last_hidden_state
        with router.use(Plan.build([actor])):
            alone = trunk(**{n: v[1:2] for n, v in inputs.items()}).last_hidden_state
    assert torch.equal(mixed[2], before[2])
    assert (mixed[:2] - before[:2]).abs().max() > 1e-2
    assert torch.allclose(mixed[:, :3], shorter, atol=ATOL)
    assert torch.allclose(mixed[1], alone[0], atol=ATOL)


@BOTH
def test_gradients_under_checkpointing_are_the_same(llama: Base, config: PrefixConfig) -> None:
    ids = random_ids(2, 6)

    def gradients(*, checkpointed: bool) -> dict[str, Any]:
        delta = make_delta(llama, seed=4, config=config)
        for tensor in delta.tensors.values():
            tensor.requires_grad_()
        embedded = llama.trunk.get_input_embeddings()(ids).requires_grad_()  # type: ignore[operator]

        def forward(x: Tensor) -> Tensor:
            found: Tensor = llama.trunk(inputs_embeds=x, use_cache=False).last_hidden_state
            return found

        with Router(llama.trunk).use(Plan.build([Actor.of(delta)] * 2)):
            out = (
                checkpoint(forward, embedded, use_reentrant=False)
                if checkpointed
                else forward(embedded)
            )
            out.square().sum().backward()
        return {n: t.grad for n, t in delta.tensors.items()}

    once, again = gradients(checkpointed=False), gradients(checkpointed=True)
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_only_the_routed_modules_get_a_configuration_of_their_own() -> None:
    trunk = make_trunk("bert")
    config = PrefixConfig(layers=(1,))
    actor = make_actor(trunk, (config,), seed=1, strength=0.3)
    with Router(trunk).use(Plan.build([actor])):
        pass
    first, second = (layer.attention.self for layer in trunk.encoder.layer)  # type: ignore[union-attr]
    assert first.config is trunk.config
    assert second.config is not trunk.config
    assert trunk.config._attn_implementation == "sdpa"  # type: ignore[union-attr]


# ---- what cannot be reached is refused ----


def test_bases_whose_attention_cannot_be_reached_are_refused() -> None:
    small = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    trunks = (
        MPNetModel(MPNetConfig(**small, intermediate_size=48)),
        DebertaV2Model(DebertaV2Config(**small, intermediate_size=48)),
    )
    for trunk in trunks:
        with pytest.raises(ConfigError, match="by itself") as caught:
            sites_of(trunk, GATED)
        assert caught.value.code == "no_such_site"
    with pytest.raises(ConfigError) as caught:
        sites_of(nn.ModuleDict({"layer": nn.ModuleList([nn.Linear(4, 4)])}), GATED)
    assert caught.value.code == "no_such_site"


def test_a_gpt2_that_upcasts_on_its_own_way_is_refused() -> None:
    config = GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=4, reorder_and_upcast_attn=True)
    trunk = GPT2Model(config)
    assert sites_of(trunk, GATED)  # fused attention does not take that way
    trunk.set_attn_implementation("eager")
    with pytest.raises(ConfigError):
        sites_of(trunk, GATED)


def test_shapes_follow_the_heads_that_have_keys() -> None:
    trunk = make_trunk("llama")
    (site, *_) = sites_of(trunk, GATED)
    assert site.path == f"layers.0.self_attn{ATTENTION}"
    own = make_actor(trunk, (GATED,), seed=1, strength=0).sites[site.path]["prefix"]
    assert {n: tuple(t.shape) for n, t in own.items()} == {
        "keys": (2, 5, 8),
        "values": (2, 5, 8),
        "gate": (4,),
    }
    assert not own["gate"].any()

"""Every method, every family of bases: the table that the method tests walk."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from peft_engine.configs.methods import (
    BitfitConfig,
    BottleneckConfig,
    FullConfig,
    Ia3Config,
    LastLayers,
    LoraConfig,
    MaskConfig,
    MethodConfig,
    NormConfig,
    PrefixConfig,
)
from peft_engine.methods.table import METHODS
from peft_engine.parts.sites import Site, split_path
from peft_engine.parts.stacks import TwoStacks
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from tests.engine.conftest import DEVICE

Configs = tuple[MethodConfig, ...]

METHOD_CASES: Mapping[str, Configs] = {
    "lora": (LoraConfig(r=4, alpha=8),),
    "lora last layer": (LoraConfig(r=2, layers=LastLayers(last=1)),),
    "rslora": (LoraConfig(r=4, alpha=2, rslora=True),),
    "dora": (LoraConfig(r=4, alpha=8, dora=True),),
    "lora-fa": (LoraConfig(r=4, alpha=8, freeze_a=True),),
    "houlsby": (BottleneckConfig(variant="houlsby", size=4),),
    "pfeiffer": (BottleneckConfig(variant="pfeiffer", size=3),),
    "pfeiffer gelu": (BottleneckConfig(variant="pfeiffer", size=3, activation="gelu"),),
    "parallel": (BottleneckConfig(variant="parallel", size=4),),
    "learned scale": (BottleneckConfig(variant="parallel", size=4, scaling="learned"),),
    "bitfit": (BitfitConfig(),),
    "bitfit everywhere": (BitfitConfig(biases="all"),),
    "bitfit lean": (BitfitConfig(biases="lean"),),
    "ia3": (Ia3Config(),),
    "norm": (NormConfig(),),
    "mask": (MaskConfig(selection="random", density=0.05),),
    "mask magnitude": (MaskConfig(selection="magnitude", density=0.02),),
    "mask neuron": (MaskConfig(selection="magnitude", pattern="neuron", density=0.1),),
    "prefix": (PrefixConfig(length=5),),
    "longer prefix": (PrefixConfig(length=7),),
    "classic prefix": (PrefixConfig(length=3, gate="none"),),
    "full": (FullConfig(),),
    "lora + bitfit": (LoraConfig(r=2), BitfitConfig()),
    "pfeiffer + mask + norm": (
        BottleneckConfig(variant="pfeiffer", size=3),
        MaskConfig(selection="random", density=0.05),
        NormConfig(),
    ),
    "prefix + lora + ia3": (PrefixConfig(length=4), LoraConfig(r=2), Ia3Config()),
    "ia3 + dora + houlsby + bitfit": (
        Ia3Config(),
        LoraConfig(r=2, dora=True),
        BottleneckConfig(variant="houlsby", size=2),
        BitfitConfig(),
    ),
}

FAMILIES = ("bert", "roberta", "distilbert", "llama", "gpt2", "t5", "bart")

ONE_STACK = ("bert", "roberta", "distilbert", "llama", "gpt2", "t5 encoder")
"""Those that transformers and PEFT can call with nothing but ``input_ids``."""


def cases_of(family: str) -> Mapping[str, Configs]:
    """Every case that a family knows: no module of BART is the whole FFN, as ``parallel`` needs."""
    if family != "bart":
        return METHOD_CASES
    return {
        name: configs
        for name, configs in METHOD_CASES.items()
        if not any(getattr(config, "variant", "") == "parallel" for config in configs)
    }


def make_trunk(family: str) -> nn.Module:
    """Two layers of random weights, 32 wide, biases and gains shaken off zero and one."""
    torch.manual_seed(11)
    small = {"vocab_size": 40, "initializer_range": 0.3}
    bert = small | {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    bert |= {"hidden_size": 32, "max_position_embeddings": 32}
    made: dict[str, nn.Module] = {}
    if family == "bert":
        made[family] = BertModel(BertConfig(**bert), add_pooling_layer=False)
    elif family == "roberta":
        made[family] = RobertaModel(RobertaConfig(**bert), add_pooling_layer=False)
    elif family == "distilbert":
        config = DistilBertConfig(**small, dim=32, n_layers=2, n_heads=4, hidden_dim=48)
        made[family] = DistilBertModel(config)
    elif family == "llama":
        made[family] = LlamaModel(LlamaConfig(**bert, num_key_value_heads=2))
    elif family == "gpt2":
        config = GPT2Config(**small, n_embd=32, n_layer=2, n_head=4, n_positions=32)
        made[family] = GPT2Model(config)
    elif family == "t5 encoder":
        config = T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
        made[family] = T5EncoderModel(config)
    elif family == "t5":
        config = T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)
        t5 = T5Model(config)
        made[family] = TwoStacks(t5.encoder, t5.decoder)
    else:
        config = BartConfig(
            vocab_size=40,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_position_embeddings=32,
            init_std=0.3,
        )
        bart = BartModel(config)
        made[family] = TwoStacks(bart.encoder, bart.decoder)
    trunk = made[family]
    with torch.no_grad():
        for weight in trunk.parameters():
            if weight.dim() == 1:
                weight.add_(0.1 * torch.randn_like(weight))
    return trunk.requires_grad_(False).eval().to(DEVICE)


def make_actor(trunk: nn.Module, configs: Configs, *, seed: int, strength: float) -> Actor:
    """Every method's start values, shaken; ``strength`` 0 leaves them."""
    generator = torch.Generator().manual_seed(seed)
    sites: dict[str, dict[str, dict[str, Tensor]]] = {}
    for config in configs:
        for site in sites_of(trunk, config):
            module = trunk.get_submodule(split_path(site.path)[0])
            params = METHODS[config.type].create(module, site, config, generator)
            for name, value in params.items():
                if value.is_floating_point():
                    noise = torch.randn(value.shape, generator=generator)
                    value = value + strength * noise
                params[name] = value.to(DEVICE)
            sites.setdefault(site.path, {})[config.type] = params
    return Actor({config.type: config for config in configs}, sites, {}, frozen=True)


def trained_tensors(actor: Actor) -> dict[str, Tensor]:
    """What the optimizer would get, by a name."""
    found = {}
    for path, methods in actor.sites.items():
        for method, params in methods.items():
            groups = METHODS[method].groups(actor.configs[method])
            names = {name for group in groups for name in group.names}
            for name in sorted(names & params.keys()):
                found[f"{path}:{method}.{name}"] = params[name]
    return found


def sites_of(trunk: nn.Module, config: MethodConfig) -> Sequence[Site]:
    return METHODS[config.type].sites(trunk, config)


def read(trunk: nn.Module, ids: Tensor) -> Tensor:
    """(B, T, D) hidden states; with two stacks those of a decoder that reads the same rows."""
    if isinstance(trunk, TwoStacks):
        mask = torch.ones_like(ids)
        prompt = trunk.encode(input_ids=ids, attention_mask=mask)
        return trunk.decode(ids, prompt=prompt, prompt_mask=mask)
    found: Tensor = trunk(input_ids=ids).last_hidden_state
    return found


def hidden(trunk: nn.Module, router: Router, ids: Tensor, actors: Sequence[Actor | None]) -> Tensor:
    """(B, T, D) hidden states in the order of the rows as they were given."""
    plan = Plan.build(actors)
    with router.use(plan):
        found = read(trunk, ids[list(plan.order)])
    restored = torch.empty_like(found)
    return restored.index_copy(0, torch.tensor(plan.order, device=found.device), found)

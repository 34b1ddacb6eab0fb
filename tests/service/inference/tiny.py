"""Base models of a few thousand random weights, and deltas for them, made in a second."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import HeadSpec, Manifest
from peft_engine.configs.methods import LoraConfig
from peft_engine.delta import Delta, tensor_name
from peft_engine.methods.table import METHODS

WORDS = ["where", "is", "my", "card", "order", "money", "please", "tell", "me", "about", "a"]
WORDS += ["refund", "lost", "stolen", "late", "new"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CHAT_TOKENS = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def write_tiny_bert(folder: Path, *, seed: int = 0) -> Path:
    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=48,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    BertModel(config).save_pretrained(folder)
    return folder


def write_tiny_llama(folder: Path, *, seed: int = 0) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*CHAT_TOKENS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=CHAT_TOKENS[1:],
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=128,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_delta(
    base: Base, *, seed: int, rank: int = 4, labels: tuple[str, ...] = ("card", "order", "refund")
) -> Delta:
    """A random LoRA strong enough to be told from its neighbours, with a head on an encoder."""
    config = LoraConfig(r=rank, alpha=2.0 * rank)
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        tensor_name(site.path, "lora", name): 0.3 * torch.randn(shape, generator=generator)
        for site in METHODS["lora"].sites(base.trunk, config)
        for name, shape in METHODS["lora"].shapes(site, config).items()
    }
    is_encoder = base.architecture == "encoder"
    if is_encoder:
        shape = (len(labels), base.hidden_size)
        tensors["head:weight"] = torch.randn(shape, generator=generator)
        tensors["head:bias"] = torch.randn(len(labels), generator=generator)
    manifest = Manifest(
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        architecture=base.architecture,
        precision=base.precision,
        task="text-classification" if is_encoder else "text-generation",
        methods=(config,),
        labels=labels if is_encoder else None,
        head=HeadSpec(pooling="mean", normalize=False, scale=1.0) if is_encoder else None,
        template_digest=base.template_digest,
        max_length=base.max_length,
    )
    return Delta.of(tensors, manifest)


def served_bytes(base: Base) -> int:
    """Memory that a process needs for a base: the fast path of writing has its linears twice."""
    if not base.generates:
        return base.bytes
    linears = [m.weight for m in base.model.modules() if isinstance(m, torch.nn.Linear)]
    return base.bytes + sum(weight.nbytes for weight in linears)

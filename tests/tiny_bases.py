"""Base models of a few thousand random weights, written to a folder in a second."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = ["where", "is", "my", "card", "order", "money", "please", "tell", "me", "about", "a"]
WORDS += ["refund", "lost", "stolen", "late", "new"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CHAT_TOKENS = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tiny_bert(
    folder: Path, *, seed: int = 0, layers: int = 2, spread: float = 0.3, types: int = 2
) -> Path:
    """A BERT over sixteen words; pairs are told apart by token types, where it has two."""
    config = BertConfig(
        vocab_size=_write_word_tokenizer(folder),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=48,
        initializer_range=spread,
        type_vocab_size=types,
    )
    torch.manual_seed(seed)
    BertModel(config).save_pretrained(folder)
    return folder


def write_tiny_roberta(folder: Path, *, seed: int = 0, spread: float = 0.3) -> Path:
    """A RoBERTa over the words of the BERT; its first positions are reserved."""
    config = RobertaConfig(
        vocab_size=_write_word_tokenizer(folder),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=50,
        initializer_range=spread,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )
    torch.manual_seed(seed)
    RobertaModel(config).save_pretrained(folder)
    return folder


def write_tiny_distilbert(folder: Path, *, seed: int = 0, spread: float = 0.3) -> Path:
    """A DistilBERT over the words of the BERT."""
    config = DistilBertConfig(
        vocab_size=_write_word_tokenizer(folder),
        dim=32,
        n_layers=2,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=48,
        initializer_range=spread,
    )
    torch.manual_seed(seed)
    DistilBertModel(config).save_pretrained(folder)
    return folder


def write_tiny_model(folder: Path, name: str, **options: Any) -> Path:
    """A base of any class of transformers (``MPNetModel``, ``OPTForCausalLM``).

    Encoders read the words of the BERT, causal bases bytes.
    """
    model_class = getattr(transformers, name)
    if name.endswith("ForCausalLM"):
        _write_byte_tokenizer(folder, chat=False)
        vocabulary = 256 + len(CHAT_TOKENS)
    else:
        vocabulary = _write_word_tokenizer(folder)
    config = model_class.config_class(**_SMALL | {"vocab_size": vocabulary} | options)
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    return folder


_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def _write_word_tokenizer(folder: Path) -> int:
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
    return len(vocabulary)


def write_tiny_llama(
    folder: Path, *, seed: int = 0, chat: bool = True, spread: float = 0.3
) -> Path:
    """A Llama over bytes, with a chat template unless asked otherwise."""
    _write_byte_tokenizer(folder, chat=chat)
    config = LlamaConfig(
        vocab_size=256 + len(CHAT_TOKENS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=256,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def write_tiny_qwen(folder: Path, *, version: int = 2, seed: int = 0) -> Path:
    """A Qwen 2 (biases, tied head) or Qwen 3 (norms of heads, wide heads) over bytes."""
    _write_byte_tokenizer(folder, chat=False)
    model, config_class = {2: (Qwen2ForCausalLM, Qwen2Config), 3: (Qwen3ForCausalLM, Qwen3Config)}[
        version
    ]
    config = config_class(
        vocab_size=256 + len(CHAT_TOKENS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1 if version == 2 else 2,
        head_dim=8 if version == 2 else 12,
        intermediate_size=48,
        max_position_embeddings=256,
        tie_word_embeddings=version == 2,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    made = model(config)
    for name, weight in made.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            weight.data.add_(0.3 * torch.randn_like(weight))
    made.save_pretrained(folder)
    return folder


def write_tiny_gpt2(folder: Path, *, seed: int = 0, spread: float = 0.3) -> Path:
    """A GPT-2 over bytes: its linears are ``Conv1D``."""
    _write_byte_tokenizer(folder, chat=False)
    config = GPT2Config(
        vocab_size=256 + len(CHAT_TOKENS),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def write_tiny_t5(
    folder: Path, *, seed: int = 0, layers: int = 2, gated: bool = False, spread: float = 2.0
) -> Path:
    """A T5 whose decoder has as many layers as its encoder; ``gated`` as Flan-T5 is."""
    vocabulary = _write_piece_tokenizer(folder, single="$A </s>", pair="$A </s> $B </s>")
    config = T5Config(
        vocab_size=vocabulary,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=layers,
        num_heads=4,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
        initializer_factor=spread,
        n_positions=64,
        decoder_start_token_id=0,
    )
    return _save(T5ForConditionalGeneration, config, folder, seed)


def write_tiny_bart(folder: Path, *, family: str = "bart", seed: int = 0) -> Path:
    """A BART or one of its cousins (``mbart``, ``marian``, ``pegasus``): 3 layers read, 2 write."""
    around = {"single": "<s> $A </s>", "pair": "<s> $A </s> </s> $B </s>"}
    around = (
        {"single": "$A </s>", "pair": "$A $B </s>"} if family in ("marian", "pegasus") else around
    )
    vocabulary = _write_piece_tokenizer(folder, **around)
    model, config_class = _BART_LIKE[family]
    config = config_class(
        vocab_size=vocabulary,
        d_model=32,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        init_std=0.3,
        scale_embedding=family != "bart",
        pad_token_id=0,
        bos_token_id=3,
        eos_token_id=1,
        decoder_start_token_id=1 if family in ("bart", "mbart") else 0,
        forced_eos_token_id=None,
    )
    return _save(model, config, folder, seed, forced=5 if family == "mbart" else None)


_BART_LIKE: dict[str, tuple[type[PreTrainedModel], Any]] = {
    "bart": (BartForConditionalGeneration, BartConfig),
    "mbart": (MBartForConditionalGeneration, MBartConfig),
    "marian": (MarianMTModel, MarianConfig),
    "pegasus": (PegasusForConditionalGeneration, PegasusConfig),
}


def _save(
    model_class: Any, config: Any, folder: Path, seed: int, *, forced: int | None = None
) -> Path:
    torch.manual_seed(seed)
    model = model_class(config)
    model.generation_config.forced_bos_token_id = forced
    if hasattr(model, "final_logits_bias"):
        model.final_logits_bias.normal_()
    else:
        # T5's own table is so large that a random one would only repeat what it was given
        model.shared.weight.data.mul_(0.1)
    model.save_pretrained(folder)
    return folder


def _write_piece_tokenizer(folder: Path, *, single: str, pair: str) -> int:
    """Words and single letters as SentencePiece has them, a blank before each word as ``▁``."""
    special = ["<pad>", "</s>", "<unk>", "<s>"]
    letters = [chr(code) for code in range(33, 127)]
    pieces = [(piece, 0.0) for piece in special] + [(f"▁{word}", -1.0) for word in WORDS]
    pieces += [(piece, -9.0) for piece in ("▁", *letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.normalizer = normalizers.Replace("\n", " ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("</s>", 1), ("<s>", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return len(pieces)


def _write_byte_tokenizer(folder: Path, *, chat: bool) -> None:
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
    if chat:
        wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)

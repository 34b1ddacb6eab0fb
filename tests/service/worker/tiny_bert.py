"""A base model made by the test: a random BERT of two layers with a word tokenizer."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = [f"w{index}" for index in range(60)]


def make_tiny_bert(folder: Path) -> Path:
    """Write the model's files; the same ones every time."""
    vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=64,
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(
            BertConfig(
                vocab_size=len(vocabulary),
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
            )
        )
    model.save_pretrained(folder)
    return folder


def make_rows(count: int, *, seed: int) -> list[dict[str, str]]:
    """Rows whose label is told by one of their words."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        words = torch.randint(0, len(_WORDS), (12,), generator=generator).tolist()
        label = "even" if words[0] % 2 == 0 else "odd"
        rows.append({"text": " ".join(f"w{word}" for word in words), "label": label})
    return rows

"""Embeddings of tokens given in their place: the same hidden states, whoever scales them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from peft_engine.bases.base import Base, load_base
from peft_engine.bases.forward import hidden_states, token_embeddings
from peft_engine.parts.batching import Example, TokenRow, collate
from tests import tiny_bases
from tests.engine.derived import derived_from

WRITERS: dict[str, Callable[[Path], Path]] = {
    "bert": tiny_bases.write_tiny_bert,
    "roberta": tiny_bases.write_tiny_roberta,
    "distilbert": tiny_bases.write_tiny_distilbert,
    "llama": tiny_bases.write_tiny_llama,
    "qwen2": partial(tiny_bases.write_tiny_qwen, version=2),
    "qwen3": partial(tiny_bases.write_tiny_qwen, version=3),
    "gpt2": tiny_bases.write_tiny_gpt2,
    "t5": tiny_bases.write_tiny_t5,
    "bart": tiny_bases.write_tiny_bart,
    "mbart": partial(tiny_bases.write_tiny_bart, family="mbart"),
    "marian": partial(tiny_bases.write_tiny_bart, family="marian"),
    "pegasus": partial(tiny_bases.write_tiny_bart, family="pegasus"),
}


def difference(base: Base) -> float:
    """Between ids and their embeddings, over real tokens."""
    decoders = ([0, 5, 6], [0, 7]) if base.architecture == "encoder-decoder" else (None, None)
    rows = ([5, 6, 7, 8, 9], [5, 9, 4])
    examples = [
        Example((TokenRow(ids, decoder_ids=decoder),))
        for ids, decoder in zip(rows, decoders, strict=True)
    ]
    batch = collate(examples, pad_id=base.text.pad_id, device=base.device)
    with torch.no_grad():
        wanted = hidden_states(base, batch)
        found = hidden_states(base, batch, embeddings=token_embeddings(base, batch))
    lengths = [len(ids) for ids in (rows if decoders[0] is None else decoders) if ids is not None]
    return max(
        float((wanted - found)[row, :length].abs().max()) for row, length in enumerate(lengths)
    )


@pytest.mark.parametrize("family", WRITERS)
def test_a_forward_of_embeddings_is_that_of_their_tokens(family: str, tmp_path: Path) -> None:
    folder = WRITERS[family](tmp_path / family)
    assert difference(load_base(str(folder), name=family, models_dir=tmp_path)) == 0


@pytest.mark.parametrize("family", ["mbart", "marian"])
def test_a_quantized_table_is_scaled_once(family: str, tmp_path: Path) -> None:
    folder = WRITERS[family](tmp_path / family)
    base = load_base(str(folder), name=family, models_dir=tmp_path)
    assert difference(derived_from(base, "int8-weight-only")) == 0

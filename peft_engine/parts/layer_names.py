"""The names that the linears and norms of a layer have in each family of bases.

Names are the only thing that tells them apart, so this is a table of the names that transformers
uses; a base with other names is refused by the methods that need to know, never guessed at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from peft_engine.errors import ConfigError
from peft_engine.parts.sites import RESIDUAL, linear_sites


@dataclass(frozen=True)
class Family:
    """Names inside a layer.

    ``ffn_makers`` are those that may be there. ``queries`` is None where heads are not a matter of
    the widths of linears alone: a table of distances has a column for each head (T5, MPNet),
    positions enter by products of their own (DeBERTa), or a layer has two attentions (BART).
    ``values`` and ``attention`` name the same attentions in the same order. ``keys_shift_alike``:
    positions enter attention beside its inputs or as an addition to its scores, so that a bias of
    the keys adds the same number to every score of a query; not so where keys are turned by their
    position (RoPE) or meet it in a product of its own (DeBERTa).
    """

    keys: tuple[str, ...]
    values: tuple[str, ...]
    fused: str | None
    attention: tuple[str, ...]
    ffn: str
    ffn_makers: tuple[str, ...]
    keys_shift_alike: bool
    queries: str | None = None
    attention_norm: str | None = None
    ffn_norm: str | None = None
    ffn_block: str | None = None


# Keyed by the name of the linear that ends the FFN, together with one that tells the family from
# others; those of values and of the end of attention must be there too.
_FAMILIES: Mapping[tuple[str, str], Family] = {
    # BERT, RoBERTa, ELECTRA, XLM-R, CamemBERT: post-norm
    ("output.dense", "attention.self.key"): Family(
        keys=("attention.self.key",),
        values=("attention.self.value",),
        fused=None,
        attention=("attention.output.dense",),
        ffn="output.dense",
        ffn_makers=("intermediate.dense",),
        queries="attention.self.query",
        keys_shift_alike=True,
        attention_norm="attention.output.LayerNorm",
        ffn_norm="output.LayerNorm",
        ffn_block=f"output{RESIDUAL}",
    ),
    # DeBERTa v2 and v3: post-norm
    ("output.dense", "attention.self.key_proj"): Family(
        keys=("attention.self.key_proj",),
        values=("attention.self.value_proj",),
        fused=None,
        attention=("attention.output.dense",),
        ffn="output.dense",
        ffn_makers=("intermediate.dense",),
        keys_shift_alike=False,
        attention_norm="attention.output.LayerNorm",
        ffn_norm="output.LayerNorm",
        ffn_block=f"output{RESIDUAL}",
    ),
    # MPNet, a post-norm base
    ("output.dense", "attention.attn.k"): Family(
        keys=("attention.attn.k",),
        values=("attention.attn.v",),
        fused=None,
        attention=("attention.attn.o",),
        ffn="output.dense",
        ffn_makers=("intermediate.dense",),
        keys_shift_alike=True,
        attention_norm="attention.LayerNorm",
        ffn_norm="output.LayerNorm",
        ffn_block=f"output{RESIDUAL}",
    ),
    # DistilBERT, a post-norm base
    ("ffn.lin2", "attention.k_lin"): Family(
        keys=("attention.k_lin",),
        values=("attention.v_lin",),
        fused=None,
        attention=("attention.out_lin",),
        ffn="ffn.lin2",
        ffn_makers=("ffn.lin1",),
        queries="attention.q_lin",
        keys_shift_alike=True,
        attention_norm="sa_layer_norm",
        ffn_norm="output_layer_norm",
        ffn_block="ffn",
    ),
    # Llama, Mistral, Qwen2, Qwen3, Gemma, SmolLM: pre-norm
    ("mlp.down_proj", "self_attn.k_proj"): Family(
        keys=("self_attn.k_proj",),
        values=("self_attn.v_proj",),
        fused=None,
        attention=("self_attn.o_proj",),
        ffn="mlp.down_proj",
        ffn_makers=("mlp.gate_proj", "mlp.up_proj"),
        queries="self_attn.q_proj",
        keys_shift_alike=False,
        ffn_block="mlp",
    ),
    # GPT-2: pre-norm; one Conv1D makes queries, keys and values, in this order
    ("mlp.c_proj", "attn.c_attn"): Family(
        keys=(),
        values=(),
        fused="attn.c_attn",
        attention=("attn.c_proj",),
        ffn="mlp.c_proj",
        ffn_makers=("mlp.c_fc",),
        queries="attn.c_attn",
        keys_shift_alike=True,
        ffn_block="mlp",
    ),
    # T5, encoder and decoder: pre-norm; the number of the sub-layer stands in the path
    ("DenseReluDense.wo", "SelfAttention.k"): Family(
        keys=("SelfAttention.k", "EncDecAttention.k"),
        values=("SelfAttention.v", "EncDecAttention.v"),
        fused=None,
        attention=("SelfAttention.o", "EncDecAttention.o"),
        ffn="DenseReluDense.wo",
        ffn_makers=("DenseReluDense.wi", "DenseReluDense.wi_0", "DenseReluDense.wi_1"),
        keys_shift_alike=True,
        ffn_block="DenseReluDense",
    ),
    # BART, mBART, Marian, Pegasus: no module holds the FFN. BART is post-norm, but a layer's norms
    # carry the same names in its pre-norm cousins, so both are treated as pre-norm.
    ("fc2", "self_attn.k_proj"): Family(
        keys=("self_attn.k_proj", "encoder_attn.k_proj"),
        values=("self_attn.v_proj", "encoder_attn.v_proj"),
        fused=None,
        attention=("self_attn.out_proj", "encoder_attn.out_proj"),
        ffn="fc2",
        ffn_makers=("fc1",),
        keys_shift_alike=True,
    ),
}


def family_of(trunk: nn.Module) -> Family:
    """The family of a base.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        Its names.

    Raises:
        ConfigError: They are not in the table (``no_such_site``).
    """
    family = find_family(trunk)
    if family is not None:
        return family
    paths = [site.path for site in linear_sites(trunk)]
    names = ", ".join(sorted({path.rsplit(".", 1)[-1] for path in paths}))
    raise ConfigError(
        f"which modules of this base are keys, values and FFN is not known (it has {names}); "
        "use a method that needs no such names, such as lora, bitfit, norm or mask",
        code="no_such_site",
        param="method",
    )


def find_family(trunk: nn.Module) -> Family | None:
    """The family of a base, if it is known.

    Args:
        trunk: The part of a base that gives hidden states.

    Returns:
        Its names; None where they are not in the table.
    """
    paths = [site.path for site in linear_sites(trunk)]
    for (ffn, own), family in _FAMILIES.items():
        # Phi has the first two names of BART, and ends its attention in another linear.
        names = (ffn, own, *family.values[:1], *family.attention[:1])
        if all(any(ends_in_any(path, (name,)) for path in paths) for name in names):
            return family
    return None


def ends_in_any(path: str, endings: Sequence[str]) -> bool:
    """Whether a module has one of some names inside its layer.

    Args:
        path: Path of the module.
        endings: Names inside a layer.

    Returns:
        True if it does.
    """
    return any(path.endswith(f".{ending}") for ending in endings)

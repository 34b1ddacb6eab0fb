"""Names and options of AdapterHub: where its modules hang in a model, and what its options mean.

Post-norm families alone: in others its Pfeiffer and parallel adapters read another place than ours.

Source: adapters 1.3.0, ``configuration/adapter_config.py``, ``methods/modeling.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from peft_engine.configs.methods import BottleneckConfig
from peft_engine.exchange.findings import Findings

CONFIG_FILE = "adapter_config.json"
HEAD_CONFIG_FILE = "head_config.json"
TENSOR_FILES = ("adapter.safetensors", "pytorch_adapter.bin")
HEAD_TENSOR_FILES = ("model_head.safetensors", "pytorch_model_head.bin")
HUB_VERSION = "adapters.1.3.0"
"""The version that these files were compared with."""


@dataclass(frozen=True)
class Names:
    """Names of one family of models.

    Attributes:
        attention: Holder of the adapters behind attention; ``{}`` is the number of the layer.
        ffn: The same behind the FFN.
        linears: Ending of the linear by what AdapterHub's LoRA calls it.
    """

    attention: str
    ffn: str
    linears: Mapping[str, str]


_BERT = Names(
    attention="encoder.layer.{}.attention.output.adapters",
    ffn="encoder.layer.{}.output.adapters",
    linears=MappingProxyType(
        {
            "q": "attention.self.query",
            "k": "attention.self.key",
            "v": "attention.self.value",
            "intermediate": "intermediate.dense",
            "output": "output.dense",
        }
    ),
)
_DISTILBERT = Names(
    attention="transformer.layer.{}.attention_adapters.adapters",
    ffn="transformer.layer.{}.output_adapters.adapters",
    linears=MappingProxyType(
        {
            "q": "attention.q_lin",
            "k": "attention.k_lin",
            "v": "attention.v_lin",
            "intermediate": "ffn.lin1",
            "output": "ffn.lin2",
        }
    ),
)

NAMES: Mapping[str, Names] = MappingProxyType(
    {"bert": _BERT, "roberta": _BERT, "xlm-roberta": _BERT, "electra": _BERT}
    | {"distilbert": _DISTILBERT}
)
"""By model type."""

MODEL_CLASSES: Mapping[str, str] = MappingProxyType(
    {
        "bert": "BertAdapterModel",
        "roberta": "RobertaAdapterModel",
        "xlm-roberta": "XLMRobertaAdapterModel",
        "electra": "ElectraAdapterModel",
        "distilbert": "DistilBertAdapterModel",
    }
)

BOTTLENECK_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        "adapter_residual_before_ln": False,
        "cross_adapter": False,
        "dropout": 0.0,
        "factorized_phm_W": True,
        "factorized_phm_rule": False,
        "hypercomplex_nonlinearity": "glorot-uniform",
        "init_weights": "bert",
        "init_weights_seed": None,
        "inv_adapter": None,
        "inv_adapter_reduction_factor": None,
        "is_parallel": False,
        "learn_phm": True,
        "leave_out": [],
        "ln_after": False,
        "ln_before": False,
        "mh_adapter": False,
        "non_linearity": "relu",
        "original_ln_after": True,
        "original_ln_before": False,
        "output_adapter": True,
        "phm_bias": True,
        "phm_c_init": "normal",
        "phm_dim": 4,
        "phm_init_range": 0.0001,
        "phm_layer": False,
        "phm_rank": 1,
        "reduction_factor": 16,
        "residual_before_ln": True,
        "scaling": 1.0,
        "shared_W_phm": False,
        "shared_phm_rule": True,
        "stochastic_depth": 0.0,
        "use_gating": False,
    }
)
"""Every option of a bottleneck, with the value that AdapterHub gives it."""

VARIANTS: Mapping[str, Mapping[str, bool]] = MappingProxyType(
    {
        "houlsby": {"mh_adapter": True, "is_parallel": False, "original_ln_before": False},
        "pfeiffer": {"mh_adapter": False, "is_parallel": False, "original_ln_before": True},
        "parallel": {"mh_adapter": False, "is_parallel": True, "original_ln_before": False},
    }
)
"""What tells the variants apart that are the same function here."""

_FREE = frozenset(
    {
        "dropout",  # these two act in training alone
        "stochastic_depth",
        "init_weights",
        "init_weights_seed",
        "inv_adapter_reduction_factor",
        "leave_out",
        "non_linearity",
        "reduction_factor",  # the tensors have the width themselves
        "scaling",
    }
)
_OF_PHM = frozenset(name for name in BOTTLENECK_OPTIONS if "phm" in name.lower()) | {
    "hypercomplex_nonlinearity"
}
"""Without meaning while ``phm_layer`` is off."""

LORA_OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        "alpha": 8,
        "architecture": "lora",
        "attn_matrices": ["q", "v"],
        "composition_mode": "add",
        "dropout": 0.0,
        "dtype": None,
        "init_weights": "lora",
        "init_weights_seed": None,
        "intermediate_lora": False,
        "leave_out": [],
        "output_lora": False,
        "r": 8,
        "selfattn_lora": True,
        "use_dora": False,
        "use_gating": False,
        "vera_b": None,
        "vera_d": None,
    }
)
"""Every option of a LoRA, with AdapterHub's default."""

_LORA_FREE = frozenset(LORA_OPTIONS) - {"use_dora", "use_gating", "vera_b", "vera_d"}


def find_variant(config: Mapping[str, Any], found: Findings) -> str | None:
    """Which of our bottlenecks a configuration is, after refusing what would change it.

    Args:
        config: Options of a bottleneck; what is left out has its default.
        found: Told what has no place here.

    Returns:
        The variant; None when it is none of them.
    """
    told = dict(BOTTLENECK_OPTIONS) | dict(config)
    telling = {name for options in VARIANTS.values() for name in options}
    phm = _OF_PHM - {"phm_layer"} if not told["phm_layer"] else frozenset()
    for name in sorted(told.keys() - _FREE - telling - phm):
        if told[name] != BOTTLENECK_OPTIONS.get(name, None) and (
            name in BOTTLENECK_OPTIONS or told[name]
        ):
            found.refuse("unsupported_option", f"is {told[name]!r}", name)
    for variant, options in VARIANTS.items():
        if all(told[name] == value for name, value in options.items()):
            return variant
    shown = ", ".join(f"{name}={told[name]}" for name in sorted(telling))
    found.refuse("unsupported_option", f"is none of {', '.join(VARIANTS)}", shown)
    return None


def refuse_lora_options(config: Mapping[str, Any], found: Findings) -> None:
    """Refuse options of a LoRA that would change it.

    Args:
        config: Its options.
        found: Told of each.
    """
    for name in sorted(config.keys() - _LORA_FREE):
        if config[name]:
            found.refuse("unsupported_option", f"is {config[name]!r}", name)
    matrices, dropout = config.get("attn_matrices") or [], config.get("dropout") or 0.0
    if not isinstance(matrices, list) or not all(isinstance(one, str) for one in matrices):
        found.refuse("bad_config", "is no list of names", "attn_matrices")
    if not isinstance(dropout, int | float):
        found.refuse("bad_config", "is no number", "dropout")


def bottleneck_options(config: BottleneckConfig, *, width: int, features: int) -> dict[str, Any]:
    """A configuration of ours in AdapterHub's words.

    Args:
        config: The method.
        width: Width of the bottleneck.
        features: Width of the hidden state, a multiple of it.

    Returns:
        All options.
    """
    return {
        **BOTTLENECK_OPTIONS,
        **VARIANTS[config.variant],
        "non_linearity": config.own_activation,
        "reduction_factor": features / width if features % width else features // width,
        "scaling": "learned" if config.scaling == "learned" else config.own_scaling,
        "init_weights": "mam_adapter" if config.variant == "parallel" else "bert",
    }

"""The shape of a pruned base in the words of its transformers configuration.

With it the model can be written to a folder and read again. Where a family derives the width of a
head from the number of heads (BERT, GPT-2) a configuration cannot say that heads are gone: such a
base is made from its plan alone.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from peft_engine.parts.anatomy import attention_ends, ffn_inners
from peft_engine.parts.sites import stack_paths
from peft_engine.parts.stacks import TwoStacks

_FFN = ("intermediate_size", "hidden_dim", "n_inner", "d_ff")
_FFN_OF_STACK = ("encoder_ffn_dim", "decoder_ffn_dim")
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_LAYERS_OF_STACK = (("encoder_layers",), ("decoder_layers", "num_decoder_layers"))
"""Names that transformers' families have for the same number; a configuration has one or two."""


def describe_shape(model: nn.Module, trunk: nn.Module, kept: Mapping[str, Tensor]) -> None:
    """Write what was taken out into every configuration of a model.

    Args:
        model: The whole model.
        trunk: The part that gives hidden states.
        kept: Tensors of the plan by name.
    """
    kinds = {name.partition(":")[0] for name in kept}
    if "ffn" in kinds:
        _describe_ffn(model, trunk)
    if "layers" in kinds:
        _describe_layers(model, trunk, kept)
    if "heads" in kinds and has_width_of_heads(model):
        # The same in all layers, since a configuration has one number for them.
        groups = next(len(tensor) for name, tensor in kept.items() if name.startswith("heads:"))
        width = attention_ends(trunk)[0].output.in_features
        for config in _configs(model):
            heads = config.num_attention_heads // config.num_key_value_heads * groups
            config.head_dim = width // heads
            config.num_attention_heads = heads
            config.num_key_value_heads = groups


def has_width_of_heads(model: nn.Module) -> bool:
    """Whether a configuration can say how wide a head is, apart from how many there are.

    Args:
        model: The model.

    Returns:
        True for families with heads of keys and values apart from those of queries (Llama, Qwen).
    """
    return hasattr(model.config, "num_key_value_heads")


def _describe_ffn(model: nn.Module, trunk: nn.Module) -> None:
    stacks = [paths[0].rpartition(".")[0] for paths in stack_paths(trunk)]
    widths = {inner.end.path: inner.end.in_features for inner in ffn_inners(trunk)}
    # The same in all layers of a stack, since a configuration has one number for them.
    own = [next(w for path, w in widths.items() if path.startswith(f"{s}.")) for s in stacks]
    for config in _configs(model):
        _set(config, _FFN, own[0])
        for name, width in zip(_FFN_OF_STACK, own, strict=False):
            _set(config, (name,), width)


def _describe_layers(model: nn.Module, trunk: nn.Module, kept: Mapping[str, Tensor]) -> None:
    counts = [len(paths) for paths in stack_paths(trunk)]
    numbers = next(t.tolist() for name, t in kept.items() if name.startswith("layers:"))
    decoders = list(_configs(trunk.decoder)) if isinstance(trunk, TwoStacks) else []
    for config in _configs(model):
        kinds = getattr(config, "layer_types", None)
        if kinds:
            config.layer_types = [kinds[number] for number in numbers]
        # The decoder of a T5 counts its own layers under the name that the whole has for the
        # encoder's; BART's stacks share one configuration.
        is_decoders = any(config is own for own in decoders) and config is not model.config
        _set(config, _LAYERS, counts[-1] if is_decoders else counts[0])
        for names, count in zip(_LAYERS_OF_STACK, counts, strict=False):
            _set(config, names, count)


def _set(config: Any, names: tuple[str, ...], value: int) -> None:
    for name in names:
        if hasattr(config, name):
            setattr(config, name, value)


def _configs(model: nn.Module) -> Iterator[Any]:
    """Every configuration in a model, each once: attention modules may have copies of their own."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None:
            found[id(config)] = config
    yield from found.values()

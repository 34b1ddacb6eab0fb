"""Puts quantized modules into the place of a model's own.

Quantized are the linears of the layers, the token table, and a language head. Norms, positions,
poolers and biases stay as they are: together they are a few thousandths of the weights.
"""

import functools
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from peft_engine.compression.quantization.codebooks import INT4, NF4
from peft_engine.compression.quantization.halves import HalfLinear
from peft_engine.compression.quantization.integers import fastest_kernel
from peft_engine.compression.quantization.linears import (
    FourBitLinear,
    Int8Linear,
    Int8WeightLinear,
    QuantizedLinear,
)
from peft_engine.compression.quantization.tables import QuantizedEmbedding
from peft_engine.compression.watch import UNWATCHED, Watch
from peft_engine.configs.base import Quantization
from peft_engine.parts.sites import bias_of, linear_sites, weight_of

_Maker = Callable[[Tensor, Tensor | None], QuantizedLinear]

_SCHEMES: Mapping[Quantization, tuple[_Maker, _Maker]] = {
    "fp16": (HalfLinear, HalfLinear),
    "int8": (Int8Linear, Int8Linear),
    "int8-weight-only": (Int8WeightLinear, Int8WeightLinear),
    # A language head in 4 bits would lose most, and making it whole for each token take longest.
    "int4": (functools.partial(FourBitLinear, book=INT4), Int8WeightLinear),
    "nf4": (functools.partial(FourBitLinear, book=NF4), Int8WeightLinear),
}
"""What stands for a linear of a layer, and for the language head."""


_EIGHT_BIT: Mapping[Quantization, type[Int8Linear] | type[Int8WeightLinear]] = {
    "int8": Int8Linear,
    "int8-weight-only": Int8WeightLinear,
}
"""Schemes with more than one kernel to choose from."""


def quantize(
    model: nn.Module, trunk: nn.Module, scheme: Quantization, *, watch: Watch = UNWATCHED
) -> None:
    """Quantize a model in place.

    A head that shares the token table has integers of its own from the same values: what is looked
    up is rounded for a token, what is multiplied for an output, which are the same rows.

    Args:
        model: A freshly loaded, unshared model in fp32, or in the type that it was published in.
        trunk: The part of it that gives hidden states.
        scheme: How.
        watch: Told of each linear, and asked between them.
    """
    if scheme == "none":
        return
    of_layers, of_head = _SCHEMES[scheme]
    head = model.get_output_embeddings()  # type: ignore[operator]
    eight_bit = _EIGHT_BIT.get(scheme)
    if head is None and eight_bit is not None:
        # An encoder reads whole texts; what writes goes token by token.
        of_layers = functools.partial(eight_bit, kernel=fastest_kernel(many_rows=True))
    sites = list(linear_sites(trunk))
    for number, site in enumerate(sites):
        watch.part("linears quantized", number, len(sites))
        module = trunk.get_submodule(site.path)
        _put(trunk, site.path, of_layers(weight_of(module).detach(), _bias(module)))
    watch.check()
    if isinstance(head, nn.Linear):
        quantized = of_head(head.weight.detach(), _bias(head))
        for path in [path for path, module in model.named_modules() if module is head]:
            _put(model, path, quantized)
    # Of a table only few rows are looked up: halves would save no time, and it is not multiplied.
    if scheme != "fp16":
        _quantize_tables(model)


def _quantize_tables(model: nn.Module) -> None:
    """Every module that looks up in the token table, which a base with two stacks has twice."""
    weight = model.get_input_embeddings().weight  # type: ignore[operator]
    made: dict[nn.Module, QuantizedEmbedding] = {}
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.Embedding) and module.weight is weight:
            if module not in made:
                made[module] = QuantizedEmbedding(module)
                first = next(iter(made.values()))
                made[module].codes, made[module].scales = first.codes, first.scales
            _put(model, path, made[module])


def _bias(module: nn.Module) -> Tensor | None:
    bias = bias_of(module)
    return None if bias is None else bias.detach()


def _put(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module.eval())

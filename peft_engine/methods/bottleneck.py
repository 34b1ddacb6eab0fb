"""Bottleneck adapters: ``f(h) = up(act(down(h)))`` beside a sub-layer, ``up`` zero at the start.

For a post-norm sub-layer ``out = LN(dense(x) + res)`` with ``h = dense(x)``, as AdapterHub has it:

- ``houlsby``: ``out = LN(h + f(h) + res)`` after attention and after the FFN;
- ``pfeiffer``: ``out = LN(h + f(LN(h + res)) + res)`` after the FFN (the norm runs twice);
- ``parallel``: ``out = LN(h + s · f(res) + res)`` beside the FFN.

For a pre-norm sub-layer ``out = dense(x) + res`` ``houlsby`` and ``pfeiffer`` both give
``h + f(h) + res``, and ``parallel`` gives ``h + s · f(x) + res`` with ``x`` the normalised input of
the FFN.

Each of them is one change at one place: ``f(h)`` is added to the output of ``dense``; the norm of
``pfeiffer`` is given ``z + f(LN(z))`` instead of ``z = h + res``; of ``parallel`` the residual
stream becomes ``res + s · f(res)``, or the output of the whole FFN ``y + s · f(x)``.

Source: Houlsby et al. 2019, arXiv 1902.00751, figure 2; Pfeiffer et al. 2021, arXiv 2005.00247; He
et al. 2022, arXiv 2110.04366, table 1.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu, silu

from peft_engine.configs.methods import BottleneckConfig
from peft_engine.errors import ConfigError
from peft_engine.methods.protocol import Method, OptimizerGroup
from peft_engine.parts.anatomy import Sublayer, attention_ends, ffn_ends
from peft_engine.parts.mixing import add_to_rows, replace_rows, shares_product
from peft_engine.parts.segments import Segment, Segments
from peft_engine.parts.sites import RESIDUAL, Site, choose_layers, count_layers, is_norm

# Legend of axes: B rows, D width, W width of a bottleneck, S sum of these widths in a batch.

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"relu": relu, "swish": silu, "gelu": gelu, "tanh": torch.tanh}
)


class Bottleneck(Method):
    """Two small layers beside a sub-layer."""

    name = "bottleneck"
    has_pre = True

    def sites(self, trunk: nn.Module, config: BottleneckConfig) -> Sequence[Site]:
        """The ends of sub-layers, their norms, or the FFNs, as the variant asks.

        Args:
            trunk: The part of the base that gives hidden states.
            config: Variant and layers.

        Returns:
            The sites, attention before FFN.

        Raises:
            ConfigError: A layer that does not exist, a base whose names are not known, or one
                without a module for the whole FFN where ``parallel`` needs it.
        """  # noqa: DOC502  raised below
        ends = [*ffn_ends(trunk)]
        if config.variant == "houlsby":
            ends = [*attention_ends(trunk), *ends]
        found = [_place(end, config) for end in ends]
        return choose_layers(found, config.layers, count=count_layers(trunk))

    def create(
        self, module: nn.Module, site: Site, config: BottleneckConfig, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """``down`` uniform (Kaiming, a = √5), ``up`` and both biases zero.

        Args:
            module: The module at the site.
            site: The site.
            config: The width.
            generator: CPU generator.

        Returns:
            ``down`` (W, D), ``down_bias`` (W,), ``up`` (D, W), ``up_bias`` (D,) and, when it is
            learned, ``scale`` (1,).
        """
        made = {name: torch.zeros(shape) for name, shape in self.shapes(site, config).items()}
        bound = 1 / math.sqrt(site.in_features)
        made["down"].uniform_(-bound, bound, generator=generator)
        if "scale" in made:
            made["scale"].fill_(config.own_scaling)
        return made

    def pre(self, module: nn.Module, segments: Segments, x: Tensor) -> Tensor:
        """Change what a norm is given, or the residual stream beside an FFN.

        Args:
            module: The norm or the module that adds the residual stream.
            segments: Rows of each delta.
            x: (B, …, D) input.

        Returns:
            (B, …, D), a new tensor; ``x`` itself at sites that are changed after the base.
        """
        if segments.path.endswith(RESIDUAL):
            return _add(segments, x, x, in_place=False)
        if is_norm(module):
            # Not `module(x)`: its hooks would let other deltas act in here.
            return _add(segments, x, module.forward(x), in_place=False)
        return x

    def post(self, module: nn.Module, segments: Segments, x: Tensor, y: Tensor) -> Tensor:
        """Add to the output of a sub-layer's last linear, or of a whole FFN.

        Args:
            module: The linear or the FFN.
            segments: Rows of each delta.
            x: (B, …, D) input of the site.
            y: (B, …, D) its output.

        Returns:
            (B, …, D); ``y`` itself at sites that are changed before the base.
        """
        if is_norm(module):
            return y
        parallel = segments.items[0].config.variant == "parallel"
        return _add(segments, y, x if parallel else y, in_place=not torch.is_grad_enabled())

    def groups(self, config: BottleneckConfig) -> Sequence[OptimizerGroup]:
        """Matrices with weight decay, biases and the scale without.

        Args:
            config: The method's configuration.

        Returns:
            Two groups.
        """
        learned = ("scale",) if config.scaling == "learned" else ()
        vectors = ("down_bias", "up_bias", *learned)
        return (OptimizerGroup(names=("down", "up")), OptimizerGroup(names=vectors, decay=False))

    def shapes(self, site: Site, config: BottleneckConfig) -> dict[str, tuple[int, ...]]:
        """Shapes of both layers.

        Args:
            site: The site.
            config: The width.

        Returns:
            As ``create``.
        """
        features, width = site.in_features, config.width(site.in_features)
        own: dict[str, tuple[int, ...]] = {
            "down": (width, features),
            "down_bias": (width,),
            "up": (features, width),
            "up_bias": (features,),
        }
        return own | {"scale": (1,)} if config.scaling == "learned" else own


def _place(end: Sublayer, config: BottleneckConfig) -> Site:
    """Where the variant acts on a sub-layer.

    Raises:
        ConfigError: There is no such module.
    """
    width = end.output.out_features
    if config.variant == "parallel":
        if end.block is None:
            raise ConfigError(
                "this base has no module for its whole FFN, which `parallel` needs; use `houlsby` "
                "or `pfeiffer`",
                code="no_such_site",
                param="method.variant",
            )
        return Site(end.block, "sublayer", end.output.layer, width, width)
    if config.variant == "pfeiffer" and end.norm is not None:
        return Site(end.norm, "norm", end.output.layer, width, width)
    return Site(end.output.path, "linear", end.output.layer, width, width)


def _scale(segment: Segment) -> Tensor | float:
    return (
        segment.params["scale"] if "scale" in segment.params else float(segment.config.own_scaling)
    )


def _update(segment: Segment, source: Tensor) -> Tensor:
    """``s · f`` of one delta; the scale is folded in in fp32."""
    params, dtype = segment.params, source.dtype
    act, scale = _ACTIVATIONS[segment.config.own_activation], _scale(segment)
    low = linear(source, params["down"].to(dtype), params["down_bias"].to(dtype))  # (b, …, W)
    up, bias = (params["up"] * scale).to(dtype), (params["up_bias"] * scale).to(dtype)
    return linear(act(low), up, bias)


def _add(segments: Segments, target: Tensor, source: Tensor, *, in_place: bool) -> Tensor:
    """``target + s · f(source)`` for the rows of each delta."""
    activations = {segment.config.own_activation for segment in segments}
    widths = sum(segment.params["down"].shape[0] for segment, _ in segments.by_delta)
    if len(activations) == 1 and shares_product(segments, source, columns=widths):
        update = _masked(segments, source, _ACTIVATIONS[activations.pop()])
        return target.add_(update) if in_place else target + update
    change = partial(_change, source)
    if in_place:
        return add_to_rows(segments, target, change)
    return replace_rows(segments, target, lambda segment, own: own + change(segment))


def _change(source: Tensor, segment: Segment) -> Tensor:
    return _update(segment, source[segment.rows])


def _masked(segments: Segments, source: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """All deltas in two products, as for LoRA; the mask comes after the activation.

    The biases of ``up`` ride on further columns, which are 1 on a delta's own rows.
    """
    dtype = source.dtype
    down, bias, up, mask = segments.stack(f"{dtype}", lambda all_: _stack_masked(all_, dtype))
    low = activation(linear(source, down, bias))  # (B, …, S)
    low = torch.cat([low, low.new_ones(*low.shape[:-1], len(segments.by_delta))], dim=-1)
    low = low.masked_fill(mask.view(mask.shape[0], *[1] * (source.dim() - 2), mask.shape[1]), 0)
    return linear(low, up)


def _stack_masked(segments: Segments, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``down`` (S, D), its bias (S,), ``up`` (D, S + deltas), ``mask`` of the columns of others."""
    deltas = segments.by_delta
    down = torch.cat([s.params["down"] for s, _ in deltas]).to(dtype)
    bias = torch.cat([s.params["down_bias"] for s, _ in deltas]).to(dtype)
    ups = [s.params["up"] * _scale(s) for s, _ in deltas]
    up_biases = [(s.params["up_bias"] * _scale(s)).unsqueeze(1) for s, _ in deltas]
    up = torch.cat([*ups, *up_biases], dim=1).to(dtype)
    mask = torch.ones(segments.rows, up.shape[1], dtype=torch.bool, device=up.device)
    column = 0
    for number, (segment, all_rows) in enumerate(deltas):
        width = segment.params["down"].shape[0]
        for rows in all_rows:
            mask[rows, column : column + width] = False
            mask[rows, down.shape[0] + number] = False
        column += width
    return down, bias, up, mask

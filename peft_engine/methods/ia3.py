"""(IA)³: keys, values and inner activations of the FFN are scaled by learned vectors.

Outputs of the key and value projections: ``y' = l ⊙ y``. Input of the FFN's last linear, after
the activation: ``x' = l ⊙ x``.

Source: Liu et al. 2022, arXiv 2205.05638, section 3.3.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from peft_engine.configs.methods import Ia3Config
from peft_engine.methods.protocol import Method, OptimizerGroup
from peft_engine.parts.anatomy import scaled_features
from peft_engine.parts.mixing import adds_in_place, meet_row_vectors, row_vectors
from peft_engine.parts.segments import Segments
from peft_engine.parts.sites import Site, bias_of, choose_layers, count_layers, weight_of

# Legend of axes: B rows, I input width, O output width, W scaled features.

_IN, _OUT = "in", "out"
"""Name of the tensor: which side of the linear it scales. It may be shorter than that side: then it
scales the last features (in GPT-2's fused projection the keys and values, not the queries)."""


class Ia3(Method):
    """Learned factors on activations."""

    name = "ia3"
    has_pre = True

    def sites(self, trunk: nn.Module, config: Ia3Config) -> Sequence[Site]:
        """Key and value projections and the last linear of each FFN.

        Args:
            trunk: The part of the base that gives hidden states.
            config: Layers.

        Returns:
            The sites, in the order of the modules; the widths count scaled features only.

        Raises:
            ConfigError: A layer that does not exist, or a base whose names are not known.
        """  # noqa: DOC502  raised below
        found = []
        for scaled in scaled_features(trunk):
            site, width = scaled.site, scaled.width
            sides = (width, 0) if scaled.side == "input" else (0, width)
            found.append(Site(site.path, "linear", site.layer, *sides))
        return choose_layers(found, config.layers, count=count_layers(trunk))

    def create(
        self, module: nn.Module, site: Site, config: Ia3Config, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """One.

        Args:
            module: The linear.
            site: The same.
            config: The method's configuration.
            generator: Not drawn from.

        Returns:
            ``in`` (W,) or ``out`` (W,).
        """
        return {name: torch.ones(shape) for name, shape in self.shapes(site, config).items()}

    def pre(self, module: nn.Module, segments: Segments, x: Tensor) -> Tensor:
        """Scale inner activations.

        Args:
            module: The linear.
            segments: Rows of each delta.
            x: (B, …, I) input.

        Returns:
            (B, …, I), another tensor; ``x`` itself where outputs are scaled.
        """
        return _scale(segments, x, _IN, scratch=True)

    def post(self, module: nn.Module, segments: Segments, x: Tensor, y: Tensor) -> Tensor:
        """Scale keys and values.

        Args:
            module: The linear.
            segments: Rows of each delta.
            x: (B, …, I) input of the site.
            y: (B, …, O) its output.

        Returns:
            (B, …, O): ``y`` itself, perhaps changed in place, or a new tensor.
        """
        if _OUT in segments.items[0].params and meet_row_vectors(
            segments, y, lambda segment: segment.params[_OUT], Tensor.mul_
        ):
            return y
        return _scale(segments, y, _OUT)

    def dense(
        self, module: nn.Module, site: Site, config: Ia3Config, params: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """``ΔW = W ⊙ (l - 1)`` along the scaled side, and the bias with scaled outputs.

        Args:
            module: The linear.
            site: The same.
            config: The method's configuration.
            params: ``in`` or ``out``.

        Returns:
            ``weight`` (O, I) and perhaps ``bias`` (O,).
        """
        weight, bias = weight_of(module).float(), bias_of(module)
        if _IN in params:
            return {"weight": weight * (params[_IN] - 1)}
        change = nn.functional.pad(params[_OUT] - 1, (len(weight) - len(params[_OUT]), 0))  # (O,)
        dense = {"weight": weight * change.unsqueeze(1)}
        return dense if bias is None else dense | {"bias": bias.float() * change}

    def groups(self, config: Ia3Config) -> Sequence[OptimizerGroup]:
        """No decay: it would pull the factors to zero, where nothing comes through.

        Args:
            config: The method's configuration.

        Returns:
            One group.
        """
        return (OptimizerGroup(names=(_IN, _OUT), decay=False),)

    def shapes(self, site: Site, config: Ia3Config) -> dict[str, tuple[int, ...]]:
        """Shape of the factors.

        Args:
            site: The site, as ``sites`` gives it.
            config: The method's configuration.

        Returns:
            ``in`` (W,) or ``out`` (W,).
        """
        return {_IN: (site.in_features,)} if site.in_features else {_OUT: (site.out_features,)}


def _scale(segments: Segments, values: Tensor, name: str, *, scratch: bool = False) -> Tensor:
    if name not in segments.items[0].params:
        return values
    factors = row_vectors(segments, name, values, lambda s: s.params[name], fill=1.0)
    if factors.shape[-1] < values.shape[-1]:
        factors = nn.functional.pad(factors, (values.shape[-1] - factors.shape[-1], 0), value=1.0)
    if scratch and adds_in_place(segments, values):
        return torch.mul(values, factors, out=segments.scratch_like(values))
    return values * factors

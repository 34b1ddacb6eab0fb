"""Norm tuning: gains and biases of LayerNorm and RMSNorm learn.

``y' = y + n ⊙ Δg + Δb`` with the normalised value ``n`` computed again from the input, which is
exact whatever form the base gives its gain (``w`` or ``1 + w``).

Source: Zhao et al. 2024, arXiv 2312.11420, section 3.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from peft_engine.configs.methods import NormConfig
from peft_engine.methods.protocol import Method, OptimizerGroup
from peft_engine.parts.mixing import add_to_rows
from peft_engine.parts.norms import normalise
from peft_engine.parts.segments import Segment, Segments
from peft_engine.parts.sites import Site, choose_layers, count_layers, norm_sites

# Legend of axes: B rows, D width.


class Norm(Method):
    """New gains and biases for norms."""

    name = "norm"

    def sites(self, trunk: nn.Module, config: NormConfig) -> Sequence[Site]:
        """Every norm of the chosen layers; outside the layers only with ``all``.

        Args:
            trunk: The part of the base that gives hidden states.
            config: Layers.

        Returns:
            The sites, in the order of the modules.

        Raises:
            ConfigError: A layer that does not exist.
        """  # noqa: DOC502  raised below
        return choose_layers(list(norm_sites(trunk)), config.layers, count=count_layers(trunk))

    def create(
        self, module: nn.Module, site: Site, config: NormConfig, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Zero.

        Args:
            module: The norm.
            site: The same.
            config: The method's configuration.
            generator: Not drawn from.

        Returns:
            ``weight`` (D,) and, where the base has one, ``bias`` (D,).
        """
        return {name: torch.zeros(shape) for name, shape in self.shapes(site, config).items()}

    def post(self, module: nn.Module, segments: Segments, x: Tensor, y: Tensor) -> Tensor:
        """Add what each row's own gain and bias change.

        Args:
            module: The norm.
            segments: Rows of each delta.
            x: (B, …, D) input of the norm.
            y: (B, …, D) its output.

        Returns:
            (B, …, D).
        """

        def update(segment: Segment) -> Tensor:
            change = normalise(module, x[segment.rows]) * segment.params["weight"]
            if "bias" in segment.params:
                change = change + segment.params["bias"]
            return change.to(y.dtype)

        return add_to_rows(segments, y, update)

    def dense(
        self, module: nn.Module, site: Site, config: NormConfig, params: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The differences themselves.

        Args:
            module: The norm.
            site: The same.
            config: The method's configuration.
            params: ``weight`` and perhaps ``bias``.

        Returns:
            The same.
        """
        return {name: value.float() for name, value in params.items()}

    def groups(self, config: NormConfig) -> Sequence[OptimizerGroup]:
        """No decay: gains and biases are vectors.

        Args:
            config: The method's configuration.

        Returns:
            One group.
        """
        return (OptimizerGroup(names=("weight", "bias"), decay=False),)

    def shapes(self, site: Site, config: NormConfig) -> dict[str, tuple[int, ...]]:
        """Shapes of the differences.

        Args:
            site: The norm.
            config: The method's configuration.

        Returns:
            ``weight`` (D,) and, where the base has one, ``bias`` (D,).
        """
        width = (site.out_features,)
        return {"weight": width, "bias": width} if site.has_bias else {"weight": width}

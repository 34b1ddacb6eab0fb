"""Full fine-tuning: every weight of the trunk learns, stored as its difference to the base.

``y' = y + ΔW x + Δb`` after a linear, ``y' = y + n ⊙ Δg + Δb`` after a norm, ``y' = y + ΔE[ids]``
after an embedding: the same function as the base with ``W + ΔW``. The product with ``W`` is not
spared, so a row costs two products; the copy of the base that would spare it costs more. The
language head belongs to no trunk: where it shares the token table, the head keeps the base's.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear

from peft_engine.configs.methods import FullConfig
from peft_engine.methods.protocol import Method, OptimizerGroup
from peft_engine.parts.mixing import add_to_rows
from peft_engine.parts.norms import normalise
from peft_engine.parts.segments import Segment, Segments
from peft_engine.parts.sites import (
    Site,
    choose_layers,
    count_layers,
    embedding_sites,
    is_norm,
    norm_sites,
    outer_linear_sites,
    require_linears,
)

# Legend of axes: B rows, I input width, O output width.


class Full(Method):
    """A dense difference for every weight."""

    name = "full"

    def sites(self, trunk: nn.Module, config: FullConfig) -> Sequence[Site]:
        """Every embedding, linear and norm of the chosen layers.

        Args:
            trunk: The part of the base that gives hidden states.
            config: Layers; what stands outside them takes part only with ``all``.

        Returns:
            The sites: embeddings, linears, norms.

        Raises:
            ConfigError: A layer that does not exist, or a base whose linears are not known.
        """  # noqa: DOC502  raised below
        linears = [*outer_linear_sites(trunk), *require_linears(trunk)]
        found = [*embedding_sites(trunk), *linears, *norm_sites(trunk)]
        return choose_layers(found, config.layers, count=count_layers(trunk))

    def create(
        self, module: nn.Module, site: Site, config: FullConfig, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Zero.

        Args:
            module: The embedding, linear or norm.
            site: The same.
            config: The method's configuration.
            generator: Not drawn from.

        Returns:
            ``weight`` and, where the base has one, ``bias``.
        """
        return {name: torch.zeros(shape) for name, shape in self.shapes(site, config).items()}

    def post(self, module: nn.Module, segments: Segments, x: Tensor, y: Tensor) -> Tensor:
        """Add what each row's own weights change.

        Args:
            module: The embedding, linear or norm.
            segments: Rows of each delta.
            x: (B, …, I) input of the site, or (B, T) ids.
            y: (B, …, O) its output.

        Returns:
            (B, …, O): ``y`` itself, changed in place, or a new tensor when gradients are wanted.
        """

        def update(segment: Segment) -> Tensor:
            weight, bias = segment.params["weight"], segment.params.get("bias")
            own = x[segment.rows]
            if is_norm(module):
                change = normalise(module, own) * weight
                return (change if bias is None else change + bias).to(y.dtype)
            if isinstance(module, nn.Embedding):
                # BART's table scales what it looks up
                scale = float(getattr(module, "embed_scale", 1.0))
                return (embedding(own, weight) * scale).to(y.dtype)
            return linear(own, weight.to(y.dtype), None if bias is None else bias.to(y.dtype))

        return add_to_rows(segments, y, update)

    def dense(
        self, module: nn.Module, site: Site, config: FullConfig, params: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The differences themselves.

        Args:
            module: The embedding, linear or norm.
            site: The same.
            config: The method's configuration.
            params: ``weight`` and perhaps ``bias``.

        Returns:
            The same.
        """
        return {name: value.float() for name, value in params.items()}

    def groups(self, config: FullConfig) -> Sequence[OptimizerGroup]:
        """Weights with decay (towards the base), biases without.

        Args:
            config: The method's configuration.

        Returns:
            Two groups.
        """
        return (OptimizerGroup(names=("weight",)), OptimizerGroup(names=("bias",), decay=False))

    def shapes(self, site: Site, config: FullConfig) -> dict[str, tuple[int, ...]]:
        """Shapes as in an ``nn.Linear``, a norm or an ``nn.Embedding``.

        Args:
            site: The site.
            config: The method's configuration.

        Returns:
            ``weight`` and, where the base has one, ``bias``.
        """
        weights: dict[str, tuple[int, ...]] = {
            "linear": (site.out_features, site.in_features),
            "embedding": (site.in_features, site.out_features),
            "norm": (site.out_features,),
        }
        own = {"weight": weights[site.kind]}
        return own | {"bias": (site.out_features,)} if site.has_bias else own

"""Sparse updates under a mask: chosen entries, or chosen rows, of weight matrices learn.

``y' = y + ΔW x`` with ``ΔW`` zero outside the mask, stored as sorted indices and values and never
made dense to serve. Which entries is chosen once, before the first step, and never changes.

Source: Sung et al. 2021, arXiv 2111.09839, equations 4 and 5 (Fisher information); magnitude and
gradient as baselines there. Here every matrix gives the same share of its entries.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from peft_engine.configs.methods import MaskConfig
from peft_engine.methods.protocol import Method, OptimizerGroup
from peft_engine.parts.mixing import add_to_rows, adds_in_place
from peft_engine.parts.segments import Segment, Segments
from peft_engine.parts.sites import (
    Site,
    choose_layers,
    choose_targets,
    count_layers,
    require_linears,
    weight_of,
)
from peft_engine.parts.sparse import Pattern, add_sparse, sparse_linear

# Legend of axes: B rows, I input width, O output width, K chosen entries or rows.


class Mask(Method):
    """Chosen entries of weight matrices."""

    name = "mask"
    choices = frozenset({"indices", "rows"})

    def sites(self, trunk: nn.Module, config: MaskConfig) -> Sequence[Site]:
        """Every linear of the chosen layers whose name ends in one of the targets.

        Args:
            trunk: The part of the base that gives hidden states.
            config: Targets and layers.

        Returns:
            The sites, in the order of the modules.

        Raises:
            ConfigError: A target or a layer matches nothing.
        """  # noqa: DOC502  raised below
        found = choose_targets(require_linears(trunk), config.targets)
        return choose_layers(found, config.layers, count=count_layers(trunk))

    def create(
        self, module: nn.Module, site: Site, config: MaskConfig, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Zeros at entries chosen by magnitude, else at random (until ``select`` is asked).

        Args:
            module: The linear.
            site: The same.
            config: Density and selection.
            generator: CPU generator.

        Returns:
            ``indices`` (K,) int32 and ``values`` (K,), or ``rows`` (K,) int32 and ``values``
            (K, I).
        """
        if config.selection == "magnitude":
            scores = weight_of(module).detach().float().abs().cpu()
        else:
            scores = torch.rand(site.out_features, site.in_features, generator=generator)
        return self.select(site, config, scores) | {
            "values": torch.zeros(self.shapes(site, config)["values"])
        }

    def post(self, module: nn.Module, segments: Segments, x: Tensor, y: Tensor) -> Tensor:
        """Add each row's own update.

        Args:
            module: The linear.
            segments: Rows of each delta.
            x: (B, …, I) input of the site.
            y: (B, …, O) its output.

        Returns:
            (B, …, O): ``y`` itself, changed in place, or a new tensor when gradients are wanted.
        """
        shape = (y.shape[-1], x.shape[-1])
        if _is_sparse(segments) and adds_in_place(segments, y) and y.dtype == torch.float32:
            _add_sparse(segments, x, y)
            return y

        def update(segment: Segment) -> Tensor:
            own, values = x[segment.rows], segment.params["values"]
            if "rows" in segment.params:
                rows = segment.keep("rows", lambda: segment.params["rows"].long())
                change = linear(own, values.to(y.dtype))  # (b, …, K)
                return y.new_zeros(*own.shape[:-1], shape[0]).index_copy(-1, rows, change)
            indices = segment.params["indices"]
            return sparse_linear(
                own, values, segment.keep("csr", lambda: Pattern.of(indices, shape))
            )

        return add_to_rows(segments, y, update)

    def dense(
        self, module: nn.Module, site: Site, config: MaskConfig, params: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """``ΔW`` with its zeros.

        Args:
            module: The linear.
            site: The same.
            config: The method's configuration.
            params: Indices and values.

        Returns:
            ``weight`` (O, I).
        """
        values = params["values"].float()
        weight = values.new_zeros(site.out_features, site.in_features)
        if "rows" in params:
            return {"weight": weight.index_copy(0, params["rows"].long(), values)}
        flat = weight.view(-1).index_copy(0, params["indices"].long(), values)
        return {"weight": flat.view_as(weight)}

    def groups(self, config: MaskConfig) -> Sequence[OptimizerGroup]:
        """Values without decay, which would pull towards the base; indices never change.

        Args:
            config: The method's configuration.

        Returns:
            One group.
        """
        return (OptimizerGroup(names=("values",), decay=False),)

    def shapes(self, site: Site, config: MaskConfig) -> dict[str, tuple[int, ...]]:
        """Shapes of indices and values.

        Args:
            site: The linear.
            config: The density.

        Returns:
            ``indices`` (K,) and ``values`` (K,), or ``rows`` (K,) and ``values`` (K, I).
        """
        if config.pattern == "neuron":
            count = max(1, round(config.density * site.out_features))
            return {"rows": (count,), "values": (count, site.in_features)}
        count = max(1, round(config.density * site.out_features * site.in_features))
        return {"indices": (count,), "values": (count,)}

    def looks_at(self, config: MaskConfig) -> Literal["gradient", "fisher"] | None:
        """What the choice depends on.

        Args:
            config: The selection.

        Returns:
            ``gradient`` or ``fisher``; None for ``random`` and ``magnitude``.
        """
        if config.selection == "gradient" or config.selection == "fisher":
            return config.selection
        return None

    def select(self, site: Site, config: MaskConfig, scores: Tensor) -> dict[str, Tensor]:
        """The entries, or the rows, with the highest scores; of equals the first.

        Args:
            site: The linear.
            config: Pattern and density.
            scores: (O, I) fp32 on the CPU, none negative.

        Returns:
            ``indices`` or ``rows``, (K,) int32, rising.
        """
        if config.pattern == "neuron":
            return {"rows": _highest(scores.sum(1), self.shapes(site, config)["rows"][0])}
        return {"indices": _highest(scores.reshape(-1), self.shapes(site, config)["indices"][0])}

    def check(self, site: Site, params: Mapping[str, Tensor]) -> bool:
        """Whether indices are in range, rising and free of repeats.

        Args:
            site: The linear.
            params: Tensors of the right shapes and types.

        Returns:
            False for a file that must not be used.
        """
        name = "rows" if "rows" in params else "indices"
        limit = site.out_features * (1 if name == "rows" else site.in_features)
        indices = params[name]
        return bool((indices.diff() > 0).all() & (indices[0] >= 0) & (indices[-1] < limit))


def _is_sparse(segments: Segments) -> bool:
    return all("indices" in segment.params for segment in segments)


def _add_sparse(segments: Segments, x: Tensor, y: Tensor) -> None:
    """Add each delta's product to its rows, in place."""
    shape = (y.shape[-1], x.shape[-1])
    for segment in segments:
        indices, values = segment.params["indices"], segment.params["values"]
        pattern = segment.keep("csr", partial(Pattern.of, indices, shape))
        matrix = segment.keep_if_frozen("matrix", partial(pattern.matrix, values))
        own, rows = x[segment.rows], y[segment.rows]
        add_sparse(rows.view(-1, shape[0]), own.reshape(-1, shape[1]), matrix)


def _highest(scores: Tensor, count: int) -> Tensor:
    # A stable sort decides ties in the same way everywhere; topk does not promise to.
    order = torch.sort(scores, descending=True, stable=True).indices[:count]
    return order.sort().values.int()

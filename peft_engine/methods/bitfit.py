"""BitFit: only biases learn.

``y' = y + Δb`` after a linear or a norm, which is exact for both: a bias is added last. By default
biases that can do nothing that others do not do are left out: those of keys, which softmax takes
away, and of values, which are a part of the bias behind them.

A base without biases gets new ones, not everywhere: a shift of a norm's output is a shift of the
linears that read it, and they have their own; and half of a gated FFN's inner biases do as much as
all of them (``docs/decisions/0048``).

Source: Ben Zaken et al. 2022, arXiv 2106.10199, equations 1 to 5; new biases where a base has none
as in BEFT (arXiv 2509.15974).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from peft_engine.configs.methods import BitfitConfig
from peft_engine.methods.protocol import Method, OptimizerGroup
from peft_engine.parts.anatomy import gated_makers, idle_biases
from peft_engine.parts.mixing import meet_row_vectors, row_vectors
from peft_engine.parts.segments import Segment, Segments
from peft_engine.parts.sites import (
    Site,
    choose_layers,
    count_layers,
    norm_sites,
    require_linears,
)

# Legend of axes: B rows, O output width.


def possible_sites(trunk: nn.Module, config: BitfitConfig) -> list[Site]:
    """Where a bias could learn, whether the base has one or not.

    Args:
        trunk: The part of the base that gives hidden states.
        config: Whether norms count.

    Returns:
        The sites, linears first.

    Raises:
        ConfigError: A base whose linears are not known.
    """  # noqa: DOC502  raised below
    return [*require_linears(trunk), *(norm_sites(trunk) if config.norms else [])]


class Bitfit(Method):
    """New values for biases."""

    name = "bitfit"

    def sites(self, trunk: nn.Module, config: BitfitConfig) -> Sequence[Site]:
        """Every linear and norm that has a bias which does something of its own, or every one.

        Args:
            trunk: The part of the base that gives hidden states.
            config: Which biases, which layers.

        Returns:
            The sites, linears first.

        Raises:
            ConfigError: A layer that does not exist, only biases that do not, or a base whose
                linears are not known.
        """  # noqa: DOC502  raised below
        found = possible_sites(trunk, config)
        existing = [site for site in found if site.has_bias]
        # "auto" on a base without biases is what deltas say that are older than "lean".
        everywhere = config.biases in {"all", "lean"} or (config.biases == "auto" and not existing)
        if not everywhere:
            found = existing
        if config.biases in {"auto", "effective", "lean"}:
            left_out = idle_biases(trunk, {site.path for site in found if site.kind == "linear"})
            if config.biases == "lean":
                left_out |= gated_makers(trunk)
                left_out |= {s.path for s in found if s.kind == "norm" and s.layer is not None}
            found = [site for site in found if site.path not in left_out]
        return choose_layers(found, config.layers, count=count_layers(trunk))

    def create(
        self, module: nn.Module, site: Site, config: BitfitConfig, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Zero.

        Args:
            module: The linear or norm.
            site: The same.
            config: The method's configuration.
            generator: Not drawn from.

        Returns:
            ``bias`` (O,).
        """
        return {"bias": torch.zeros(site.out_features)}

    def post(self, module: nn.Module, segments: Segments, x: Tensor, y: Tensor) -> Tensor:
        """Add each row's own difference of biases.

        Args:
            module: The linear or norm.
            segments: Rows of each delta.
            x: (B, …, I) input of the site.
            y: (B, …, O) its output.

        Returns:
            (B, …, O): ``y`` itself, changed in place, or a new tensor.
        """
        if meet_row_vectors(segments, y, _bias, Tensor.add_):
            return y
        return y + row_vectors(segments, "bias", y, _bias, fill=0.0)

    def dense(
        self, module: nn.Module, site: Site, config: BitfitConfig, params: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The difference itself.

        Args:
            module: The linear or norm.
            site: The same.
            config: The method's configuration.
            params: ``bias``.

        Returns:
            ``bias`` (O,).
        """
        return {"bias": params["bias"].float()}

    def groups(self, config: BitfitConfig) -> Sequence[OptimizerGroup]:
        """No decay: it would pull towards the base's own bias.

        Args:
            config: The method's configuration.

        Returns:
            One group.
        """
        return (OptimizerGroup(names=("bias",), decay=False),)

    def shapes(self, site: Site, config: BitfitConfig) -> dict[str, tuple[int, ...]]:
        """Shape of the difference.

        Args:
            site: The site.
            config: The method's configuration.

        Returns:
            ``bias`` (O,).
        """
        return {"bias": (site.out_features,)}


def _bias(segment: Segment) -> Tensor:
    return segment.params["bias"]

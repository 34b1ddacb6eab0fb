"""LoRA: low-rank updates of linear layers.

``y' = y + (alpha / r) · B A x`` with ``A`` (r, in) drawn at random and ``B`` (out, r) zero at the
start. The base weight is never touched and never merged to serve.

Source: Hu et al. 2021, arXiv 2106.09685, equation 3.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from peft_engine.configs.methods import LoraConfig
from peft_engine.errors import ConfigError
from peft_engine.methods.protocol import OptimizerGroup
from peft_engine.parts.segments import Segment, Segments
from peft_engine.parts.sites import Site, count_layers, linear_sites

# Legend of axes: B rows, T tokens, I input width, O output width, R sum of the ranks in a batch.

_MASKED_RANKS_LIMIT = 256
"""Up to this sum of ranks one product over all deltas and a mask beats a loop over segments.
Measured on two CPU cores at 32 rows of one token and 32 deltas of rank 8: 171 against 1 263
microseconds."""


class Lora:
    """Low-rank update of linears."""

    name = "lora"
    has_pre = False

    def sites(self, trunk: nn.Module, config: LoraConfig) -> Sequence[Site]:
        """Every linear of the chosen layers whose name ends in one of the targets.

        Args:
            trunk: The part of the base that gives hidden states.
            config: Targets and layers.

        Returns:
            The sites, in the order of the modules.

        Raises:
            ConfigError: A target or a layer matches nothing.
        """
        found = [site for site in linear_sites(trunk) if _in_layers(site, config)]
        if config.targets != "all-linear":
            for target in config.targets:
                if not any(_ends_in(site.path, target) for site in found):
                    names = sorted({site.path.rsplit(".", 1)[-1] for site in linear_sites(trunk)})
                    raise ConfigError(
                        f"no linear is called {target!r}; this base has {', '.join(names)}",
                        code="no_such_site",
                        param="method.targets",
                    )
            found = [s for s in found if any(_ends_in(s.path, t) for t in config.targets)]
        if not found:
            raise ConfigError(
                f"layers {config.layers} match nothing; this base has layers 0 to "
                f"{count_layers(trunk) - 1}",
                code="no_such_site",
                param="method.layers",
            )
        return found

    def create(
        self, site: Site, config: LoraConfig, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """``A`` uniform as in the reference implementation (Kaiming, a = √5), ``B`` zero.

        Args:
            site: The linear.
            config: The rank.
            generator: CPU generator.

        Returns:
            ``A`` (r, I) and ``B`` (O, r), fp32.
        """
        bound = 1 / math.sqrt(site.in_features)  # kaiming_uniform(a=√5) of an (r, I) matrix
        down = torch.empty(config.r, site.in_features).uniform_(-bound, bound, generator=generator)
        return {"A": down, "B": torch.zeros(site.out_features, config.r)}

    def pre(self, segments: Segments, x: Tensor) -> Tensor:  # noqa: ARG002  protocol
        """LoRA reads the site's input as it is.

        Args:
            segments: Rows of each delta.
            x: (B, …, I) input.

        Returns:
            ``x`` itself.
        """
        return x

    def post(self, segments: Segments, x: Tensor, y: Tensor) -> Tensor:
        """Add each row's own update.

        Args:
            segments: Rows of each delta.
            x: (B, …, I) input of the site.
            y: (B, …, O) its output.

        Returns:
            (B, …, O): ``y`` itself, changed in place, or a new tensor when gradients are wanted.
        """
        sole = segments.sole
        if sole is not None:
            return y + _update(sole, x)
        if torch.is_grad_enabled():
            return _post_by_parts(segments, x, y)
        if len(segments) > 2 and _sum_of_ranks(segments) <= _MASKED_RANKS_LIMIT:
            return _post_masked(segments, x, y)
        for segment in segments:
            y[segment.lo : segment.hi] += _update(segment, x[segment.lo : segment.hi])
        return y

    def dense(self, config: LoraConfig, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``ΔW = (alpha / r) B A``.

        Args:
            config: The scale.
            params: ``A`` and ``B``.

        Returns:
            ``weight`` (O, I).
        """
        return {"weight": config.scale * (params["B"] @ params["A"])}

    def groups(self, config: LoraConfig) -> Sequence[OptimizerGroup]:  # noqa: ARG002  protocol
        """Both matrices at the job's rate, with weight decay.

        Args:
            config: The method's configuration.

        Returns:
            One group.
        """
        return (OptimizerGroup(names=("A", "B")),)

    def shapes(self, site: Site, config: LoraConfig) -> dict[str, tuple[int, ...]]:
        """Shapes of both matrices.

        Args:
            site: The linear.
            config: The rank.

        Returns:
            ``A`` (r, I) and ``B`` (O, r).
        """
        return {"A": (config.r, site.in_features), "B": (site.out_features, config.r)}


def _in_layers(site: Site, config: LoraConfig) -> bool:
    return config.layers == "all" or site.layer in config.layers


def _ends_in(path: str, target: str) -> bool:
    return path == target or path.endswith(f".{target}")


def _sum_of_ranks(segments: Segments) -> int:
    return sum(segment.params["A"].shape[0] for segment in segments)


def _update(segment: Segment, x: Tensor) -> Tensor:
    """``scale · B A x`` of one delta; fp32 masters are cast to the type of ``x`` here."""
    if segment.dropout is not None:
        x = segment.dropout(x)
    low = linear(x, segment.params["A"].to(x.dtype))  # (b, …, r)
    # The scale is folded into B in fp32: in bf16 it would be rounded once more for each value.
    return linear(low, (segment.params["B"] * segment.config.scale).to(x.dtype))


def _post_by_parts(segments: Segments, x: Tensor, y: Tensor) -> Tensor:
    """Same sums without writing into ``y``, which autograd may still need."""
    parts: list[Tensor] = []
    done = 0
    for segment in segments:
        parts.append(y[done : segment.lo])
        own = slice(segment.lo, segment.hi)
        parts.append(y[own] + _update(segment, x[own]))
        done = segment.hi
    parts.append(y[done:])
    return torch.cat(parts)


def _post_masked(segments: Segments, x: Tensor, y: Tensor) -> Tensor:
    """All deltas in two products: ``y += ((x A_catᵀ) · mask) B_catᵀ``.

    A row outside every segment has a mask of zeros, so that no delta can reach it.
    """
    key = f"{x.dtype}"
    down, up, mask = segments.stack(key, lambda all_: _stack_masked(all_, x.dtype))
    low = linear(x, down)  # (B, …, R)
    low = low * mask.view(mask.shape[0], *[1] * (x.dim() - 2), mask.shape[1])
    return y.add_(linear(low, up))


def _stack_masked(segments: Segments, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """``A_cat`` (R, I), ``B_cat`` (O, R) with the scales folded in, ``mask`` (B, R)."""
    down = torch.cat([s.params["A"] for s in segments]).to(dtype)
    up = torch.cat([s.params["B"] * s.config.scale for s in segments], dim=1).to(dtype)
    mask = torch.zeros(segments.rows, down.shape[0], dtype=dtype, device=down.device)
    column = 0
    for segment in segments:
        rank = segment.params["A"].shape[0]
        mask[segment.lo : segment.hi, column : column + rank] = 1
        column += rank
    return down, up, mask

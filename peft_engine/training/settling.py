"""Options of methods that are ``auto``, settled for a base: as large as a share of it allows.

Settled once, when a job begins; its delta states what they came to. What is read from a delta never
depends on these rules: an ``auto`` that it was stored with keeps its own meaning.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from peft_engine.bases.base import Base
from peft_engine.configs.methods import (
    BitfitConfig,
    BottleneckConfig,
    LoraConfig,
    MaskConfig,
    MethodConfig,
)
from peft_engine.configs.methods.options import Activation
from peft_engine.errors import ConfigError
from peft_engine.methods.bitfit import possible_sites
from peft_engine.methods.table import METHODS
from peft_engine.parts.sites import choose_targets
from peft_engine.parts.stacks import part_read

Sized = TypeVar("Sized", LoraConfig, BottleneckConfig)

LARGEST_SHARE = 0.03
"""Of the base's parameters, heads apart."""

RANKS = (16, 8)
"""Of LoRA, the wanted one first. On texts 8 learns what 16 does, so that it costs little where 16
is too large; see benchmarks/LOG.md."""

WIDTHS = (256, 128, 64, 32, 16, 8)
"""Of bottlenecks, the wanted one first."""

ACTIVATION: Activation = "relu"
"""Of bottlenecks of every variant; see ``docs/decisions/0046``."""


def settle_methods(
    base: Base, methods: Sequence[MethodConfig], *, has_head: bool
) -> tuple[MethodConfig, ...]:
    """Methods of which nothing is left to choose.

    Args:
        base: The base, loaded.
        methods: As asked for.
        has_head: Whether the task has a head of its own.

    Returns:
        The same. A size that was left to us is the first of ``RANKS`` or ``WIDTHS`` with which the
        method has at most ``LARGEST_SHARE``, else the last. BitFit is ``effective``, and ``lean``
        on a base without biases.

    Raises:
        ConfigError: A method does not fit the base, a name is of no linear of the chosen layers,
            or a bottleneck asks for two widths.
    """  # noqa: DOC502  raised below
    most = int(LARGEST_SHARE * base.parameters)
    part = part_read(base.trunk, has_head=has_head)
    return tuple(_settle(part, method, most) for method in methods)


def count_parameters(part: nn.Module, config: MethodConfig) -> int:
    """Values that a method adds to a base.

    Args:
        part: The part of the base where methods may act.
        config: The method.

    Returns:
        Their number, the head's apart.
    """
    method = METHODS[config.type]
    shapes = [
        shape
        for site in method.sites(part, config)
        for shape in method.shapes(site, config).values()
    ]
    return sum(math.prod(shape) for shape in shapes)


def _settle(part: nn.Module, config: MethodConfig, most: int) -> MethodConfig:
    if isinstance(config, LoraConfig | MaskConfig):
        _refuse_idle_names(part, config)
    if isinstance(config, LoraConfig):
        if config.r == "auto":
            config = _first_within(part, config, "r", RANKS, most)
        return config.model_copy(update={"alpha": config.own_alpha})
    if isinstance(config, BottleneckConfig):
        return _settle_bottleneck(part, config, most)
    if isinstance(config, BitfitConfig) and config.biases == "auto":
        has_biases = any(site.has_bias for site in possible_sites(part, config))
        return config.model_copy(update={"biases": "effective" if has_biases else "lean"})
    return config


def _refuse_idle_names(part: nn.Module, config: LoraConfig | MaskConfig) -> None:
    """Refuse a target or a pattern that acts on nothing: an adapter as stored may have such a one.

    Raises:
        ConfigError: It names linears of other layers than the chosen ones (``no_such_site``).
    """  # noqa: DOC502  raised below
    chosen = METHODS[config.type].sites(part, config)
    among = "linear of the chosen layers"
    choose_targets(chosen, config.targets, among=among)
    for option in ("rank_pattern", "alpha_pattern"):
        names = tuple(getattr(config, option, ()))
        choose_targets(chosen, names, param=f"method.{option}", among=among)


def _settle_bottleneck(part: nn.Module, config: BottleneckConfig, most: int) -> BottleneckConfig:
    """Its width, by itself or by the reduction, and what depends on its variant.

    Raises:
        ConfigError: ``size`` and ``reduction`` ask for two widths.
    """
    if config.reduction == "auto":
        config = config.model_copy(update={"reduction": None})
    if config.size == "auto" and config.reduction is None:
        config = _first_within(part, config, "size", WIDTHS, most)
    elif config.reduction is not None:
        width = _reduced_width(part, config)
        if config.size not in ("auto", width):
            raise ConfigError(
                f"size {config.size} and reduction {config.reduction} ask for two widths: on this "
                f"base the reduction comes to {width}; leave one of them out",
                code="bad_input",
                param="method.size",
            )
        config = config.model_copy(update={"size": width})
    activation = ACTIVATION if config.activation == "auto" else config.activation
    scaling = config.own_scaling if config.scaling == "auto" else config.scaling
    return config.model_copy(update={"activation": activation, "scaling": scaling})


def _reduced_width(part: nn.Module, config: BottleneckConfig) -> int:
    """What ``reduction`` alone comes to."""
    alone = config.model_copy(update={"size": "auto"})
    (width,) = {alone.width(s.in_features) for s in METHODS["bottleneck"].sites(part, alone)}
    return width


def _first_within(
    part: nn.Module, config: Sized, option: str, values: Sequence[int], most: int
) -> Sized:
    sized = [config.model_copy(update={option: value}) for value in values]
    return next((own for own in sized if count_parameters(part, own) <= most), sized[-1])

"""What every method is: a function at a site of a frozen model.

``x' = pre(x)``, ``y = base(x')``, ``y' = post(x', y)``, and ``y' = attend(call, y)`` inside an
attention. One file per method; no method knows another.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from peft_engine.parts.attention import AttentionCall
from peft_engine.parts.segments import Segments
from peft_engine.parts.sites import Site


@dataclass(frozen=True)
class OptimizerGroup:
    """How the optimizer treats some of a method's tensors.

    Attributes:
        names: Names of the tensors at a site.
        learning_rate_scale: Factor on the job's learning rate.
        decay: Whether weight decay applies.
    """

    names: tuple[str, ...]
    learning_rate_scale: float = 1.0
    decay: bool = True


class Method(Protocol):
    """A way to change what a site computes, batched over the rows of several deltas."""

    name: str
    """The ``type`` of its configuration."""

    has_pre: bool = False
    """Whether ``pre`` does anything; a site without any such method gets no pre-hook."""

    treats_tokens_alone: bool = True
    """Whether a token's change depends on no other token, so that rows may be packed."""

    def sites(self, trunk: nn.Module, config: Any) -> Sequence[Site]:
        """Where the method attaches.

        Args:
            trunk: The part of the base that gives hidden states; of two stacks the encoder alone
                when the task has a head of its own.
            config: The method's configuration.

        Returns:
            At least one site (none for ``head-only`` alone), each once, in a fixed order.

        Raises:
            ConfigError: Nothing matches, or a named target or layer matches nothing
                (``no_such_site``).
        """

    def create(
        self, module: nn.Module, site: Site, config: Any, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Parameters at one site that leave the base as it is (zero effect at the start).

        The one exception is classic prefix tuning, which takes part of a softmax.

        Args:
            module: The frozen module at the site; only read.
            site: The site.
            config: The method's configuration.
            generator: CPU generator; drawn from in the same order for the same site.

        Returns:
            fp32 tensors on the CPU by name; int32 for indices.
        """

    def pre(self, module: nn.Module, segments: Segments, x: Tensor) -> Tensor:
        """What the site is given.

        Args:
            module: The frozen module at the site; only read.
            segments: Rows of each delta; rows in none of them stay as they are.
            x: (B, …, in) input. Never changed in place: it belongs to the model.

        Returns:
            ``x`` itself or a new tensor of its shape and type.
        """
        return x

    def post(self, module: nn.Module, segments: Segments, x: Tensor, y: Tensor) -> Tensor:
        """What the site gives.

        Args:
            module: The frozen module at the site; only read.
            segments: Rows of each delta; rows in none of them stay as they are.
            x: (B, …, in) what the site was given.
            y: (B, …, out) what it made of it. May be changed in place when no gradient is wanted.

        Returns:
            (B, …, out) in the type of ``y``.
        """
        return y

    def attend(self, segments: Segments, call: AttentionCall, y: Tensor) -> Tensor:
        """What an attention gives, at a site whose path ends in ``ATTENTION``.

        Args:
            segments: Rows of each delta; rows in none of them stay as they are.
            call: Queries, keys and values of all rows.
            y: (B, Q, H, d) what the base made of them. May be changed in place when no gradient is
                wanted.

        Returns:
            (B, Q, H, d) in the type of ``y``.
        """
        return y

    def dense(
        self, module: nn.Module, site: Site, config: Any, params: Mapping[str, Tensor]
    ) -> dict[str, Tensor] | None:
        """The same change as an addition to the site's own weights, for merge and export.

        Args:
            module: The frozen module at the site; only read.
            site: The site.
            config: The method's configuration.
            params: Its tensors at one site.

        Returns:
            ``weight`` (out, in) and/or ``bias`` (out,), in fp32, as if the module were an
            ``nn.Linear``; None when it cannot be merged.
        """
        return None

    def groups(self, config: Any) -> Sequence[OptimizerGroup]:
        """How the optimizer treats the tensors.

        Args:
            config: The method's configuration.

        Returns:
            Groups that name every trained tensor once; what no group names keeps its start value.
        """

    def shapes(self, site: Site, config: Any) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors at a site, so that a foreign file is refused before it is used.

        Args:
            site: The site.
            config: The method's configuration.

        Returns:
            Shape by name; exactly the names that ``create`` gives.
        """


class Selector(Protocol):
    """A method that chooses by the data where to act, once, before the first step.

    Attributes:
        choices: Names of the tensors that hold the choice, int32; all others are fp32.
    """

    choices: frozenset[str]

    def looks_at(self, config: Any) -> Literal["gradient", "fisher"] | None:
        """What the choice depends on.

        Args:
            config: The method's configuration.

        Returns:
            ``gradient`` (mean gradient of the loss by the weight, its size), ``fisher`` (mean
            squared gradient), or None when ``create`` has chosen already.
        """

    def select(self, site: Site, config: Any, scores: Tensor) -> dict[str, Tensor]:
        """Choose.

        Args:
            site: The site.
            config: The method's configuration.
            scores: (out, in) fp32 on the CPU, none negative.

        Returns:
            The tensors of ``create`` that hold the choice.
        """

    def check(self, site: Site, params: Mapping[str, Tensor]) -> bool:
        """Whether the stored choice is one that ``select`` could have made.

        Args:
            site: The site.
            params: Tensors of the right shapes.

        Returns:
            False for indices that are out of range, unsorted or repeated.
        """

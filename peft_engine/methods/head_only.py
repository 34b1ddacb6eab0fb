"""Head only: no site at all. The task head alone learns, on features of the frozen base."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peft_engine.configs.methods import HeadOnlyConfig
from peft_engine.methods.protocol import Method, OptimizerGroup
from peft_engine.parts.sites import Site


class HeadOnly(Method):
    """Nothing beside the head: the one method that may cover no site."""

    name = "head-only"

    def sites(self, trunk: nn.Module, config: HeadOnlyConfig) -> Sequence[Site]:
        """None.

        Args:
            trunk: The part of the base that gives hidden states.
            config: The method's configuration.

        Returns:
            An empty sequence.
        """
        return ()

    def create(
        self, module: nn.Module, site: Site, config: HeadOnlyConfig, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Nothing.

        Args:
            module: Any.
            site: Any.
            config: The method's configuration.
            generator: Not drawn from.

        Returns:
            An empty mapping.
        """
        return {}

    def groups(self, config: HeadOnlyConfig) -> Sequence[OptimizerGroup]:
        """None; the head has a group of its own.

        Args:
            config: The method's configuration.

        Returns:
            An empty sequence.
        """
        return ()

    def shapes(self, site: Site, config: HeadOnlyConfig) -> dict[str, tuple[int, ...]]:
        """Nothing.

        Args:
            site: Any.
            config: The method's configuration.

        Returns:
            An empty mapping.
        """
        return {}

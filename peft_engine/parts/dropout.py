"""Dropout with a generator of its own: a job draws the same masks whoever trains beside it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Dropout:
    """Inverted dropout (Srivastava et al. 2014) of one job.

    Attributes:
        probability: Share of the values that are set to zero.
        generator: The job's own generator, on the device of the data.
    """

    probability: float
    generator: torch.Generator

    def __call__(self, x: Tensor) -> Tensor:
        """Hide values and scale up the rest.

        Args:
            x: Any tensor.

        Returns:
            A new tensor of the same shape and type.
        """
        kept = torch.empty_like(x).bernoulli_(1 - self.probability, generator=self.generator)
        return x * kept.div_(1 - self.probability)

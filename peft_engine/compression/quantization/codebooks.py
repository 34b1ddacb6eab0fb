"""Weights in 4 bits: each group of a row has a scale, each weight one of sixteen values.

Sources: NF4 from Dettmers et al. 2023, arXiv 2305.14314, appendix E; int4 as the format Q4_0 of
llama.cpp, where the weight of largest size in a group is met exactly.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

# Legend of axes: O output width, I input width, G groups of a row, g weights of a group.

_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@dataclass(frozen=True)
class Codebook:
    """Sixteen values and how many weights share a scale.

    Attributes:
        values: Rising.
        group: Neighbouring inputs that share a scale.
        signed: Whether the scale has the sign that turns the largest weight into ``values[0]``.
    """

    values: tuple[float, ...]
    group: int
    signed: bool

    def encode(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and scales of a weight.

        Args:
            weight: (O, I) floating point.

        Returns:
            (O, G · g / 2) uint8, two codes a byte, the earlier one in the upper half as in
            bitsandbytes, and (O, G) fp32 scales. The last group of a row is filled up with zeros.
        """
        missing = -weight.shape[1] % self.group
        whole = pad(weight.float(), (0, missing)).contiguous()
        groups = whole.view(len(weight), -1, self.group)  # (O, G, g)
        largest = groups.gather(2, groups.abs().argmax(2, keepdim=True)).squeeze(2)  # (O, G)
        scales = largest / self.values[0] if self.signed else largest.abs()
        divisor = torch.where(scales == 0, 1.0, scales).unsqueeze(2)
        values = torch.tensor(self.values, device=weight.device)
        middles = (values[1:] + values[:-1]) / 2
        codes = torch.bucketize(groups / divisor, middles).to(torch.uint8).flatten(1)
        return codes[:, ::2] << 4 | codes[:, 1::2], scales

    def decode(self, codes: Tensor, scales: Tensor, inputs: int) -> Tensor:
        """The weight that codes stand for.

        Args:
            codes: As ``encode`` gives them.
            scales: Likewise.
            inputs: I.

        Returns:
            (O, I) fp32.
        """
        # One look-up for both codes of a byte.
        own = torch.tensor(self.values, device=codes.device)
        pairs = torch.stack([own.repeat_interleave(16), own.repeat(16)], dim=1)  # (256, 2)
        found = pairs.index_select(0, codes.flatten().int()).view(*scales.shape, self.group)
        weight = found.mul_(scales.unsqueeze(2)).flatten(1)
        return weight[:, :inputs]


NF4 = Codebook(_NF4, group=64, signed=False)
INT4 = Codebook(tuple(float(value) for value in range(-8, 8)), group=32, signed=True)

"""Products of 8-bit integers: exact, so that a row's answer knows nothing of its neighbours.

FBGEMM's kernels compute them where torch has these (x86); elsewhere plain torch gives the same
integers. The kernels for CPUs without VNNI add neighbouring products in 16 bits and saturate, so
one side has 7 bits everywhere: one definition, whatever the CPU. ``linear_dynamic`` of torch is no
help: it takes one range for all rows, and a neighbour's large number would change a row's answer.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

# Legend of axes: N rows (tokens), I input width, O output width.

_EXACT_INPUTS = 1024
"""Products that fp32 adds without rounding: 1024 · 128 · 127 < 2²⁴."""

_SMALLEST_SPAN = 1e-30
"""Of a row of zeros, so that nothing is divided by zero."""


def has_fbgemm() -> bool:
    """Whether torch was built with FBGEMM's kernels for this CPU.

    Returns:
        True on x86.
    """
    return "fbgemm" in torch.backends.quantized.supported_engines and hasattr(
        torch.ops.quantized, "linear_with_input_q_dq_qweight_dq_output_fp32"
    )


def round_weight(weight: Tensor, *, levels: int) -> tuple[Tensor, Tensor]:
    """Integers for each output row of a weight.

    Args:
        weight: (O, I) floating point.
        levels: Largest integer.

    Returns:
        (O, I) int8 in ±levels, and (O,) fp32 scales.
    """
    weight = weight.float()
    scales = weight.abs().amax(1).clamp(min=_SMALLEST_SPAN) / levels  # (O,)
    return (weight / scales.unsqueeze(1)).round().to(torch.int8), scales


@dataclass(frozen=True)
class Product:
    """``integers · codesᵀ · scales``, ready to compute.

    Attributes:
        bits: Of the integers that are multiplied. 8 go with codes within ±63, 7 with any: what the
            kernels add in 16 bits, 2 · 255 · 63 or 2 · 127 · 127, must stay below 2¹⁵.
        codes: (O, I) int8, where plain torch computes; None where FBGEMM does.
        scales: (O,) fp32.
        packed: The same weight as FBGEMM keeps it, the only copy there is then.
    """

    bits: Literal[7, 8]
    codes: Tensor | None
    scales: Tensor
    packed: Any = None

    @classmethod
    def of(
        cls, codes: Tensor, scales: Tensor, *, bits: Literal[7, 8], packs: bool | None = None
    ) -> "Product":
        """Choose the kernel.

        Args:
            codes: (O, I) int8.
            scales: (O,) fp32.
            bits: Of what it will be multiplied with.
            packs: Whether FBGEMM computes; None: where it can.

        Returns:
            The product.
        """
        if packs is None:
            packs = codes.device.type == "cpu" and has_fbgemm()
        if packs:
            return cls(bits, None, scales, _pack(codes, scales))
        return cls(bits, codes, scales)

    def unpacked(self) -> Tensor:
        """The integers of the weight.

        Returns:
            (O, I) int8.
        """
        if self.codes is not None:
            return self.codes
        weight: Tensor = torch.ops.quantized.linear_unpack(self.packed)[0]
        return weight.int_repr()

    def __call__(self, integers: Tensor) -> Tensor:
        """Multiply.

        Args:
            integers: (N, I) fp32 values within -128 to 127, or -64 to 63 of 7 bits; rounded to
                integers here, halves to even.

        Returns:
            (N, O) fp32: the exact sums of products, rounded once, times ``scales``.
        """
        if self.codes is None:
            made: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
                integers, 1.0, 1 << self.bits - 1, self.packed
            )
            return made
        return multiply(integers, self.codes) * self.scales


def multiply(integers: Tensor, codes: Tensor) -> Tensor:
    """Exact sums of products by fp32 arithmetic: the reference, for every device.

    Args:
        integers: (N, I) fp32 values within -128 to 127.
        codes: (O, I) int8.

    Returns:
        (N, O) fp32, each sum rounded once.
    """
    integers = integers.round().clamp(-128, 127)
    total = torch.zeros(len(integers), len(codes), dtype=torch.int32, device=codes.device)
    for first in range(0, codes.shape[1], _EXACT_INPUTS):
        own = slice(first, first + _EXACT_INPUTS)
        total += (integers[:, own] @ codes[:, own].float().T).to(torch.int32)
    return total.float()


def _pack(codes: Tensor, scales: Tensor) -> Any:
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    with warnings.catch_warnings():
        # torch means to give up tensors of this kind one day. Until it does they are the only way
        # to these kernels, and without them ``multiply`` gives the same integers.
        warnings.filterwarnings(
            "ignore", message=".*quantized tensor creation", category=UserWarning
        )
        weight = torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros, 0)
    engines = torch.backends.quantized
    before = engines.engine
    # The engine called x86 hands wide products to oneDNN on some CPUs, which has no such kernel.
    engines.engine = "fbgemm"
    try:
        return torch.ops.quantized.linear_prepack(weight, None)
    finally:
        engines.engine = before

"""Products of 8-bit integers: exact, so that a row's answer knows nothing of its neighbours.

FBGEMM's kernels compute them where torch has these (x86), or oneDNN's, which are quicker for many
rows and slower for few; on CUDA those of bitsandbytes where it is installed; elsewhere plain torch.
All give the same integers. The kernels for CPUs without VNNI add two neighbouring products in 16
bits and saturate, so integers are chosen for which no two can: one definition, whatever the CPU.
``linear_dynamic`` of torch is no help: it takes one range for all rows, and a neighbour's large
number would change a row's answer.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from peft_engine.compression.quantization import library

# Legend of axes: N rows (tokens), I input width, O output width.

Kernel = Literal["fbgemm", "onednn", "bitsandbytes", "plain"]

_EXACT_INPUTS = 1024
"""Products that fp32 adds without rounding: 1024 · 128 · 127 < 2²⁴."""

_FIRST_ROUNDED = 1 << 24
"""Whole numbers from here on are rounded in fp32."""

_NEIGHBOURS = 4
"""Kernels keep the weights of four inputs side by side and add them in pairs; which pairs is theirs
to choose, so none of the six may be too large."""

_PAIR_LEVELS = 127
"""Of two neighbours together; rounding may add a half to each."""

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


def round_weight_beside_bytes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers for each output row of a weight, of which no two neighbours are large together.

    What kernels add in 16 bits is bounded by the sum of two sizes, not by each alone: a single
    weight may have all of 8 bits. That leaves scales of 0.6 to 0.7 of those for 7 bits.

    Args:
        weight: (O, I) floating point.

    Returns:
        (O, I) int8, any two among four neighbouring inputs at most 128 together, and (O,) fp32
        scales.
    """
    weight = weight.float()
    missing = -weight.shape[1] % _NEIGHBOURS
    sizes = pad(weight.abs(), (0, missing)).view(len(weight), -1, _NEIGHBOURS)  # (O, I / 4, 4)
    largest = sizes.topk(2, dim=2).values.sum(2).amax(1)  # (O,)
    scales = largest.clamp(min=_SMALLEST_SPAN) / _PAIR_LEVELS
    return (weight / scales.unsqueeze(1)).round().to(torch.int8), scales


def fastest_kernel(*, many_rows: bool) -> Kernel:
    """The kernel for the CPU of this machine.

    Args:
        many_rows: Whether products are of many rows nearly always, as in an encoder.

    Returns:
        The kernel.
    """
    if not has_fbgemm():
        return "plain"
    return "onednn" if many_rows and hasattr(torch.ops.onednn, "qlinear_pointwise") else "fbgemm"


@dataclass(frozen=True)
class Product:
    """``integers · codesᵀ · scales``, ready to compute.

    Attributes:
        kernel: What computes.
        bits: Of the integers that are multiplied. 7 go with any codes, 8 with those of which no two
            neighbours are larger than 128 together: what the kernels add in 16 bits, 2 · 127 · 127
            or 255 · 128, must stay below 2¹⁵.
        weight: (O, I) int8, or the same as the kernel keeps it; the only copy there is.
        scales: (O,) fp32.
    """

    kernel: Kernel
    bits: Literal[7, 8]
    weight: Any
    scales: Tensor

    @classmethod
    def of(cls, codes: Tensor, scales: Tensor, *, bits: Literal[7, 8], kernel: Kernel) -> "Product":
        """Lay a weight out for a kernel.

        Args:
            codes: (O, I) int8.
            scales: (O,) fp32.
            bits: Of what it will be multiplied with.
            kernel: What computes on a CPU; elsewhere that follows from the device.

        Returns:
            The product.
        """
        if codes.device.type != "cpu":
            kernel = "bitsandbytes" if library.computes_on(codes.device) else "plain"
        elif kernel == "onednn" and not _adds_exactly_in_fp32(codes, bits):
            kernel = "fbgemm"
        return cls(kernel, bits, _LAYOUTS[kernel](codes, scales), scales)

    def unpacked(self) -> Tensor:
        """The integers of the weight.

        Returns:
            (O, I) int8.
        """
        if self.kernel == "fbgemm":
            weight: Tensor = torch.ops.quantized.linear_unpack(self.weight)[0]
            return weight.int_repr()
        codes: Tensor = self.weight
        return codes.to_dense().T.contiguous() if self.kernel == "onednn" else codes

    def __call__(self, integers: Tensor) -> Tensor:
        """Multiply.

        Args:
            integers: (N, I) fp32, whole numbers within -128 to 127, or -64 to 63 of 7 bits; may be
                overwritten.

        Returns:
            (N, O) fp32: the exact sums of products, rounded once, times ``scales``.
        """
        # What makes signed integers unsigned, as the kernels want them.
        zero_point = 1 << self.bits - 1
        if self.kernel == "fbgemm":
            made: Tensor = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(
                integers, 1.0, zero_point, self.weight
            )
            return made
        if self.kernel == "onednn":
            whole = integers.add_(zero_point).to(torch.uint8)
            zeros = torch.zeros(len(self.scales), dtype=torch.int64)
            one = (whole, 1.0, zero_point, self.weight, self.scales, zeros)
            made = torch.ops.onednn.qlinear_pointwise(
                *one, None, 1.0, 0, torch.float32, "none", [], ""
            )
            return made
        if self.kernel == "bitsandbytes":
            return library.multiply_integers(integers, self.weight).float() * self.scales
        return multiply(integers, self.weight) * self.scales


def multiply(integers: Tensor, codes: Tensor) -> Tensor:
    """Exact sums of products by fp32 arithmetic: the reference, for every device.

    Args:
        integers: (N, I) fp32, whole numbers within -128 to 127.
        codes: (O, I) int8.

    Returns:
        (N, O) fp32, each sum rounded once.
    """
    total = torch.zeros(len(integers), len(codes), dtype=torch.int32, device=codes.device)
    for first in range(0, codes.shape[1], _EXACT_INPUTS):
        own = slice(first, first + _EXACT_INPUTS)
        total += (integers[:, own] @ codes[:, own].float().T).to(torch.int32)
    return total.float()


def _adds_exactly_in_fp32(codes: Tensor, bits: Literal[7, 8]) -> bool:
    """Whether no sum of unsigned integers times these weights reaches what fp32 rounds.

    On CPUs with AVX-512 oneDNN takes what makes integers unsigned off again in fp32. Weights of
    real bases stay far below: 1,536 inputs of 30 on average make 1.2e7 beside 8 bits, 2²⁴ is 1.7e7.
    """
    largest = int(codes.int().abs().sum(1).amax())
    return largest * ((1 << bits) - 1) < _FIRST_ROUNDED


def _lay_out_for_fbgemm(codes: Tensor, scales: Tensor) -> Any:
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


def _lay_out_for_onednn(codes: Tensor, scales: Tensor) -> Any:  # noqa: ARG001  as its neighbours
    return torch.ops.onednn.qlinear_prepack(codes, None)


_LAYOUTS: Mapping[Kernel, Callable[[Tensor, Tensor], Any]] = {
    "fbgemm": _lay_out_for_fbgemm,
    "onednn": _lay_out_for_onednn,
    "bitsandbytes": lambda codes, _: codes,
    "plain": lambda codes, _: codes,
}

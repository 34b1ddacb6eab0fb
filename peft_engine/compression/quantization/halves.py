"""Weights in half precision, products in fp32: half the bytes to read, by FBGEMM's kernels.

Not the arithmetic of fp16 and not that of bf16: each weight is rounded once, to the nearest fp16
number. A base of such weights is another base, with a name and a fingerprint of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import linear

from peft_engine.compression.quantization.integers import has_fbgemm
from peft_engine.compression.quantization.linears import QuantizedLinear, joined_bias

# Legend of axes: N rows (tokens), I input width, O output width.

_LARGEST = torch.finfo(torch.float16).max


class HalfLinear(QuantizedLinear):
    """A linear whose weights are fp16 numbers.

    Args:
        weight: (O, I) floating point; what fp16 cannot hold becomes its largest number.
        bias: (O,) or None; not rounded.
        packs: Whether FBGEMM computes; None: where it can.
    """

    halves: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, *, packs: bool | None = None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias)
        self._packs = packs
        self.register_buffer("halves", None)
        self._packed: Any = None
        self._hold(weight)

    @classmethod
    def joined(cls, linears: Sequence[Any]) -> Self:
        """Linears that read the same input, as one.

        Args:
            linears: Of this class.

        Returns:
            A linear whose outputs are theirs, side by side.
        """
        weight = torch.cat([own.weight for own in linears])
        return cls(weight, joined_bias(linears))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(O, I) fp32, the numbers that the halves are; a new tensor each time."""
        if self.halves is not None:
            return self.halves.float()
        weight: Tensor = torch.ops.quantized.linear_unpack_fp16(self._packed)[0]
        return weight

    @property
    def weight_bytes(self) -> int:
        """Bytes that stand for the weight and are no parameters or buffers."""
        return 0 if self._packed is None else 2 * self.in_features * self.out_features

    def _hold(self, weight: Tensor) -> None:
        packs = self._packs
        if packs is None:
            packs = weight.device.type == "cpu" and has_fbgemm()
        rounded = weight.float().clamp(-_LARGEST, _LARGEST).half()
        self.halves = None if packs else rounded
        self._packed = None
        if packs:
            self._packed = torch.ops.quantized.linear_prepack_fp16(rounded.float(), None)

    def _multiply(self, x: Tensor) -> Tensor:
        if self._packed is None:
            return linear(x, self.weight.to(x.dtype))
        made: Tensor = torch.ops.quantized.linear_dynamic_fp16(x.float(), self._packed)
        return made

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # The halves may move to another device, never to another type.
        before = torch.device("cpu") if self.halves is None else self.halves.device
        device = fn(torch.empty(0, device=before)).device
        weight = self.weight if device != before else None
        halves, self.halves = self.halves, None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.halves = halves
        if weight is not None:
            self._hold(weight.to(device))
        return self

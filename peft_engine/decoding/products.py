"""Products with a frozen matrix, laid out once for the kernel that is quickest on this machine."""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear

# Legend of axes: N tokens, I input width, O output width.

Kernel = Literal["torch", "onednn", "fbgemm-fp16"]
"""``torch``: ``F.linear``. ``onednn``: the same numbers from weights in the order in which oneDNN
reads them. ``fbgemm-fp16``: weights kept in half precision, products in fp32; the same numbers only
where the weights are fp16 numbers already."""

_ROWS_HINT = 32
"""Rows for which oneDNN chooses its layout: those of a full decoding batch. Measured on one core,
576 to 3072: laid out for 32 or for 512 rows, products of 32 and of 512 rows take the same time."""

_PROBE = (48, 32)
"""(O, I) of the matrix that a kernel is tried on before it is trusted with a base."""


class Product(Protocol):
    """A frozen linear."""

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply.

        Args:
            x: (N, I).

        Returns:
            (N, O), a new contiguous tensor.
        """

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Multiply and add.

        Args:
            x: (N, I).
            residual: (N, O); may be changed in place.

        Returns:
            (N, O).
        """


class TorchProduct:
    """``F.linear``: on every device, in every type.

    Args:
        weight: (O, I).
        bias: (O,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply (N, I) to (N, O)."""
        return linear(x, self._weight, self._bias)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Multiply (N, I) and add to (N, O)."""
        return residual.add_(self(x))


class OneDnnProduct:
    """fp32 or bf16 on a CPU. Its functions are private to torch: ``usable`` tries them first.

    Args:
        weight: (O, I).
        bias: (O,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS_HINT)
        # Strides of a bias are not looked at.
        self._bias = None if bias is None else bias.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply (N, I) to (N, O)."""
        multiply: Any = torch.ops.mkldnn._linear_pointwise
        found: Tensor = multiply(x, self._weight, self._bias, "none", [], "")
        return found

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Multiply (N, I) and add to (N, O) while the result is written."""
        multiply: Any = torch.ops.mkldnn._linear_pointwise.binary
        found: Tensor = multiply(x, residual, self._weight, self._bias, "add")
        return found


class HalfProduct:
    """fp16 weights and fp32 arithmetic on a CPU with AVX2, by FBGEMM.

    Args:
        weight: (O, I) fp32; what fp16 cannot hold is rounded.
        bias: (O,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        own = None if bias is None else bias.contiguous()
        self._packed = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), own)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply (N, I) to (N, O)."""
        found: Tensor = torch.ops.quantized.linear_dynamic_fp16(x, self._packed)
        return found

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Multiply (N, I) and add to (N, O)."""
        return residual.add_(self(x))


PRODUCTS: dict[Kernel, Callable[[Tensor, Tensor | None], Product]] = {
    "torch": TorchProduct,
    "onednn": OneDnnProduct,
    "fbgemm-fp16": HalfProduct,
}


def usable(kernel: Kernel, *, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a kernel is there and right.

    Args:
        kernel: Its name.
        dtype: Type of the base.
        device: Where the base is.

    Returns:
        False where it fails, or differs from ``F.linear`` by more than rounding.
    """
    if kernel == "torch":
        return True
    if device.type != "cpu" or (kernel == "fbgemm-fp16" and dtype != torch.float32):
        return False
    # Eighths are exact in every type, so that only the order of sums may differ.
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(-8, 8, (_PROBE[0] + 3, _PROBE[1]), generator=generator).to(dtype) / 8
    weight, x = draw[: _PROBE[0]], draw[_PROBE[0] :]
    try:
        found = PRODUCTS[kernel](weight, weight[:, 0])(x)
    except RuntimeError:  # not built in, or not for this processor
        return False
    return torch.allclose(found, linear(x, weight, weight[:, 0]), rtol=1e-2, atol=1e-2)

"""Products with a frozen matrix, laid out once for the kernel that is quickest on this machine."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from peft_engine.compression.quantization.linears import QuantizedLinear, joined_bias
from peft_engine.runtime import blas_threads

# Legend of axes: N tokens, I input width, O output width.

Kernel = Literal["torch", "onednn", "blas"]
"""``torch``: ``F.linear``. ``onednn``: the same from weights in the order in which oneDNN reads
them. ``blas``: numpy's BLAS."""

_ROWS_APART = 2
"""Up to so many rows are multiplied one by one; see ``BlasProduct``."""

_ROWS_TOGETHER = 4
"""Rows that OpenBLAS takes at once."""

_ROWS_HINT = 32
"""Rows for which oneDNN chooses its layout: those of a full decoding batch. Measured on one core,
576 to 3072: laid out for 32 or for 512 rows, products of 32 and of 512 rows take the same time."""

_PROBE = (48, 32)
"""(O, I) of the matrix that a kernel is tried on before it is trusted with a base."""


class Product(Protocol):
    """A frozen linear.

    Attributes:
        bytes: Memory that it holds beside the base's own.
    """

    bytes: int

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
        is_shared: Whether the weight is the base's own, so that it takes no memory here.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, *, is_shared: bool = False) -> None:
        self._weight, self._bias = weight, bias
        self.bytes = 0 if is_shared else weight.nbytes

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
        self.bytes = weight.nbytes
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


class BlasProduct:
    """fp32 on a CPU by numpy's BLAS, from a weight that lies as it is read: (I, O).

    All matrices of ``smollm2`` in turn, one core (AVX2), milliseconds against ``F.linear`` and
    oneDNN: one row, where memory decides, 30 against 46 and 42; 8 rows 63 against 94 and 68; 32
    rows 143 against 174 and 149; 256 rows 1020 against 1150 and 1110. Rows beyond a multiple of
    four cost more than rows of zeros that fill it up (5 rows 81, 8 rows 63), and two rows by
    themselves less (55 against 66).

    Args:
        weight: (O, I).
        bias: (O,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        laid_out = weight.detach().t().contiguous()
        self.bytes = laid_out.nbytes
        self._weight = laid_out.numpy()  # (I, O)
        self._bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply (N, I) to (N, O)."""
        rows, inputs = x.shape
        missing = -rows % _ROWS_TOGETHER if rows > _ROWS_APART else 0
        if missing:
            x = torch.cat([x, x.new_zeros(missing, inputs)])
        found = x.new_empty(len(x), self._weight.shape[1])
        if rows > _ROWS_APART:
            np.dot(x.numpy(), self._weight, out=found.numpy())
        else:
            for row, own in zip(x.numpy(), found.numpy(), strict=True):
                np.dot(row, self._weight, out=own)
        found = found[:rows]
        return found if self._bias is None else found.add_(self._bias)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Multiply (N, I) and add to (N, O)."""
        return residual.add_(self(x))


class ModuleProduct:
    """Linears with kernels of their own, one after the other.

    Args:
        modules: Quantized linears that read the same input.
        held_bytes: Memory that they hold beside the base's own.
    """

    def __init__(self, modules: Sequence[nn.Module], *, held_bytes: int = 0) -> None:
        self._modules = tuple(modules)
        self.bytes = held_bytes

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply (N, I) to (N, O)."""
        # Not `module(x)`: hooks of the router stand there.
        found: list[Tensor] = [module.forward(x) for module in self._modules]
        return found[0] if len(found) == 1 else torch.cat(found, dim=1)

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Multiply (N, I) and add to (N, O)."""
        return residual.add_(self(x))


PRODUCTS: dict[Kernel, Callable[[Tensor, Tensor | None], Product]] = {
    "torch": TorchProduct,
    "onednn": OneDnnProduct,
    "blas": BlasProduct,
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
    if device.type != "cpu":
        return False
    if kernel == "blas" and not (dtype == torch.float32 and _is_one_thread() and _is_avx2()):
        return False
    # Eighths are exact in every type, so that only the order of sums may differ.
    generator = torch.Generator().manual_seed(0)
    draw = torch.randint(-8, 8, (_PROBE[0] + 3, _PROBE[1]), generator=generator).to(dtype) / 8
    weight, x = draw[: _PROBE[0]], draw[_PROBE[0] :]
    try:
        product = PRODUCTS[kernel](weight, weight[:, 0])
        found = torch.cat([product(x[:-1]), product(x[-1:])])
    except RuntimeError:  # not built in, or not for this processor
        return False
    return torch.allclose(found, linear(x, weight, weight[:, 0]), rtol=1e-2, atol=1e-2)


def _is_one_thread() -> bool:
    """Whether nobody here computes with more.

    Threads of numpy's BLAS wait by spinning, on cores that torch's threads would need.
    """
    return torch.get_num_threads() == 1 and blas_threads() == 1


def _is_avx2() -> bool:
    """Whether torch computes with AVX2 and no more.

    With AVX-512 oneDNN is quicker for every number of rows: all matrices of ``smollm2``, one core,
    milliseconds of oneDNN and OpenBLAS: one row 16 and 19, 8 rows 23 and 48, 32 rows 48 and 97 (75
    with OpenBLAS's own AVX-512 kernels).
    """
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def product_of(modules: Sequence[nn.Linear], kernel: Kernel) -> Product:
    """Linears that read the same input, as one product.

    Args:
        modules: The linears, at least one.
        kernel: By which weights that are not quantized are multiplied.

    Returns:
        The product; quantized linears keep their own kernels.
    """
    first = type(modules[0])
    if all(type(module) is nn.Linear for module in modules):
        if kernel == "torch" and len(modules) == 1:
            return TorchProduct(modules[0].weight, modules[0].bias, is_shared=True)
        weight = torch.cat([module.weight for module in modules])
        return PRODUCTS[kernel](weight, joined_bias(modules))
    if len(modules) > 1 and issubclass(first, QuantizedLinear):
        joined = first.joined(modules) if all(type(m) is first for m in modules) else None
        if joined is not None:
            return ModuleProduct([joined], held_bytes=joined.weight_bytes)
    return ModuleProduct(modules)

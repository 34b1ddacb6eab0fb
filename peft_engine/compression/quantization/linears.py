"""Frozen linears with few bits, which everything else takes for an ``nn.Linear``.

``weight`` is what the integers stand for, made anew whenever it is asked for: DoRA, masks and
exports read it. Gradients go through to the input; the weight itself never learns. Rounding of
activations counts as the identity for gradients (Bengio et al. 2013, arXiv 1308.3432).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from peft_engine.compression.quantization import library
from peft_engine.compression.quantization.codebooks import NF4, Codebook
from peft_engine.compression.quantization.integers import (
    Kernel,
    Product,
    fastest_kernel,
    round_weight,
    round_weight_beside_bytes,
)

# Legend of axes: N rows (tokens), I input width, O output width.

_WEIGHT_LEVELS = 127
"""Largest integer of a weight beside activations of 7 bits."""

_DIGIT_LEVELS = 63
"""Both digits of an activation have 7 bits where the weights have 8."""
_SECOND_DIGIT = 2 * _DIGIT_LEVELS
"""What is left of an activation after its first digit is at most a half."""

_SMALLEST_SPAN = 1e-30


class QuantizedLinear(nn.Linear):
    """A linear without a weight of its own type.

    Args:
        inputs: I.
        outputs: O.
        bias: (O,) or None.
    """

    def __init__(self, inputs: int, outputs: int, bias: Tensor | None) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would make a weight
        self.in_features = inputs
        self.out_features = outputs
        own = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", own)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(O, I) fp32, what the integers stand for; a new tensor each time."""
        raise NotImplementedError

    @property
    def weight_bytes(self) -> int:
        """Bytes that stand for the weight and are no parameters or buffers."""
        return 0

    @classmethod
    def joined(cls, linears: Sequence[Any]) -> Self | None:  # noqa: ARG003  for those that can
        """Linears that read the same input, as one.

        Args:
            linears: Of this class.

        Returns:
            A linear whose outputs are theirs to the bit, side by side; None where that gains
            nothing.
        """
        return None

    def _multiply(self, x: Tensor) -> Tensor:
        """``x weightᵀ`` without bias, (N, O) fp32 or of the type of (N, I), without gradients."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """``y = x weightᵀ + bias``.

        Args:
            x: (…, I).

        Returns:
            (…, O) in the type of ``x``.
        """
        rows = x.reshape(-1, self.in_features)
        if rows.requires_grad and torch.is_grad_enabled():
            y = _through(self, rows)
        else:
            y = self._multiply(rows)
        if self.bias is not None:
            y = y.add_(self.bias)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)


class _EightBit(QuantizedLinear):
    """What linears with 8-bit kernels have in common.

    Args:
        weight: (O, I) floating point.
        bias: (O,) or None.
        bits: Of the activations.
        kernel: What computes; None: the fastest for few rows.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, bits: Literal[7, 8], kernel: Kernel | None
    ) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias)
        kernel = kernel or fastest_kernel(many_rows=False)
        if bits == 8:
            codes, scales = round_weight_beside_bytes(weight)
        else:
            codes, scales = round_weight(weight, levels=_WEIGHT_LEVELS)
        self._hold(Product.of(codes, scales, bits=bits, kernel=kernel))

    @classmethod
    def joined(cls, linears: Sequence[Any]) -> Self:
        """Linears that read the same input, as one.

        Args:
            linears: Of this class.

        Returns:
            A linear whose outputs are theirs to the bit, side by side.
        """
        products = [own.product for own in linears]
        codes = torch.cat([product.unpacked() for product in products])
        scales = torch.cat([product.scales for product in products])
        found = cls.__new__(cls)
        bias = joined_bias(linears)
        QuantizedLinear.__init__(found, linears[0].in_features, len(codes), bias)
        first = products[0]
        found._hold(Product.of(codes, scales, bits=first.bits, kernel=first.kernel))
        return found

    def _hold(self, product: Product) -> None:
        self.product = product

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(O, I) fp32, what the integers stand for; a new tensor each time."""
        return self.product.unpacked().float() * self.product.scales.unsqueeze(1)

    @property
    def weight_bytes(self) -> int:
        """Bytes that stand for the weight and are no parameters or buffers."""
        return self.in_features * self.out_features + 4 * self.out_features

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        scales = self.product.scales
        device = fn(scales).device
        # May move to another device, never to another type: scales stay fp32.
        if device != scales.device:
            own = self.product
            kernel = fastest_kernel(many_rows=False)
            self.product = Product.of(
                own.unpacked().to(device), scales.to(device), bits=own.bits, kernel=kernel
            )
        return self


class Int8Linear(_EightBit):
    """Weights in 8 bits, one scale for an output; activations in 8 bits, a range for each row.

    ``y = (q - z) codesᵀ · scales / inverse`` with ``q = round(x · inverse) + z`` in -128 to 127.

    Args:
        weight: (O, I) floating point.
        bias: (O,) or None.
        kernel: What computes; None: the fastest for few rows.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, kernel: Kernel | None = None
    ) -> None:
        super().__init__(weight, bias, bits=8, kernel=kernel)

    def _hold(self, product: Product) -> None:
        super()._hold(product)
        self._sums = _row_sums(product)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._sums = self._sums.to(self.product.scales.device)
        return self

    def _multiply(self, x: Tensor) -> Tensor:
        x = x.float()
        low = x.amin(1, keepdim=True).clamp_(max=0)  # (N, 1)
        span = x.amax(1, keepdim=True).clamp_(min=0).sub_(low).clamp_(min=_SMALLEST_SPAN)
        inverse = span.reciprocal().mul_(255)  # as `255 / span`, without a detour over Python
        # Zero is met exactly; -low · inverse lies within 0 to 255.
        zero = (low * inverse).round_().neg_().sub_(128)  # (N, 1)
        y = self.product((x * inverse).round_().add_(zero))
        return y.addcmul_(zero, self._sums, value=-1).mul_(span.div_(255))


class Int8WeightLinear(_EightBit):
    """Weights in 8 bits; activations in two digits of 7 bits, which is as good as fp32 beside them.

    Args:
        weight: (O, I) floating point.
        bias: (O,) or None.
        kernel: What computes; None: the fastest for few rows.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, kernel: Kernel | None = None
    ) -> None:
        super().__init__(weight, bias, bits=7, kernel=kernel)

    def _multiply(self, x: Tensor) -> Tensor:
        x = x.float()
        span = x.abs().amax(1, keepdim=True).clamp_(min=_SMALLEST_SPAN)  # (N, 1)
        x = x * (_DIGIT_LEVELS / span)
        first = x.round()
        second = x.sub_(first).mul_(_SECOND_DIGIT).round_()
        y = self.product(first)
        y.add_(self.product(second), alpha=1 / _SECOND_DIGIT)
        return y.mul_(span.div_(_DIGIT_LEVELS))


class FourBitLinear(QuantizedLinear):
    """Weights in 4 bits, made whole for each product: for memory, not for speed.

    Args:
        weight: (O, I) floating point.
        bias: (O,) or None.
        book: The values.
        by_library: Whether bitsandbytes multiplies, where it knows the values and its groups end
            with the rows; None: on CUDA if it is installed.
    """

    codes: Tensor
    scales: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        book: Codebook,
        by_library: bool | None = None,
    ) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias)
        self._book = book
        self._by_library = by_library
        codes, scales = book.encode(weight)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """(O, I) fp32, what the codes stand for; a new tensor each time."""
        return self._book.decode(self.codes, self.scales, self.in_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.scales = scales.to(self.codes.device)
        return self

    def _multiply(self, x: Tensor) -> Tensor:
        group, wanted = self._book.group, self._by_library
        if wanted is None:
            wanted = library.computes_on(x.device)
        if wanted and self._book is NF4 and self.in_features % group == 0:
            return library.multiply_nf4(x, self.codes, self.scales, group=group)
        return linear(x, self.weight.to(x.dtype))


class _StraightThrough(torch.autograd.Function):
    """The product of a quantized linear; its gradient is that of the weight it stands for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: QuantizedLinear) -> Tensor:
        ctx.module, ctx.dtype = module, x.dtype
        return module._multiply(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        # Made anew: keeping it from the forward would hold the whole base in fp32.
        weight = ctx.module.weight
        return (gradient @ weight.to(gradient.dtype)).to(ctx.dtype), None


def _through(module: QuantizedLinear, rows: Tensor) -> Tensor:
    y: Tensor = _StraightThrough.apply(rows, module)  # type: ignore[no-untyped-call]
    return y


def joined_bias(linears: Sequence[nn.Linear]) -> Tensor | None:
    """The biases of several linears as one.

    Args:
        linears: The linears.

    Returns:
        (O,) with zeros for those that have none; None when no one has.
    """
    biases: list[Tensor | None] = [own.bias for own in linears]
    known = [bias for bias in biases if bias is not None]
    if not known:
        return None
    widths = [own.out_features for own in linears]
    return torch.cat(
        [
            known[0].new_zeros(width) if bias is None else bias
            for bias, width in zip(biases, widths, strict=True)
        ]
    )


def _row_sums(product: Product) -> Tensor:
    """(O,) fp32 sums of each output's weights."""
    return product.unpacked().sum(1, dtype=torch.int32).float() * product.scales

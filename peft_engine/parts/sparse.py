"""Products with a sparse matrix whose values learn, over dense rows.

On a CPU kept as CSR and computed in short chunks of tokens: one product over many tokens was
measured to cost more than the dense one (118 % at 1024 tokens, 384 to 1536 wide, 0.5 % density;
20 % in chunks). On CUDA what learns is multiplied densely: jobs by sparse products were seen not to
repeat themselves there (``benchmarks/LOG.md``), and a job must.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

# Legend of axes: N tokens, I input width, O output width, K stored entries.

_CHUNK_TOKENS = 128
"""On a CPU; elsewhere starting a product is what costs, and all tokens are one."""


@dataclass(frozen=True)
class Pattern:
    """Where the entries of an (O, I) matrix stand, by rows and by columns.

    Attributes:
        shape: (O, I).
        starts: (O + 1,) int32, first entry of each row.
        columns: (K,) int32.
        order: (K,) int64, the entries sorted by column, then by row.
        starts_t: (I + 1,) int32, first entry of each column in that order.
        rows_t: (K,) int32, their rows.
    """

    shape: tuple[int, int]
    starts: Tensor
    columns: Tensor
    order: Tensor
    starts_t: Tensor
    rows_t: Tensor

    @classmethod
    def of(cls, indices: Tensor, shape: tuple[int, int]) -> "Pattern":
        """Read flat indices.

        Args:
            indices: (K,) int32, ``row · I + column``, strictly rising.
            shape: (O, I).

        Returns:
            The pattern, on the same device.
        """
        rows, columns = indices // shape[1], indices % shape[1]
        order = torch.sort(columns, stable=True).indices
        return cls(
            shape,
            _starts(rows, shape[0]),
            columns,
            order,
            _starts(columns, shape[1]),
            rows[order],
        )

    def matrix(self, values: Tensor) -> Tensor:
        """The matrix with these values, for ``add_sparse``.

        Args:
            values: (K,) fp32, in the order of the indices.

        Returns:
            (O, I) in CSR form.
        """
        return _csr(self.starts, self.columns, values, self.shape)

    def transposed(self, values: Tensor) -> Tensor:
        """Its transpose with these values.

        Args:
            values: (K,) fp32, in the order of the indices.

        Returns:
            (I, O) in CSR form.
        """
        height, width = self.shape
        return _csr(self.starts_t, self.rows_t, values[self.order], (width, height))

    @cached_property
    def places(self) -> Tensor:
        """(K,) int64, ``row · I + column``: the indices again, for who asks."""
        rows = torch.arange(self.shape[0], device=self.columns.device)
        own = torch.repeat_interleave(rows, self.starts.diff(), output_size=len(self.columns))
        return own * self.shape[1] + self.columns

    def dense(self, values: Tensor) -> Tensor:
        """The matrix with its zeros.

        Args:
            values: (K,) fp32, in the order of the indices.

        Returns:
            (O, I).
        """
        flat = values.new_zeros(self.shape[0] * self.shape[1])
        return flat.index_copy_(0, self.places, values).view(self.shape)


def sparse_linear(x: Tensor, values: Tensor, pattern: Pattern) -> Tensor:
    """``x Sᵀ`` for the matrix ``S`` with these values.

    Args:
        x: (…, I).
        values: (K,) fp32, in the order of the indices.
        pattern: Where they stand.

    Returns:
        (…, O) in the type of ``x``; the product itself is computed in fp32.
    """
    flat = x.reshape(-1, pattern.shape[1]).float()  # (N, I)
    found: Tensor = SparseLinear.apply(  # type: ignore[no-untyped-call]
        flat, values, pattern, flat.is_cuda
    )
    return found.view(*x.shape[:-1], pattern.shape[0]).to(x.dtype)


def add_sparse(y: Tensor, x: Tensor, matrix: Tensor) -> None:
    """``y += x Sᵀ`` in place, without gradients.

    The product adds as it is written. Measured on one core, 1024 tokens, 0.5 % density, 384 to
    1536: 2.9 ms against 19.7 ms for a product that is added afterwards (the dense product of the
    base: 14.3 ms); 384 to 384 0.9 against 2.0, 1536 to 384 2.6 against 4.2.

    Args:
        y: (N, O) fp32, rows one after the other.
        x: (N, I) fp32.
        matrix: ``S`` (O, I) as ``Pattern.matrix`` makes it.
    """
    for own, target in zip(_chunks(x), _chunks(y), strict=True):
        target.T.addmm_(matrix, own.T)


class SparseLinear(torch.autograd.Function):
    """A product whose gradient is that of the stored entries alone.

    Autograd's own backward makes the dense (O, I) gradient first: measured 3 to 6 times slower on a
    CPU. A dense product makes its matrix for each use and keeps none.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, pattern: Pattern, dense: bool) -> Tensor:
        """(N, I) to (N, O); ``dense``: by the matrix with its zeros."""
        ctx.save_for_backward(x, values)
        ctx.pattern, ctx.dense = pattern, dense
        if dense:
            return x @ pattern.dense(values).T
        return _multiply(x, pattern.matrix(values))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """(N, O) to (N, I) and (K,)."""
        x, values = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        by_x = by_values = None
        if ctx.needs_input_grad[0] and ctx.dense:
            by_x = gradient @ pattern.dense(values)
        elif ctx.needs_input_grad[0]:
            by_x = _multiply(gradient, pattern.transposed(values))
        if ctx.needs_input_grad[1] and ctx.dense:
            by_values = (gradient.T @ x).view(-1)[pattern.places]
        elif ctx.needs_input_grad[1]:
            by_values = _sample(gradient, x, pattern)
        return by_x, by_values, None, None


def _multiply(x: Tensor, matrix: Tensor) -> Tensor:
    """(N, I) by the transpose of a sparse (O, I): (N, O)."""
    return torch.cat([torch.sparse.mm(matrix, part.T).T for part in _chunks(x)])


def _chunks(values: Tensor) -> tuple[Tensor, ...]:
    """(n, …) of each product, from (N, …)."""
    tokens = _CHUNK_TOKENS if values.device.type == "cpu" else max(1, len(values))
    return torch.split(values, tokens)


def _sample(gradient: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
    """``gradientᵀ x`` at the stored entries: (K,)."""
    zeros = torch.zeros(len(pattern.columns), dtype=x.dtype, device=x.device)
    mkl: bool = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    if mkl:
        at = _csr(pattern.starts, pattern.columns, zeros, pattern.shape)
        found: Tensor = torch.sparse.sampled_addmm(at, gradient.T, x, beta=0.0).values()
        return found
    return _sample_by_gathering(gradient, x, pattern)


def _sample_by_gathering(gradient: Tensor, x: Tensor, pattern: Pattern) -> Tensor:
    """The same where no library samples products, in chunks of tokens to bound the memory."""
    counts = pattern.starts.diff()
    rows = torch.repeat_interleave(torch.arange(len(counts), device=x.device), counts)
    found = torch.zeros(len(rows), dtype=x.dtype, device=x.device)
    parts = zip(torch.split(gradient, _CHUNK_TOKENS), torch.split(x, _CHUNK_TOKENS), strict=True)
    for own, at in parts:
        found += (own[:, rows] * at[:, pattern.columns]).sum(0)
    return found


def _csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        # torch announces on first use that its CSR tensors are in beta
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


def _starts(numbers: Tensor, count: int) -> Tensor:
    ends = torch.bincount(numbers, minlength=count).cumsum(0)
    return torch.nn.functional.pad(ends, (1, 0)).int()

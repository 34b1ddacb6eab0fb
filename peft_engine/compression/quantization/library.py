"""Products by bitsandbytes on CUDA devices: our integers and codes, its kernels.

Its NF4 is ours to the bit (codes, scales and the weight that they stand for), and its product of
8-bit integers sums exactly; so a base is the same with it and without it, and has one fingerprint.
Not used: its own rounding of activations (LLM.int8's outlier columns), whose answers for a row
depend on the rows beside it. Optional: without the package plain torch computes.
"""

import functools
import importlib
import importlib.util

import torch
from torch import Tensor

# Legend of axes: N rows (tokens), I input width, O output width, g weights of a group.


@functools.cache
def has_library() -> bool:
    """Whether bitsandbytes is installed.

    Returns:
        True if so; it is imported then, which registers its operators.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return False
    importlib.import_module("bitsandbytes")
    return True


def computes_on(device: torch.device) -> bool:
    """Whether products on a device are left to the library.

    Args:
        device: The device.

    Returns:
        True on CUDA where it is installed. It has kernels for CPUs too; ours are faster there.
    """
    return device.type == "cuda" and has_library()


def multiply_integers(integers: Tensor, codes: Tensor) -> Tensor:
    """Products of 8-bit integers.

    Args:
        integers: (N, I) fp32, whole numbers within -128 to 127.
        codes: (O, I) int8.

    Returns:
        (N, O) int32, exact on CUDA; the library's stand-in on CPUs without AVX-512 adds in fp32 and
        is exact up to 1024 inputs.
    """
    made: Tensor = torch.ops.bitsandbytes.int8_linear_matmul(integers.to(torch.int8), codes)
    return made


def multiply_nf4(x: Tensor, codes: Tensor, scales: Tensor, *, group: int) -> Tensor:
    """``x weightᵀ`` without making the weight whole.

    Args:
        x: (N, I) with I a multiple of g.
        codes: (O, I / 2) uint8 as ``Codebook.encode`` gives them.
        scales: (O, I / g) fp32.
        group: g.

    Returns:
        (N, O) in the type of ``x``.
    """
    shape = (len(codes), 2 * codes.shape[1])
    packed, flat = codes.reshape(-1, 1), scales.flatten()
    made: Tensor = torch.ops.bitsandbytes.gemm_4bit(x, packed, shape, flat, group, "nf4")
    return made

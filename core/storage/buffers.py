"""Memory for an object that is read whole, one byte of which stands where wide loads begin."""

import ctypes
from collections.abc import Callable

HEAD_BYTES = 8
"""So much of an object's beginning tells which byte is to be aligned."""
ALIGNED_BYTES = 64
"""A cache line, and what numerical libraries align their own memory to."""

Aligned = Callable[[bytes], int]
"""Which byte of an object is to be aligned, from its first ``HEAD_BYTES``."""


def at_start(head: bytes) -> int:  # noqa: ARG001 the same for every object
    """Align the first byte.

    Args:
        head: How the object begins.

    Returns:
        0.
    """
    return 0


def make_buffer(size: int, *, aligned: int) -> memoryview:
    """Make memory that may be written to.

    Args:
        size: Bytes.
        aligned: The byte whose address shall be a multiple of ``ALIGNED_BYTES``; may lie outside.

    Returns:
        (size,) bytes, zero.
    """
    memory = bytearray(size + ALIGNED_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    begin = -(address + aligned) % ALIGNED_BYTES
    return memoryview(memory)[begin : begin + size]

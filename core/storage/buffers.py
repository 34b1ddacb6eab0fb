"""Memory for an object that is read whole, one byte of which stands where wide loads begin.

Pages come from the kernel untouched, so that they are met for the first time while a file is read
into them, when Python's lock is let go: a ``bytearray`` would be filled with zeros first, and every
other thread would wait for that. Memory that nobody looks at any more is used again, since meeting
new pages takes ten times as long as reading into known ones.
"""

import ctypes
import mmap
import threading
import weakref
from collections import deque
from collections.abc import Callable

HEAD_BYTES = 8
"""So much of an object's beginning tells which byte is to be aligned."""
ALIGNED_BYTES = 64
"""A cache line, and what numerical libraries align their own memory to."""

Aligned = Callable[[bytes], int]
"""Which byte of an object is to be aligned, from its first ``HEAD_BYTES``."""

_SMALL_BYTES = 128 << 10
"""Below this the allocator has memory at hand, and zeros take some microseconds."""
_LARGEST_KEPT_BYTES = 16 << 20
"""A LoRA of rank 8 on a base of 135 M parameters has 10 MB. Larger ones pay for new pages."""
_MOST_KEPT = 4
"""A cache that is full lets one object go for each that comes; with the size above, 64 MiB."""
_MOST_TOO_LARGE = 1.25
"""Objects of one kind differ by little; a small one must not take the memory of a large one."""

_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
# Finalizers add at the end, in whatever thread and under whatever lock: they take no lock.
_free: deque[mmap.mmap] = deque(maxlen=_MOST_KEPT)
_taking = threading.Lock()


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
        (size,) bytes of any value, the caller's own as long as anything looks at them.
    """
    needed = size + ALIGNED_BYTES
    memory = bytearray(needed) if needed < _SMALL_BYTES else _take(needed)
    # Whatever is made of the memory holds on to this array, so its end is the end of them all.
    whole = (ctypes.c_char * len(memory)).from_buffer(memory)
    if isinstance(memory, mmap.mmap) and len(memory) <= _LARGEST_KEPT_BYTES:
        weakref.finalize(whole, _free.append, memory).atexit = False
    begin = -(ctypes.addressof(whole) + aligned) % ALIGNED_BYTES
    return memoryview(whole).cast("B")[begin : begin + size]


def _take(size: int) -> mmap.mmap:
    """Pages that nobody looks at: met before, if there are such of about this size."""
    with _taking:
        for pages in reversed(tuple(_free)):  # the last one may still be in caches
            if size <= len(pages) <= size * _MOST_TOO_LARGE:
                try:
                    _free.remove(pages)
                except ValueError:  # pushed out by one that came meanwhile
                    continue
                return pages
    return mmap.mmap(-1, size, flags=_PRIVATE)

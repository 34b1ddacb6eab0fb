"""Memory is used again when nobody looks at it, and never before."""

import ctypes
import threading

import pytest

from core.storage import buffers
from core.storage.buffers import make_buffer

SIZE = 200_000
"""Large enough for pages of its own."""


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    buffers._free.clear()


def address_of(buffer: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


@pytest.mark.parametrize("size", [1, 1000, SIZE])
@pytest.mark.parametrize("aligned", [0, 8, 77, 10**9])
def test_the_byte_that_is_asked_for_is_aligned(size: int, aligned: int) -> None:
    buffer = make_buffer(size, aligned=aligned)
    assert len(buffer) == size
    assert (address_of(buffer) + aligned) % buffers.ALIGNED_BYTES == 0
    buffer[:] = b"x" * size


def test_an_object_may_be_empty() -> None:
    assert len(make_buffer(0, aligned=5)) == 0


def test_memory_is_used_again_once_no_part_of_it_is_looked_at() -> None:
    buffer = make_buffer(SIZE, aligned=0)
    first = address_of(buffer)
    part = buffer[100:200].cast("i")
    del buffer
    part[0] = 7
    others = [make_buffer(SIZE, aligned=0) for _ in range(10)]
    for other in others:
        other[:] = b"\xff" * SIZE
    assert part[0] == 7
    assert first not in {address_of(other) for other in others}
    del part
    assert address_of(make_buffer(SIZE - 10, aligned=0)) == first


@pytest.mark.parametrize("size", [SIZE + 1, SIZE // 2, 100])
def test_memory_of_another_size_is_left_alone(size: int) -> None:
    buffer = make_buffer(SIZE, aligned=0)
    first = address_of(buffer)
    del buffer
    other = make_buffer(size, aligned=0)
    assert address_of(make_buffer(SIZE, aligned=0)) == first != address_of(other)


def test_what_is_kept_is_bounded() -> None:
    several = [make_buffer(SIZE, aligned=0) for _ in range(3 * buffers._MOST_KEPT)]
    large = make_buffer(buffers._LARGEST_KEPT_BYTES + 1, aligned=0)
    del several
    assert len(buffers._free) == buffers._MOST_KEPT
    buffers._free.clear()
    del large
    assert not buffers._free


def test_threads_never_share_memory() -> None:
    wrong: list[int] = []

    def write_and_read(mark: int) -> None:
        for _ in range(200):
            buffer = make_buffer(SIZE, aligned=0)
            buffer[:1000] = bytes([mark]) * 1000
            if bytes(buffer[:1000]) != bytes([mark]) * 1000:
                wrong.append(mark)

    threads = [threading.Thread(target=write_and_read, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong

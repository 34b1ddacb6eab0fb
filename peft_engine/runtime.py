"""Devices, precisions, threads and memory: what this machine can do, decided in one place."""

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from threadpoolctl import threadpool_info, threadpool_limits

Precision = Literal["fp32", "bf16"]

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}

SMALL_MODEL_PARAMETERS = 50_000_000
"""Below this size fp32 is quick enough everywhere and batch composition leaves no trace in the
answers; above it memory traffic decides and bf16 halves it."""

_CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""With buffers of a fixed size cuBLAS adds in the same order every time. It reads this once, at its
first product, so it is set when a CUDA device is picked. Eight of 4 MiB are what torch takes on
Hopper anyway.

Source: cuBLAS, section "Results reproducibility"."""


def pick_device(wanted: str = "auto") -> torch.device:
    """The device to compute on.

    Args:
        wanted: ``auto`` (CUDA, else MPS, else CPU) or any name that torch knows.

    Returns:
        The device.
    """
    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        os.environ.setdefault(*_CUBLAS_WORKSPACE)  # noqa: TID251  not read: cuBLAS has no other way
        return torch.device("cuda", torch.cuda.current_device())
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def pick_precision(
    wanted: Literal["auto"] | Precision, *, device: torch.device, parameters: int
) -> Precision:
    """Arithmetic of the frozen base.

    ``auto`` is bf16 where the device multiplies bf16 natively and the base has more than 50 M
    parameters, else fp32.

    Args:
        wanted: ``auto`` or a precision.
        device: Where the base will be.
        parameters: Size of the base.

    Returns:
        The precision.
    """
    if wanted != "auto":
        return wanted
    return "bf16" if parameters > SMALL_MODEL_PARAMETERS and has_native_bf16(device) else "fp32"


def explain_precision(
    wanted: Literal["auto"] | Precision, chosen: Precision, *, device: torch.device
) -> str:
    """Say why a base has the arithmetic that it has.

    Args:
        wanted: What ``pick_precision`` was asked for.
        chosen: What it answered.
        device: Where the base is.

    Returns:
        A sentence without an end, for whoever looks after the service.
    """
    if wanted != "auto":
        return f"{chosen} as it was asked for"
    if chosen == "bf16":
        return f"auto: this {device.type} multiplies bf16 natively"
    if not has_native_bf16(device):
        return f"auto: this {device.type} has no native bf16 products"
    return f"auto: fewer than {SMALL_MODEL_PARAMETERS:,} parameters are quick enough in fp32"


def has_native_bf16(device: torch.device) -> bool:
    """Whether bf16 products run in hardware rather than being emulated.

    Args:
        device: The device.

    Returns:
        True for CUDA from Ampere on, MPS, and CPUs with AVX512-BF16, AMX or Arm's BF16.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "mps" or (device.type == "cpu" and _cpu_has_bf16())


@functools.cache
def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


@contextmanager
def deterministic_sums(device: torch.device) -> Iterator[None]:
    """Let gradients be added up in the same order every time, so that a job has the same bytes.

    On a CPU they are, and nothing changes. On CUDA several kernels add as their threads come: the
    backward of attention over long rows, and of a lookup that names one place many times. torch has
    slower ones for all that a step computes. Its switch is one for the whole process; it is back
    where it was afterwards.

    Args:
        device: Where the gradients are computed.

    Yields:
        Nothing.
    """
    if device.type != "cuda" or not _cublas_repeats(device):
        yield
        return
    with _deterministic():
        yield


@contextmanager
def _deterministic() -> Iterator[None]:
    """Only kernels that repeat themselves; the switch is back where it was afterwards."""
    memory = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        memory.fill_uninitialized_memory,  # type: ignore[attr-defined]  # has properties
    )
    torch.use_deterministic_algorithms(True)
    # finds reads of memory that nobody wrote, at the price of writing all of it
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]


@functools.cache
def _cublas_repeats(device: torch.device) -> bool:
    """Whether cuBLAS was told in time; not where a program used it before it picked a device."""
    square = torch.eye(2, device=device)
    with _deterministic():
        try:
            torch.mm(square, square)
        except RuntimeError:
            return False
    return True


def pin_threads(threads: int | None) -> int:
    """Fix how many threads a product uses, so that sums are added in one order.

    Args:
        threads: Number of threads, or None for torch's own choice.

    Returns:
        The number in force.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def pin_blas_threads(threads: int | None) -> None:
    """Fix how many threads numpy's BLAS uses in this process; by itself it takes every core.

    Args:
        threads: Number of threads, or None for its own choice.
    """
    if threads is not None:
        threadpool_limits(threads, user_api="blas")


def blas_threads() -> int:
    """How many threads numpy's BLAS uses; 0 where that cannot be told."""
    found = [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]
    return max(found, default=0)


def return_freed_memory() -> None:
    """Give memory that was freed back to the system.

    glibc keeps what lies between blocks that are still in use: after one step of a large batch,
    gigabytes that no later step needs. Elsewhere nothing happens.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)

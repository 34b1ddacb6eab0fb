"""What a piece of work took at its highest, and what there is to be had.

On CUDA the allocator knows, to the byte, the base included. Elsewhere only the system does: the
resident set's high-water mark, which Linux lets a process set back, less what was resident before.
Where neither can be had nothing is told.
"""

import gc
from pathlib import Path
from typing import Literal

import torch

from peft_engine.runtime import return_freed_memory

Measure = Literal["allocated", "resident_growth"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_FORGET_HIGH_WATER = "5"
"""proc(5): sets ``VmHWM`` to the present size."""
_CGROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
_WORDS = ("can't allocate memory", "not enough memory", "out of memory")
"""How torch's allocators word it in a plain RuntimeError."""


class Gauge:
    """Measures the highest use since it was last set back, beyond what there was at its making.

    Args:
        device: Where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._works = True
        free_caches(device)
        self.set_back()
        self._resident = _resident_bytes()

    @property
    def measure(self) -> Measure | None:
        """What its numbers are; None where there are none."""
        if self._device.type == "cuda":
            return "allocated"
        return "resident_growth" if self._device.type == "cpu" and self._works else None

    def set_back(self) -> None:
        """Forget the highest use so far.

        What the allocator holds and does not use stays: steps of many shapes leave gaps, which a
        run has to live with as well.
        """
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            _CLEAR.write_text(_FORGET_HIGH_WATER)
        except OSError:
            self._works = False

    def peak_bytes(self) -> int | None:
        """The highest use since then.

        Returns:
            Bytes; None where it cannot be told.
        """
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        if self.measure is None:
            return None
        return max(0, _status_bytes("VmHWM") - self._resident)


def free_bytes(device: torch.device) -> int | None:
    """What this process may still take from the machine's memory.

    Args:
        device: Where the work is done; CUDA's allocator refuses by itself.

    Returns:
        Bytes; None where nobody says.
    """
    if device.type != "cpu":
        return None
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    for limit, used in _CGROUPS:
        folder = Path("/sys/fs/cgroup")
        try:
            found.append(int((folder / limit).read_text()) - int((folder / used).read_text()))
        except (OSError, ValueError):  # no such cgroup, or "max": no limit
            continue
    return max(0, min(found)) if found else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out.

    Args:
        error: Any.

    Returns:
        True for those of Python and of torch's allocators.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def free_caches(device: torch.device) -> None:
    """Give back what is held and not used.

    Args:
        device: Where the work was done.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return_freed_memory()


def _resident_bytes() -> int:
    try:
        return _status_bytes("VmRSS")
    except OSError:
        return 0


def _status_bytes(name: str) -> int:
    """A line of this process's status.

    Raises:
        OSError: The system tells no such thing.
    """
    for line in _STATUS.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"{_STATUS} has no {name}")

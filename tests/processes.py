"""What the kernel says of processes; `/proc` is read so that nothing has to be installed."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

WAIT_SECONDS = 60.0


def wait_until(condition: Callable[[], bool], *, seconds: float = WAIT_SECONDS) -> None:
    """Waits for a condition, and fails when it does not come true in time."""
    until = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < until, f"still not so after {seconds:g} s"
        pause.wait(0.05)


def is_alive(pid: int) -> bool:
    """A zombie has ended, whoever still has to read its exit code."""
    return _stat(pid)[0] not in {"", "Z"}


def descendants(pid: int) -> list[int]:
    """Every living process below one, the nearest first."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_alive(int(entry.name)):
            parents.setdefault(_stat(int(entry.name))[1], []).append(int(entry.name))
    found: list[int] = []
    waiting = [pid]
    while waiting:
        children = parents.get(waiting.pop(0), [])
        found += children
        waiting += children
    return found


def command_line(pid: int) -> list[str]:
    """The arguments of a process; none when it has ended."""
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rstrip("\0").split("\0")


def running_with(text: str) -> list[list[str]]:
    """Command lines of living processes that name a text, such as a folder of their own."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    lines = [command_line(pid) for pid in pids if is_alive(pid)]
    return [line for line in lines if any(text in word for word in line)]


def _stat(pid: int) -> tuple[str, int]:
    """State letter and parent; an empty letter when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[1])

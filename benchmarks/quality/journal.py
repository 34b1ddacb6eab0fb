"""Finished runs, one JSON line each, so that nothing is run twice and a kill loses nothing.

A line is appended in one write under a lock: several processes may share a journal.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def digest(settings: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name settings.

    Args:
        settings: JSON values.

    Returns:
        The digits.
    """
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class Journal:
    """A file of finished runs.

    Args:
        path: The file; made when the first line is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Every finished run in the order of the file; a torn last line is left out."""
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue

    def has(self, key: str) -> bool:
        """Whether a run is finished.

        Args:
            key: The ``key`` of its line.

        Returns:
            True when there is such a line.
        """
        return any(line.get("key") == key for line in self)

    def add(self, line: Mapping[str, Any]) -> None:
        """Append a finished run.

        Args:
            line: JSON values, ``key`` among them.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            # What a kill has torn must not swallow the next line as well.
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 1))
            torn = stream.read(1) not in (b"", b"\n")
            stream.write(
                (b"\n" if torn else b"") + json.dumps(line, default=float).encode() + b"\n"
            )

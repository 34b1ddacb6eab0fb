"""Tell a full disk from other troubles of a file system, in the words of a ``ServiceError``."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from core.errors import Unavailable

# no room on the disk, over the quota, over the largest file
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def fault_of(error: OSError) -> tuple[str, str, int | None]:
    """Say what is wrong with the disk; the path stays with us.

    Args:
        error: What the operating system answered.

    Returns:
        Message, code and when it is worth trying again: ``storage_full`` when there is no room,
        else ``storage_unavailable``.
    """
    if error.errno in _FULL:
        message = "the disk is full; nothing was stored: free some space and try again"
        return message, "storage_full", 60
    return "the storage folder does not answer", "storage_unavailable", None


@contextmanager
def disk_faults_told() -> Iterator[None]:
    """Turn what the disk refuses into an answer, where files are written outside the store.

    Yields:
        Nothing.

    Raises:
        Unavailable: The disk is full, or does not answer.
    """
    try:
        yield
    except OSError as error:
        message, code, seconds = fault_of(error)
        raise Unavailable(message, code=code, retry_after_seconds=seconds) from error

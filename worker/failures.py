"""From an exception to what the owner of the job is told.

The log gets the traceback; the owner gets a stable code and a sentence without paths. Knows no
database and does not import torch: its memory errors are recognised by name and text.
"""

import errno
import signal

from core.errors import ServiceError
from peft_engine.errors import EngineError
from worker.protocol import Failure

_OUT_OF_MEMORY = Failure(
    code="out_of_memory",
    message=(
        "The worker ran out of memory. Lower training.batch_size or training.max_length, "
        "raise training.gradient_accumulation instead, or choose a smaller base model."
    ),
    param="training.batch_size",
    retry=True,
    fresh_process=True,
)

_STORAGE_FULL = Failure(
    code="storage_full",
    message="The storage of the service is full; the result could not be kept. Retry later.",
)

# How allocators of torch word it when they raise a plain RuntimeError.
_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory")


class Explained(Exception):
    """A failure that another process has explained already.

    Attributes:
        failure: What it said.
    """

    def __init__(self, failure: Failure) -> None:
        """Take what the other process said."""
        super().__init__(failure.message)
        self.failure = failure


def explain(error: BaseException) -> Failure:
    """Return what to tell the owner of a job about an exception.

    Args:
        error: What ended the attempt.

    Returns:
        The failure. Errors of the engine are the user's to fix and are final, but for a process
        that is gone; that, memory and unexpected errors may go away in a fresh process and are
        tried again.
    """
    if isinstance(error, Explained):
        return error.failure
    if isinstance(error, EngineError):
        # What one process lost another attempt may have; gloo may hold on to what it broke off.
        lost = error.code == "peer_lost"
        return Failure(
            code=error.code,
            message=error.message,
            param=error.param,
            retry=lost,
            fresh_process=lost,
        )
    if _is_memory(error):
        return _OUT_OF_MEMORY
    if _is_full_disk(error):
        return _STORAGE_FULL
    if isinstance(error, ServiceError):
        away = error.status >= 500
        return Failure(
            code=error.code, message=error.message, param=error.param, retry=away, outage=away
        )
    return Failure(
        code="internal_error",
        message="The training stopped on an internal error; it has been logged.",
        retry=True,
        fresh_process=True,
    )


def explain_death(returncode: int | None) -> Failure:
    """Return what to tell the owner of a job whose trainer process died or was killed.

    Args:
        returncode: Exit status; negative is the signal; None when it never started.
    """
    if returncode is None:
        return Failure(
            code="trainer_unavailable",
            message="The worker could not start its trainer process; it has been logged.",
            retry=True,
        )
    if returncode == -signal.SIGKILL:
        # The kernel's OOM killer leaves no other trace than SIGKILL.
        return Failure(
            code="trainer_killed",
            message=(
                "The trainer process was killed by the system, most often because memory ran "
                "out. Lower training.batch_size or training.max_length, or choose a smaller "
                "base model."
            ),
            retry=True,
        )
    return Failure(
        code="trainer_crashed",
        message=f"The trainer process ended unexpectedly (status {returncode}).",
        retry=True,
    )


def explain_hang(seconds: float) -> Failure:
    """Return what to tell the owner of a job whose trainer gave no sign of life.

    Args:
        seconds: How long it was silent before it was killed.
    """
    return Failure(
        code="trainer_hung",
        message=f"The trainer process gave no sign of life for {seconds:.0f} seconds.",
        retry=True,
    )


def _is_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _MEMORY_WORDS)


def _is_full_disk(error: BaseException) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in full:
            return True
        # obstore wraps the operating system's error into its text.
        if "No space left on device" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False

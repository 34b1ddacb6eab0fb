"""What a process of the worker that holds a model does first."""

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path

_log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1
# The kernel should choose the process with the model, not the supervisor or a database beside it.
_OOM_SCORE = "500"


def become_child_of(parent: int) -> None:
    """Make the kernel kill this process when its starter dies, and rather than its starter.

    Args:
        parent: Process id of the starter; if it is gone already, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have died before the call above; elsewhere a closed pipe ends us.
    if os.getppid() != parent:
        os._exit(1)
    try:
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    except OSError:
        _log.debug("no oom_score_adj here")

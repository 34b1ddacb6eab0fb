"""Runs a program that cannot outlive its parent: `python leash.py PARENT_PID PROGRAM ARG…`.

Started as a file, alone, before the program it becomes; knows nothing of Tunery. On Linux the
kernel kills the program the moment the parent is gone, SIGKILL included. Other systems lack that
call: there the program only starts, and a killed parent leaves it behind.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # from <linux/prctl.h>


def main(argv: list[str]) -> None:
    """Becomes the program.

    Args:
        argv: The parent's process id, then the program and its arguments.

    Raises:
        SystemExit: The parent died before the leash was on.
    """
    parent, program = int(argv[0]), argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # A parent that died before the line above would never be noticed.
        if os.getppid() != parent:
            raise SystemExit(1)
    os.execvp(program[0], program)  # noqa: S606  (an argument list of our own, no shell)


if __name__ == "__main__":
    main(sys.argv[1:])

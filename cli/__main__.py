"""`tunery`, and `python -m cli`: the door of the command line, which imports nothing heavy.

The commands take a second to import, more on a machine that is busy. A person who presses Ctrl-C
meanwhile means the command, not the import that they happen to hit.
"""

import sys

INTERRUPTED = 130
"""What a shell says of a program that SIGINT ended."""


def main() -> None:
    """Imports the commands and runs them; Ctrl-C ends it without a traceback at any time."""
    try:
        from cli.main import run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()

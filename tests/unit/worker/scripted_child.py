"""A child that speaks the trainer protocol and behaves as its first argument says."""

import argparse
import os
import threading
from typing import BinaryIO

from worker.protocol import (
    Alive,
    Control,
    Ended,
    Failure,
    Outcome,
    Ready,
    Room,
    Run,
    Wish,
    decode,
    encode,
)

_MODES = ("succeed", "obey", "deaf", "mute", "stalled", "die", "away", "roomy", "roomy-deaf")
_AWAY = Failure("storage_unavailable", "storage does not answer", retry=True, outage=True)
_OBEYED = {
    Wish.CANCEL: Outcome.CANCELLED,
    Wish.PAUSE: Outcome.PAUSED,
    Wish.DRAIN: Outcome.DRAINED,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=[*_MODES])
    for name in ("--parent", "--control", "--report"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    report: BinaryIO = os.fdopen(options.report, "wb", buffering=0)
    control: BinaryIO = os.fdopen(options.control, "rb")
    report.write(encode(Ready(pid=os.getpid())))
    runs: list[Run] = []
    for line in control:
        message = decode(line)
        if isinstance(message, Run):
            runs.append(message)
            if options.mode.startswith("roomy"):
                _host(report, options.mode, runs)
            elif options.mode == "succeed":
                report.write(encode(Ended(message.job_id, message.attempt, Outcome.SUCCEEDED)))
            elif options.mode == "away":
                report.write(encode(Ended(message.job_id, message.attempt, Outcome.FAILED, _AWAY)))
            elif options.mode == "die":
                os._exit(3)
            elif options.mode != "mute":
                threading.Thread(target=_live, args=(report, options.mode), daemon=True).start()
        elif isinstance(message, Control) and options.mode == "obey":
            outcome = _OBEYED[message.wish]
            report.write(encode(Ended(message.job_id, message.attempt, outcome)))


def _host(report: BinaryIO, mode: str, runs: list[Run]) -> None:
    """Ask for a second job; then end both, or neither."""
    if len(runs) == 1:
        threading.Thread(target=_live, args=(report, mode), daemon=True).start()
        report.write(encode(Room(jobs=1)))
    elif mode == "roomy":
        for run in runs:
            report.write(encode(Ended(run.job_id, run.attempt, Outcome.SUCCEEDED)))


def _live(report: BinaryIO, mode: str) -> None:
    ticks = 0
    pause = threading.Event()
    while not pause.wait(0.02):
        ticks += 0 if mode == "stalled" else 1
        report.write(encode(Alive(ticks=ticks)))


if __name__ == "__main__":
    main()

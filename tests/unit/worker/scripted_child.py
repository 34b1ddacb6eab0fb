"""A child that speaks the trainer protocol and behaves as its first argument says."""

import argparse
import os
import threading
from typing import BinaryIO

from worker.protocol import Alive, Control, Ended, Outcome, Ready, Run, Wish, decode, encode

_OBEYED = {
    Wish.CANCEL: Outcome.CANCELLED,
    Wish.PAUSE: Outcome.PAUSED,
    Wish.DRAIN: Outcome.DRAINED,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["succeed", "obey", "deaf", "mute", "stalled", "die"])
    for name in ("--parent", "--control", "--report"):
        parser.add_argument(name, type=int)
    options = parser.parse_args()
    report: BinaryIO = os.fdopen(options.report, "wb", buffering=0)
    control: BinaryIO = os.fdopen(options.control, "rb")
    report.write(encode(Ready(pid=os.getpid())))
    for line in control:
        message = decode(line)
        if isinstance(message, Run):
            if options.mode == "succeed":
                report.write(encode(Ended(message.job_id, message.attempt, Outcome.SUCCEEDED)))
            elif options.mode == "die":
                os._exit(3)
            elif options.mode != "mute":
                threading.Thread(target=_live, args=(report, options.mode), daemon=True).start()
        elif isinstance(message, Control) and options.mode == "obey":
            outcome = _OBEYED[message.wish]
            report.write(encode(Ended(message.job_id, message.attempt, outcome)))


def _live(report: BinaryIO, mode: str) -> None:
    ticks = 0
    pause = threading.Event()
    while not pause.wait(0.02):
        ticks += 0 if mode == "stalled" else 1
        report.write(encode(Alive(ticks=ticks)))


if __name__ == "__main__":
    main()

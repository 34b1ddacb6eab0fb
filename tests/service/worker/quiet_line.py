"""A supervisor that wants nothing and has no second job; fills ``worker.job_run.Line``."""

from worker.protocol import Ended, Run


class QuietLine:
    def __init__(self) -> None:
        self.ends: list[Ended] = []

    def next_beside(self) -> Run | None:
        return None

    def wish_for(self, run: Run) -> None:
        return

    def tick(self) -> None:
        return

    def report(self, ended: Ended) -> None:
        self.ends.append(ended)

    def tell_room(self, jobs: int) -> None:
        return

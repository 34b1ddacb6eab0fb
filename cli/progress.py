"""Waiting for something at the service, with a bar in a terminal and plain lines elsewhere."""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from cli.client import Client, RequestFailedError
from cli.output import as_text

Resource = dict[str, Any]

POLL_SECONDS = 0.5
# Where no terminal shows a bar, a line this often is enough to see that it lives.
LINE_SECONDS = 5.0
# The service restarts parts of itself; a poll that fails is repeated for so long.
PATIENCE_SECONDS = 60.0
FINISHED = ("succeeded", "failed", "cancelled")


def wait_for(
    poll: Callable[[], Resource],
    *,
    until: Callable[[Resource], bool],
    every_seconds: float = POLL_SECONDS,
    show: Callable[[Resource], None] | None = None,
) -> Resource:
    """Polls until a condition holds; outlives a service that is away for a minute.

    Args:
        poll: Asks for the resource.
        until: The condition.
        every_seconds: Pause between two polls.
        show: Receives every state seen.

    Returns:
        The state for which the condition held.

    Raises:
        RequestFailedError: The service refused, or was away for too long.
    """
    pause = threading.Event()
    answered = time.monotonic()
    while True:
        try:
            seen = poll()
        except RequestFailedError as error:
            away = error.code == "unreachable" or error.code.endswith("unavailable")
            if not away or time.monotonic() - answered > PATIENCE_SECONDS:
                raise
        else:
            answered = time.monotonic()
            if show is not None:
                show(seen)
            if until(seen):
                return seen
        pause.wait(every_seconds)


@contextmanager
def left_by_ctrl_c(told: str, *, console: Console) -> Iterator[None]:
    """Says, when a person stops watching, what goes on at the service without them.

    Args:
        told: What goes on, and how to see or stop it.
        console: Where to say it.

    Yields:
        Nothing.

    Raises:
        KeyboardInterrupt: As it came.
    """
    try:
        yield
    except KeyboardInterrupt:
        console.print(as_text(told), highlight=False)
        raise


@contextmanager
def watching(commands: str, id_: str, *, console: Console) -> Iterator[None]:
    """Names what is watched, before it is waited for and when a person stops watching.

    Args:
        commands: The group of its commands, such as `jobs`.
        id_: Which resource.
        console: Where to say it.

    Yields:
        Nothing.
    """
    console.print(f"Watching {as_text(id_)}; Ctrl-C leaves it running", highlight=False)
    again, stop = (f"`tunery {commands} {verb} {id_}`" for verb in ("watch", "cancel"))
    told = f"{id_} goes on: {again} shows it again, {stop} stops it."
    with left_by_ctrl_c(told, console=console):
        yield


def follow_job(client: Client, job_id: str, *, console: Console) -> Resource:
    """Waits for the end of a job and shows how it goes.

    Args:
        client: Of the service.
        job_id: Which job.
        console: Where to show it.

    Returns:
        The job, in a state that does not change any more.
    """
    return follow(lambda: client.get(f"/jobs/{job_id}"), console=console)


def follow_sweep(client: Client, sweep_id: str, *, console: Console) -> Resource:
    """Waits for the end of a sweep and shows how many of its trials have ended, and the best.

    Args:
        client: Of the service.
        sweep_id: Which sweep.
        console: Where to show it.

    Returns:
        The sweep, in a state that does not change any more.
    """

    def poll() -> Resource:
        sweep = client.get(f"/sweeps/{sweep_id}")
        ended = sum(sweep["counts"].get(status, 0) for status in FINISHED)
        best = sweep.get("best")
        news = (
            f"best {sweep['metric']} {best['value']:.4g} (trial {best['number']})" if best else ""
        )
        progress = {"step": ended, "total_steps": sweep["max_jobs"]}
        return {"status": sweep["status"], "progress": progress, "news": news, "sweep": sweep}

    sweep: Resource = follow(poll, console=console, unit="trial")["sweep"]
    return sweep


def follow(
    poll: Callable[[], Resource],
    *,
    console: Console,
    every_seconds: float = POLL_SECONDS,
    finished: Collection[str] = FINISHED,
    unit: str = "step",
) -> Resource:
    """Polls a job until its end and shows how it goes: a bar in a terminal, else lines.

    Args:
        poll: Asks for the job, or for something that tells its `status` and `progress` as one does.
        console: Where to show it.
        every_seconds: Pause between two polls.
        finished: States that do not change any more.
        unit: What its progress counts.

    Returns:
        The job, in a state that does not change any more.
    """
    display: _Bar | _Lines = _Bar(console) if console.is_terminal else _Lines(console, unit)
    with display.shown():
        return wait_for(
            poll,
            until=lambda job: job["status"] in finished,
            every_seconds=every_seconds,
            show=display.show,
        )


class _Bar:
    """One line that moves, in a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[news]}"),
            console=console,
        )
        self._task = self._progress.add_task("queued", total=None, news="")

    def shown(self) -> AbstractContextManager[object]:
        return self._progress

    def show(self, job: Resource) -> None:
        step, total = _steps(job)
        self._progress.update(
            self._task, description=_doing(job), completed=step, total=total, news=_news(job)
        )


class _Lines:
    """A line now and then, for logs and pipes."""

    def __init__(self, console: Console, unit: str) -> None:
        self._console = console
        self._unit = unit
        self._started = time.monotonic()
        self._said = ""
        self._doing = ""
        self._at = 0.0

    def shown(self) -> AbstractContextManager[object]:
        return nullcontext()

    def show(self, job: Resource) -> None:
        doing, now = _doing(job), time.monotonic()
        step, total = _steps(job)
        steps = f" {self._unit} {step}/{total}" if total else ""
        text = f"{doing}{steps} {_news(job)}".rstrip()
        if text == self._said or (doing == self._doing and now - self._at < LINE_SECONDS):
            return
        self._said, self._doing, self._at = text, doing, now
        self._console.print(f"  {as_clock(now - self._started)} {as_text(text)}", highlight=False)


def _doing(job: Resource) -> str:
    what = job.get("phase") if job["status"] == "running" else None
    attempt = f" (attempt {job['attempt']})" if job.get("attempt", 0) > 1 else ""
    return f"{what or job['status']}{attempt}"


def _steps(job: Resource) -> tuple[int, int | None]:
    progress = job.get("progress") or {}
    return int(progress.get("step") or 0), progress.get("total_steps")


def _news(job: Resource) -> str:
    progress = job.get("progress") or {}
    parts = [job["news"]] if job.get("news") else []
    if progress.get("loss") is not None:
        parts.append(f"loss {progress['loss']:.3f}")
    if job["status"] == "paused" and job.get("reason") is not None:
        parts.append(job["reason"])
    if job["status"] == "running":
        whole, steps = progress.get("eta_seconds"), progress.get("training_seconds_left")
        if whole is not None:
            parts.append(f"ETA {as_clock(whole)}")
        elif steps is not None:
            # what comes after the last step takes long where texts are written, and cannot be known
            parts.append(f"{as_clock(steps)} to the last step")
    return "  ".join(parts)


def as_clock(seconds: float) -> str:
    """Returns a duration as minutes and seconds.

    Args:
        seconds: The duration.
    """
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}"

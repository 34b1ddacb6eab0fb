"""The supervisor with real programs: small shells that say when they start and when they stop."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cli.programs import Touched
from cli.supervisor import MAX_FAILURES, Program, ProgramFailedError, Supervisor
from tests.processes import is_alive, wait_until

WAIT_SECONDS = 20.0


class Scene:
    """A supervisor, and a folder where programs leave their ids and the order of their ends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said: list[str] = []
        self.supervisor = Supervisor(
            environment={"PATH": "/usr/bin:/bin"}, log_dir=folder / "logs", say=self.said.append
        )

    def program(self, name: str) -> Program:
        script = (
            f"trap 'echo {name} >> {self.folder}/ended; exit 0' TERM; "
            f"echo $$ >> {self.folder}/{name}.pids; echo hello from {name}; "
            "while :; do sleep 0.05; done"
        )
        return Program(name, ["/bin/sh", "-c", script], ready=lambda: bool(self.pids(name)))

    def pids(self, name: str) -> list[int]:
        path = self.folder / f"{name}.pids"
        return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_starts_in_order_and_stops_in_reverse(scene: Scene) -> None:
    with scene.supervisor as supervisor:
        for name in ("first", "second", "third"):
            supervisor.start(scene.program(name))
    assert (scene.folder / "ended").read_text().split() == ["third", "second", "first"]
    assert not any(is_alive(scene.pids(name)[0]) for name in ("first", "second", "third"))


def test_nothing_is_started_after_a_signal(scene: Scene) -> None:
    with scene.supervisor as supervisor:
        supervisor.start(scene.program("first"))
        os.kill(os.getpid(), signal.SIGINT)
        supervisor.start(scene.program("second"))
    assert (scene.folder / "ended").read_text().split() == ["first"]
    assert scene.pids("second") == []


def test_a_log_that_cannot_be_written_is_told_once(
    scene: Scene, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        (scene.folder / "logs" / f"{name}.log").mkdir(parents=True)
    with scene.supervisor as supervisor:
        for name in ("first", "second"):
            supervisor.start(scene.program(name))
        wait_until(lambda: any("Cannot write" in line for line in scene.said))
    told = [line for line in scene.said if "Cannot write" in line]
    assert len(told) == 1
    assert "Is a directory" in told[0]
    assert capfd.readouterr().err == ""


def test_lines_of_a_program_are_in_its_log(scene: Scene) -> None:
    with scene.supervisor as supervisor:
        supervisor.start(scene.program("talker"))
        wait_until(lambda: (scene.folder / "logs" / "talker.log").exists())
    assert (scene.folder / "logs" / "talker.log").read_text() == "hello from talker\n"


def test_a_killed_program_is_started_again_and_the_reason_is_told(scene: Scene) -> None:
    with scene.supervisor as supervisor:
        supervisor.start(scene.program("worker"))
        os.kill(scene.pids("worker")[0], signal.SIGKILL)
        supervisor.wait_until(lambda: len(scene.pids("worker")) == 2, what="worker", seconds=10)
        assert is_alive(scene.pids("worker")[1])
    assert any("worker was killed by SIGKILL" in line for line in scene.said)


def test_children_of_a_killed_program_do_not_stay(scene: Scene) -> None:
    ids = f"echo $! > {scene.folder}/child.pids; echo $$ > {scene.folder}/p.pids"
    script = f"sleep 300 & {ids}; wait"
    program = Program("p", ["/bin/sh", "-c", script], ready=lambda: bool(scene.pids("p")))
    with scene.supervisor as supervisor:
        supervisor.start(program)
        (child,) = scene.pids("child")
        os.kill(scene.pids("p")[0], signal.SIGKILL)
        supervisor.wait_until(lambda: not is_alive(child), what="child", seconds=10)


def test_a_program_that_hangs_is_killed_and_started_again(scene: Scene) -> None:
    """Its file is touched once, when it starts: the second program touches its own and may live."""
    touched = Touched(scene.folder, patience_seconds=0.3)
    script = f"touch {scene.folder}/worker-$$.alive; echo $$ >> {scene.folder}/w.pids; sleep 300"
    program = Program("w", ["/bin/sh", "-c", script], ready=lambda: bool(scene.pids("w")))
    with scene.supervisor as supervisor:
        supervisor.start(replace(program, alive=touched))
        supervisor.wait_until(lambda: len(scene.pids("w")) == 2, what="w", seconds=10)
        assert not is_alive(scene.pids("w")[0])
    assert any("w hangs" in line for line in scene.said)


def test_a_program_that_keeps_failing_ends_it_with_its_last_lines(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.supervisor.MAX_BACKOFF_SECONDS", 0.01)
    broken = Program("broken", ["/bin/sh", "-c", "echo no such database; exit 3"])
    with scene.supervisor as supervisor:
        supervisor.start(broken)
        with pytest.raises(ProgramFailedError) as caught:
            supervisor.wait_until(lambda: False, what="never", seconds=WAIT_SECONDS)
    assert f"exit code 3, {MAX_FAILURES + 1} times in a row" in str(caught.value)
    assert "no such database" in str(caught.value)


def test_a_program_that_is_never_ready_is_reported(scene: Scene) -> None:
    sleeper = Program("sleeper", ["/bin/sleep", "300"], ready=lambda: False, ready_seconds=0.3)
    with scene.supervisor as supervisor, pytest.raises(ProgramFailedError, match="not ready"):
        supervisor.start(sleeper)


HOST = """
import sys
from pathlib import Path
from tests.processes import is_alive, wait_until
from cli.supervisor import Program, Supervisor
folder = Path(sys.argv[1])
def program(name, script):
    pid = folder / f"{name}.pid"
    shell = f"echo $$ > {pid}.new; mv {pid}.new {pid}; {script}"
    return Program(name, ["/bin/sh", "-c", shell], ready=pid.exists, stop_seconds=60)
with Supervisor(environment={"PATH": "/usr/bin:/bin"}, log_dir=folder, say=print) as supervisor:
    supervisor.start(program("kind", "trap 'exit 0' TERM; while :; do sleep 0.05; done"))
    supervisor.start(program("stubborn", "trap '' TERM; while :; do sleep 0.05; done"))
    (folder / "ready").touch()
    supervisor.watch()
"""


Host = tuple[subprocess.Popen[str], list[int]]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    process = subprocess.Popen(
        [sys.executable, "-uc", HOST, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            wait_until((tmp_path / "ready").exists)
            names = ("kind", "stubborn")
            yield process, [int((tmp_path / f"{name}.pid").read_text()) for name in names]
        finally:
            process.kill()


def test_nothing_survives_a_killed_supervisor(host: Host) -> None:
    process, pids = host
    process.kill()
    wait_until(lambda: not any(is_alive(pid) for pid in pids))


def test_a_second_signal_kills_at_once(host: Host) -> None:
    process, pids = host
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    # Two signals of one number that wait together are one: the first has to be seen before.
    assert "SIGINT: stopping" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(WAIT_SECONDS) == 0  # far below stop_seconds
    assert "Killing everything now" in process.stdout.read()
    assert not any(is_alive(pid) for pid in pids)


WATCHER = """
import os, signal, sys, threading
from pathlib import Path
import cli.supervisor
from cli.supervisor import Supervisor
cli.supervisor.TICK_SECONDS = 0.0  # so that a signal mostly comes in the middle of waiting
for turn in range(200):
    supervisor = Supervisor(environment={}, log_dir=Path(sys.argv[1]), say=lambda line: None)
    timer = threading.Timer(0.002, os.kill, (os.getpid(), signal.SIGTERM))
    with supervisor:
        timer.start()
        supervisor.watch()
    timer.join()
"""


def test_a_signal_is_heard_wherever_it_comes(tmp_path: Path) -> None:
    """It once set an event, whose lock the interrupted wait may hold: Ctrl-C hung for ever."""
    command = [sys.executable, "-c", WATCHER, str(tmp_path)]
    assert subprocess.run(command, timeout=WAIT_SECONDS).returncode == 0

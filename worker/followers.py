"""The other processes of a job that several devices train, as the trainer child sees them.

The trainer child is the lead (``peft_engine.training.parallel``): it alone talks with the
supervisor, which watches it as it does for any job. It starts the others, each with a device of its
own, waits until they have read the job and loaded the base, and meets them. They die with it; when
one of them dies, the job loses its attempt (``peer_lost``) and goes on from its checkpoint.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import torch

from core.settings import Settings, child_environment
from peft_engine.configs import JobSpec
from peft_engine.errors import ConfigError, TrainingError
from peft_engine.runtime import pick_device, pin_threads
from peft_engine.training.parallel import World, local_store, meet
from worker.failures import Explained
from worker.protocol import Failure

_log = logging.getLogger(__name__)

FOLLOWER_COMMAND = (sys.executable, "-m", "worker.follower")
READY = b"ready"

_LOOK_SECONDS = 1.0
# They end by themselves as soon as the lead has; whoever hangs then is killed.
_GRACE_SECONDS = 5.0


@contextmanager
def lead(settings: Settings, spec: JobSpec, *, tick: Callable[[], object]) -> Iterator[World]:
    """Start the other processes of a job and meet them.

    On a CPU all of them share the threads that one has otherwise.

    Args:
        settings: What this process was started with.
        spec: The job, its base decided.
        tick: Called while they start; it may raise.

    Yields:
        All processes, this one as the lead. Afterwards the others are gone.

    Raises:
        ConfigError: This worker sees fewer devices (``too_many_devices``).
        TrainingError: One of them ended before it was ready (``peer_lost``).
        Explained: One of them says why it cannot train.
    """  # noqa: DOC502  raised below
    size = spec.training.devices
    environments = _environments(settings, size)
    with ExitStack() as stack:
        store = local_store(size)
        lines = [
            stack.enter_context(_following(spec, environment, rank, store.port))
            for rank, environment in enumerate(environments, start=1)
        ]
        for line in lines:
            _wait_ready(line, tick)
        if pick_device(settings.device).type == "cpu":
            stack.enter_context(_threads(_share_of_threads(size)))
        yield stack.enter_context(meet(store=store, rank=0, size=size))


@contextmanager
def _following(
    spec: JobSpec, environment: Mapping[str, str], rank: int, port: int
) -> Iterator[Connection]:
    """One of the others, and the line to it."""
    line, theirs = Pipe()
    arguments = {
        "parent": os.getpid(),
        "line": theirs.fileno(),
        "rank": rank,
        "size": spec.training.devices,
        "port": port,
    }
    with line:
        with theirs:
            process = subprocess.Popen(  # noqa: S603 our own program, from an argument list
                [*FOLLOWER_COMMAND, *(f"--{name}={value}" for name, value in arguments.items())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=dict(environment),
            )
        try:
            with suppress(BrokenPipeError):  # it is dead, which is found when it is waited for
                line.send_bytes(spec.model_dump_json().encode())
            yield line
        finally:
            _end(process)


def _wait_ready(line: Connection, tick: Callable[[], object]) -> None:
    while not line.poll(_LOOK_SECONDS):
        tick()
    try:
        said = line.recv_bytes()
    except (EOFError, ConnectionResetError) as error:
        raise TrainingError(
            "another process of this job ended before it was ready, most often for want of memory",
            code="peer_lost",
        ) from error
    if said != READY:
        raise Explained(Failure(**json.loads(said)))


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        _log.warning("process %s of a job did not end by itself", process.pid)
        process.kill()
        process.wait()


def _environments(settings: Settings, size: int) -> list[dict[str, str]]:
    """Of each of the others: a device that no other process of the job has.

    Raises:
        ConfigError: There are not so many.
    """
    device = pick_device(settings.device)
    if device.type == "cpu":
        own = settings.model_copy(update={"threads": _share_of_threads(size)})
        return [child_environment(own)] * (size - 1)
    seen = torch.cuda.device_count() if device.type == "cuda" else 1
    if seen < size:
        raise ConfigError(
            f"training.devices is {size} and the worker that took the job sees {seen}",
            code="too_many_devices",
            param="training.devices",
        )
    environment = child_environment(settings.model_copy(update={"device": "auto"}))
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(number) for number in range(seen)]
    del names[device.index or 0]
    return [environment | {"CUDA_VISIBLE_DEVICES": name} for name in names[: size - 1]]


def _share_of_threads(size: int) -> int:
    return max(1, torch.get_num_threads() // size)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    pin_threads(count)
    try:
        yield
    finally:
        pin_threads(before)

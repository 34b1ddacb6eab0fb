"""Several processes that train one job together, and the one process that most jobs are.

Each process has the whole base and the whole delta and takes its share of the rows of every step;
gradients are added up, so that all of them take the same step. The lead, rank 0, alone decides,
evaluates, keeps checkpoints and speaks; the others learn what it decided. They meet at the same
places in the same order, or the job ends: a process that is gone ends it for all.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, TCPStore  # type: ignore[attr-defined]  # it is there
from torch.distributed.distributed_c10d import Store

from peft_engine.errors import TrainingError
from peft_engine.training.events import Interrupted, Wish

# The others wait while the lead evaluates; a process that dies is noticed at once all the same.
_PATIENCE = timedelta(hours=24)

Share = TypeVar("Share")
Found = TypeVar("Found")


class World(Protocol):
    """The processes of a job. Every method but ``share`` must be called by all of them alike."""

    rank: int
    """Number of this process; 0 is the lead."""
    size: int
    """Number of processes."""

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes in the place of each tensor.

        Args:
            tensors: Of the same shapes and types everywhere.
        """

    def follow(self, tensors: Sequence[Tensor]) -> None:
        """Put the lead's values in the place of each tensor.

        Args:
            tensors: Of the same shapes and types everywhere.
        """

    def tell(self, message: bytes) -> bytes:
        """The lead's message.

        Args:
            message: What the lead says; the others' is not looked at.

        Returns:
            The lead's.
        """


class Solo:
    """One process: it is the lead, and its sums are its own."""

    rank = 0
    size = 1

    def add(self, tensors: Sequence[Tensor]) -> None:
        """The sum over one process.

        Args:
            tensors: Left as they are.
        """

    def follow(self, tensors: Sequence[Tensor]) -> None:
        """The lead's own values.

        Args:
            tensors: Left as they are.
        """

    def tell(self, message: bytes) -> bytes:
        """What it says.

        Args:
            message: Anything.

        Returns:
            The same.
        """
        return message


class Processes:
    """Processes that meet over gloo, whatever their devices: a delta's gradients are small.

    Args:
        group: All of them, in the order of their ranks.
    """

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group
        self.rank, self.size = group.rank(), group.size()

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all processes in the place of each tensor.

        Args:
            tensors: Of the same shapes and types everywhere; all of one type.
        """
        # One message for all: latency, not size, is what a small delta pays for.
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors]).cpu()
        with _peers():
            self._group.allreduce([flat]).wait()
        place = 0
        for tensor in tensors:
            part = flat[place : place + tensor.numel()]
            tensor.detach().copy_(part.view_as(tensor))
            place += tensor.numel()

    def follow(self, tensors: Sequence[Tensor]) -> None:
        """Put the lead's values in the place of each tensor.

        Args:
            tensors: Of the same shapes and types everywhere.
        """
        for tensor in tensors:
            own = tensor.detach().cpu().contiguous()
            with _peers():
                self._group.broadcast(own, 0).wait()
            tensor.detach().copy_(own)

    def tell(self, message: bytes) -> bytes:
        """The lead's message.

        Args:
            message: What the lead says.

        Returns:
            The lead's.
        """
        length = torch.tensor([len(message)])
        self.follow([length])
        # bytearray, since a tensor may not look at bytes that cannot be written
        own = bytearray(message) if self.rank == 0 else bytearray(int(length))
        if own:
            self.follow([torch.frombuffer(own, dtype=torch.uint8)])
        return bytes(own)


@contextmanager
def meet(*, store: Store | None = None, rank: int = -1, size: int = -1) -> Iterator[World]:
    """Meet the other processes of a job.

    Args:
        store: Where they find one another; None: as ``torchrun`` says in the environment.
        rank: Number of this process where there is a store.
        size: Number of processes where there is a store.

    Yields:
        The processes; afterwards this one has left, and the others notice.
    """
    torch.distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=_PATIENCE
    )
    try:
        yield Processes(cast(ProcessGroup, torch.distributed.group.WORLD))
    finally:
        torch.distributed.destroy_process_group()


def local_store(size: int, port: int | None = None) -> TCPStore:
    """Where the processes of one machine find one another; other machines cannot reach it.

    Args:
        size: Number of processes.
        port: Of the store that another process opened; None: this one opens it.

    Returns:
        The store; its ``port`` is for the others.
    """
    is_opened_here = port is None
    return TCPStore("127.0.0.1", port or 0, size, is_opened_here, wait_for_workers=False)


@contextmanager
def _peers() -> Iterator[None]:
    """Say what it means when gloo loses a connection.

    Raises:
        TrainingError: A process is gone (``peer_lost``).
    """
    try:
        yield
    except RuntimeError as error:
        raise TrainingError(
            "another process of this job is gone, most often for want of memory; a new start of "
            "the job goes on from its newest checkpoint",
            code="peer_lost",
        ) from error


def decide(world: World, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the lead decides.

    Args:
        world: The processes.
        ask: Called by the lead.

    Returns:
        JSON values, the same everywhere.
    """
    own = json.dumps(ask()).encode() if world.rank == 0 else b""
    decided: dict[str, Any] = json.loads(world.tell(own))
    return decided


def together(world: World, work: Callable[[], Found]) -> Found:
    """Work that every process does by itself, and that the lead may interrupt.

    Args:
        world: The processes.
        work: The work.

    Returns:
        What this process found.

    Raises:
        Interrupted: The lead was interrupted, whether this process was or not.
    """
    wish: Wish | None = None
    found: list[Found] = []
    try:
        found.append(work())
    except Interrupted as interrupted:
        wish = interrupted.wish
    told: Wish | None = decide(world, lambda: {"wish": wish})["wish"]
    if told is not None:
        raise Interrupted(told)
    return found[0]


def by_lead(world: World, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Work that the lead does for all, and that may be interrupted; the others wait.

    Args:
        world: The processes.
        work: Gives JSON values.

    Returns:
        What the lead found.

    Raises:
        Interrupted: The lead was interrupted.
    """  # noqa: DOC502  raised below
    found = together(world, lambda: work() if world.rank == 0 else {})
    return decide(world, lambda: found)


def gather(world: World, own: Tensor) -> list[Tensor]:
    """A tensor of every process.

    Args:
        world: The processes.
        own: (N,) of one length and type everywhere, on the CPU.

    Returns:
        One tensor for each rank, everywhere.
    """
    all_ = own.new_zeros(world.size, *own.shape)  # (ranks, N)
    all_[world.rank] = own
    world.add([all_])
    return list(all_)


def share(world: World, items: Sequence[Share]) -> Sequence[Share]:
    """This process's part of some items; every item is in exactly one part.

    Args:
        world: The processes.
        items: In the same order everywhere. Neighbours, which are alike in length, are dealt to
            different processes.

    Returns:
        Every ``size``-th item; none when there are fewer items than processes.
    """
    return items[world.rank :: world.size]

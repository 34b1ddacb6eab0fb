"""Training of one job by itself: every batch has a forward of its own."""

from collections.abc import Mapping, Sequence

from peft_engine.bases.base import Base
from peft_engine.configs.job import JobSpec
from peft_engine.delta import Delta
from peft_engine.errors import ConfigError
from peft_engine.router import Router
from peft_engine.tasks.protocol import Record
from peft_engine.training.events import (
    Checkpoints,
    Control,
    Emit,
    Interrupted,
    TrainingResult,
)
from peft_engine.training.head_start import FeatureStore
from peft_engine.training.loop import Assignment, open_run
from peft_engine.training.parallel import Solo, World


def train(
    base: Base,
    spec: JobSpec,
    splits: Mapping[str, Sequence[Record]],
    *,
    control: Control,
    emit: Emit,
    checkpoints: Checkpoints,
    checkpoint_seconds: float = 20.0,
    features: FeatureStore | None = None,
    router: Router | None = None,
    world: World | None = None,
    parent: Delta | None = None,
) -> TrainingResult:
    """Run one job, from the newest checkpoint if there is one.

    Args:
        base: The frozen base, loaded in the precision of the job.
        spec: What to train and how.
        splits: Canonical records of ``train``, ``validation`` and ``test``; the last two may be
            empty. The test split is only looked at once training is over.
        control: Asked at every step; a wish to pause or drain is obeyed after a checkpoint.
        emit: Told of phases, progress, metrics and resolved values.
        checkpoints: Where progress is kept.
        checkpoint_seconds: Least time between two checkpoints.
        features: Frozen features of earlier jobs on this base.
        router: The router of the base, when it has one already.
        world: The processes that train this job together, each with the same base, job and
            records. ``control``, ``emit`` and ``checkpoints`` are the lead's alone; None: one
            process.
        parent: The delta to continue from, if any; see ``training.lineage``.

    Returns:
        The delta (the lead's alone) and what it is worth, or which wish ended the run.

    Raises:
        ConfigError: The job does not fit the base, the task, the parent or the processes.
        DataError: Records that cannot be learned from.
        TrainingError: The loss is not a number, nothing would be trained, or another process of
            the job is gone.
    """  # noqa: DOC502  raised below
    world = world or Solo()
    _check_devices(spec, world)
    run = open_run(
        base,
        Assignment(spec, splits, control, emit, checkpoints, parent),
        checkpoint_seconds=checkpoint_seconds,
        features=features or FeatureStore(),
        router=router or Router(base.trunk),
        world=world,
    )
    try:
        share = next(run)
        while True:
            try:
                found = share.alone()
            except Interrupted as interrupted:
                share = run.throw(interrupted)
            else:
                share = run.send(found)
    except StopIteration as end:
        result: TrainingResult = end.value
        return result


def _check_devices(spec: JobSpec, world: World) -> None:
    """Refuse to train on fewer or more devices than the job says.

    Raises:
        ConfigError: It does.
    """
    asked = spec.training.devices
    if asked not in (1, world.size):
        raise ConfigError(
            f"training.devices is {asked} and the number of processes {world.size}; start the job "
            f"by torchrun --nproc-per-node {asked}",
            code="too_many_devices",
            param="training.devices",
        )

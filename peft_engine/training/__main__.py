"""Train one job from files, without the service: ``python -m peft_engine.training JOB.json …``.

On several devices, or several processes of one machine, start it through torchrun:
``torchrun --nproc-per-node 2 -m peft_engine.training JOB.json …``. Rank 0 alone prints and writes.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from peft_engine.bases.base import Base, describe_base
from peft_engine.compression.derive import load_derived, plan_name, plan_path
from peft_engine.compression.pruning import PruningPlan
from peft_engine.configs.job import JobSpec
from peft_engine.delta import Delta, load_delta, save_delta
from peft_engine.errors import ConfigError, EngineError
from peft_engine.runtime import pin_threads
from peft_engine.tasks.protocol import Record
from peft_engine.training.alone import train
from peft_engine.training.events import TrainingEvent
from peft_engine.training.parallel import Solo, World, meet
from peft_engine.training.reading import SPLITS


class FileCheckpoints:
    """The newest checkpoint, in one file.

    Args:
        path: The file; made when there is something to keep.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, step: int, state: bytes, delta: Delta) -> None:
        """Keep a checkpoint in the place of the last.

        Args:
            step: Steps done.
            state: What is needed to go on beside the delta.
            delta: What the steps so far have made.
        """
        data = save_delta(delta)
        numbers = (number.to_bytes(8, "little") for number in (step, len(data)))
        # A kill between the two lines leaves the last checkpoint whole.
        written = self._path.with_suffix(".tmp")
        written.write_bytes(b"".join((*numbers, data, state)))
        written.replace(self._path)

    def latest(self) -> tuple[int, bytes, Delta | None] | None:
        """The checkpoint.

        Returns:
            Steps done, the state and the delta; None when there is no file. Of an earlier version
            there is a state alone.
        """
        if not self._path.is_file():
            return None
        found = self._path.read_bytes()
        step, length = (int.from_bytes(found[at : at + 8], "little") for at in (0, 8))
        if found[16:17] == b"{":
            # An earlier version wrote no delta: here its state's header begins. A delta would begin
            # with the length of its own header, a multiple of eight.
            return step, found[8:], None
        end = 16 + length
        return step, found[end:], load_delta(found[16:end])


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and write the delta.

    Args:
        arguments: Command line without the program; None reads ``sys.argv``.

    Returns:
        0, or 1 with the reason on standard error.
    """
    parser = argparse.ArgumentParser(prog="python -m peft_engine.training", description=__doc__)
    parser.add_argument("job", type=Path, help="a job as POST /jobs takes it, in JSON")
    parser.add_argument("--base", required=True, help="pkg:NAME, a folder or a GGUF file")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, …")
    for split in SPLITS:
        parser.add_argument(
            f"--{split}", type=Path, required=split == "train", help="canonical records, JSONL"
        )
    parser.add_argument("--parent", type=Path, help="delta that a job with a parent goes on from")
    parser.add_argument("--out", type=Path, required=True, help="file of the delta")
    parser.add_argument("--checkpoint", type=Path, help="default: the delta's, with .checkpoint")
    parser.add_argument("--checkpoint-seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=None)
    asked = parser.parse_args(arguments)
    pin_threads(asked.threads)
    world: AbstractContextManager[World] = nullcontext(Solo())
    if torch.distributed.is_torchelastic_launched():
        world = meet()
    try:
        with world as processes:
            _train(asked, processes)
    except EngineError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0


def _train(asked: argparse.Namespace, world: World) -> None:
    """Train.

    Raises:
        ConfigError: The job goes on from an adapter and there is no file of one.
    """
    if torch.cuda.is_available():
        # one device for each process of this machine
        torch.cuda.set_device(torch.distributed.get_node_local_rank(fallback_rank=0))
    spec = JobSpec.model_validate_json(asked.job.read_bytes())
    if spec.parent_adapter_id is not None and asked.parent is None:
        raise ConfigError(
            f"parent_adapter_id {spec.parent_adapter_id!r} is known to the service alone; give the "
            "file of its delta by --parent",
            code="adapter_not_found",
            param="parent_adapter_id",
        )
    parent = None if asked.parent is None else load_delta(asked.parent)
    base = _load_base(asked, spec)
    checkpoints = FileCheckpoints(asked.checkpoint or asked.out.with_suffix(".checkpoint"))
    result = train(
        base,
        spec,
        {split: _read(getattr(asked, split)) for split in SPLITS},
        control=lambda: None,
        emit=_print,
        checkpoints=checkpoints,
        checkpoint_seconds=asked.checkpoint_seconds,
        world=world,
        parent=parent,
    )
    if result.delta is not None:
        asked.out.write_bytes(save_delta(result.delta))
        _print(TrainingEvent("log", {"digest": result.delta.digest, "metrics": result.metrics}))


def _load_base(asked: argparse.Namespace, spec: JobSpec) -> Base:
    """The base that a job trains on, derived from the one at ``--base`` where it asks for that.

    Raises:
        ConfigError: Rows of the job would have to decide what pruning takes away.
    """
    published = describe_base(asked.base, name=spec.base_model, models_dir=asked.models_dir)
    plan, pruning = None, spec.base.pruning
    if pruning is not None and pruning.looks_at_rows:
        if pruning.calibration is None:
            raise ConfigError(
                f"base.pruning {pruning.name!r} takes away what rows decide, which is done in the "
                "service alone; give the calibration that a job there came to",
                code="calibration_missing",
                param="base.pruning",
            )
        kept = plan_path(asked.models_dir, plan_name(published, pruning))
        plan = PruningPlan.from_bytes(kept.read_bytes()) if kept.is_file() else None
    return load_derived(
        published, spec.base, plan=plan, device=asked.device, precision=spec.training.precision
    )


def _read(path: Path | None) -> list[Record]:
    if path is None:
        return []
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def _print(event: TrainingEvent) -> None:
    """One line of JSON."""
    sys.stdout.write(json.dumps({"kind": event.kind, **event.data}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

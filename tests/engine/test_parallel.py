"""Several processes train one job as one process would, obey as one, and end as one.

Most tests run the ranks as threads of one process, each with a base and a gloo group of its own;
the last one kills a real process.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.distributed import HashStore, ProcessGroup, ProcessGroupGloo

from peft_engine.bases.base import Base, load_base
from peft_engine.configs import JobSpec
from peft_engine.delta import Delta
from peft_engine.errors import ConfigError, TrainingError
from peft_engine.training import NoCheckpoints, TrainingEvent, TrainingResult, train
from peft_engine.training.events import Interrupted, Wish
from peft_engine.training.parallel import Processes, Solo, World, by_lead, gather, share, together
from tests.engine.test_not_finite import TOO_FAST
from tests.engine.test_training import CLASSIFICATION, GENERATION, Shelf, Splits, job
from tests.tiny_bases import write_tiny_bert, write_tiny_llama

SPLITS: Mapping[str, Splits] = {
    "text-classification": {**CLASSIFICATION, "test": CLASSIFICATION["test"][:4]},
    "text-generation": {**GENERATION, "test": []},
}
LORA = {"type": "lora", "r": 4}


@pytest.fixture(scope="session")
def twins(models_dir: Path) -> Mapping[str, tuple[Base, Base]]:
    """Two copies of each base: one model has one forward at a time."""
    folders = {
        "text-classification": write_tiny_bert(models_dir / "twin-bert"),
        "text-generation": write_tiny_llama(models_dir / "twin-llama"),
    }
    return {
        task: cast(
            tuple[Base, Base],
            tuple(load_base(str(path), name="b", models_dir=models_dir) for _ in range(2)),
        )
        for task, path in folders.items()
    }


def in_two(work: Callable[[World], Any]) -> list[Any]:
    """What two ranks find, or how they fail."""
    store = HashStore()

    def one(rank: int) -> Any:
        group = ProcessGroupGloo(store, rank, 2, timedelta(seconds=60))
        try:
            return work(Processes(cast(ProcessGroup, group)))
        except (TrainingError, Interrupted) as error:
            return error

    with ThreadPoolExecutor(2) as ranks:
        return list(ranks.map(one, range(2)))


def run_two(
    bases: tuple[Base, Base],
    spec: JobSpec,
    splits: Splits,
    *,
    control: Callable[[], Wish | None] = lambda: None,
    shelf: Shelf | NoCheckpoints | None = None,
    events: list[TrainingEvent] | None = None,
) -> list[TrainingResult]:
    """The job on two ranks; the second would fail a test if it were asked or told anything."""
    told = events if events is not None else []

    def work(world: World) -> TrainingResult:
        lead = world.rank == 0
        return train(
            bases[world.rank],
            spec,
            splits,
            control=control if lead else lambda: pytest.fail("asked"),
            emit=told.append if lead else lambda event: pytest.fail(f"told {event}"),
            checkpoints=(shelf or NoCheckpoints()) if lead else NoCheckpoints(),
            checkpoint_seconds=0 if shelf is not None else 1e9,
            world=world,
        )

    return in_two(work)


def run_one(base: Base, spec: JobSpec, splits: Splits) -> TrainingResult:
    return train(
        base,
        spec,
        splits,
        control=lambda: None,
        emit=lambda _: None,
        checkpoints=NoCheckpoints(),
    )


def delta_of(result: TrainingResult) -> Delta:
    assert result.delta is not None
    return result.delta


# ---- the seam ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2])
def test_worlds_keep_the_contract(size: int) -> None:
    def work(world: World) -> Any:
        sums = torch.tensor([1.0, 2.0 + world.rank])
        world.add([sums[:1], sums[1:]])
        lead = torch.tensor([5 + world.rank], dtype=torch.int32)
        world.follow([lead])
        return (
            sums.tolist(),
            lead.item(),
            world.tell(b"" if world.rank else b"word"),
            world.tell(b""),
            [
                part.tolist()
                for part in gather(world, torch.tensor([world.rank], dtype=torch.uint8))
            ],
            share(world, "abc"),
            by_lead(world, lambda: {"rank": world.rank}),
        )

    found = [work(Solo())] if size == 1 else in_two(work)
    sums = [1.0, 2.0] if size == 1 else [2.0, 5.0]
    for rank, own in enumerate(found):
        ranks = [[number] for number in range(size)]
        part = "abc" if size == 1 else ("ac", "b")[rank]
        assert own == (sums, 5, b"word", b"", ranks, part, {"rank": 0})


@pytest.mark.parametrize("size", [1, 2])
def test_the_lead_alone_interrupts_and_all_learn_it(size: int) -> None:
    def work(world: World) -> None:
        def interrupted() -> None:
            raise Interrupted("pause")

        together(world, interrupted if world.rank == 0 else lambda: None)

    if size == 1:
        with pytest.raises(Interrupted):
            work(Solo())
    else:
        assert [error.wish for error in in_two(work)] == ["pause", "pause"]


# ---- jobs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "training"),
    [
        ("text-classification", {"batch_size": 5, "class_weights": "balanced"}),
        ("text-classification", {"batch_size": 47, "gradient_accumulation": 2}),
        ("text-generation", {"batch_size": 7, "gradient_checkpointing": True}),
        ("text-generation", {"method": {**LORA, "layers": {"last": 1}}}),
    ],
    ids=["weights", "a batch of one row", "tokens", "reuse"],
)
def test_two_processes_learn_what_one_does(
    twins: Mapping[str, tuple[Base, Base]], task: str, training: dict[str, Any]
) -> None:
    """Plain gradient descent: Adam would blow rounding of small gradients up to whole steps."""
    spec = job(task, **({"method": LORA, "optimizer": "sgd", "epochs": 2} | training))
    one = run_one(twins[task][0], spec, SPLITS[task])
    lead, other = run_two(twins[task], spec, SPLITS[task])
    assert (lead.outcome, other.outcome, other.delta) == ("succeeded", "succeeded", None)
    start = run_one(twins[task][0], job(task, method=LORA, max_steps=1), SPLITS[task])
    moved = 0.0
    for name, tensor in delta_of(one).tensors.items():
        torch.testing.assert_close(delta_of(lead).tensors[name], tensor, rtol=1e-5, atol=1e-6)
        if name in delta_of(start).tensors:
            moved = max(moved, float((tensor - delta_of(start).tensors[name]).abs().max()))
    assert moved > 1e-3
    best, expected = (r.metrics["validation"]["best"] for r in (lead, one))
    assert best == pytest.approx(expected, rel=1e-4)


def test_dropout_differs_between_processes_and_every_checkpoint_leads_to_the_same_bytes(
    twins: Mapping[str, tuple[Base, Base]],
) -> None:
    task = "text-classification"
    spec = job(epochs=2, method={**LORA, "dropout": 0.3}, eval_every_steps=4)
    shelf, events = Shelf(), list[TrainingEvent]()
    whole = run_two(twins[task], spec, SPLITS[task], shelf=shelf, events=events)[0]
    progress = [e.data for e in events if e.kind == "progress"]
    assert [p["step"] for p in progress] == list(range(1, 13))
    alone = Shelf()
    train(
        twins[task][0],
        spec,
        SPLITS[task],
        control=lambda: None,
        emit=lambda _: None,
        checkpoints=alone,
        checkpoint_seconds=0,
    )
    for kept in (shelf.kept[0], shelf.kept[-1]):
        one = Shelf()
        one.kept = [kept]
        resumed = run_two(twins[task], spec, SPLITS[task], shelf=one)[0]
        assert delta_of(resumed).digest == delta_of(whole).digest
        assert resumed.metrics == whole.metrics
    # A run of another number of processes draws other dropout: its checkpoint is left aside.
    again: list[TrainingEvent] = []
    run_two(twins[task], spec, SPLITS[task], shelf=alone, events=again)
    assert any("left aside" in e.data.get("message", "") for e in again)


@pytest.mark.parametrize("layers", ["all", {"last": 1}])
def test_a_wish_is_obeyed_by_all_wherever_it_comes(
    twins: Mapping[str, tuple[Base, Base]], layers: Any
) -> None:
    """In the preparation, between steps, between batches of a step, in evaluations.

    States below the lowest trained layer are computed within a step, where no process may leave.
    """
    task = "text-classification"
    method = {**LORA, "layers": layers}
    spec = job(epochs=2, eval_every_steps=2, gradient_accumulation=2, method=method)
    asked = 0

    def count(at: int = 10**9) -> Wish | None:
        nonlocal asked
        asked += 1
        return "drain" if asked >= at else None

    whole = run_two(twins[task], spec, SPLITS[task], control=count)[0]
    assert asked > 15
    for stop_at in range(2, asked, 5):
        asked, shelf = 0, Shelf()
        halves = run_two(
            twins[task], spec, SPLITS[task], control=lambda at=stop_at: count(at), shelf=shelf
        )
        assert [half.outcome for half in halves] == ["drained", "drained"]
        resumed = run_two(twins[task], spec, SPLITS[task], shelf=shelf)[0]
        assert delta_of(resumed).digest == delta_of(whole).digest


def test_patience_and_a_loss_that_is_not_a_number_end_all(
    twins: Mapping[str, tuple[Base, Base]],
) -> None:
    task = "text-classification"
    stopping = {"patience": 1, "min_delta": 10.0}
    spec = job(epochs=50, eval_every_steps=2, early_stopping=stopping)
    ended = run_two(twins[task], spec, SPLITS[task])
    assert all(result.metrics["validation"]["stopped_early"] for result in ended)
    task = "text-generation"
    spec = job(task, epochs=9, **TOO_FAST)
    for error in run_two(twins[task], spec, SPLITS[task]):
        assert isinstance(error, TrainingError)
        assert error.code == "loss_not_finite"


# ---- real processes ---------------------------------------------------------------------------


def start_rank(folder: Path, rank: int, port: int, base: Path) -> subprocess.Popen[str]:
    """A rank as torchrun starts it."""
    argv = [sys.executable, "-m", "peft_engine.training", str(folder / "job.json")]
    argv += ["--base", str(base), "--models-dir", str(folder), "--out", str(folder / "delta")]
    argv += ["--device", "cpu", "--threads", "1", "--checkpoint-seconds", "0"]
    for split in ("train", "validation"):
        argv += [f"--{split}", str(folder / f"{split}.jsonl")]
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1"}
    own |= {"MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test", "HF_HUB_OFFLINE": 1}
    environment = dict(os.environ) | {name: str(value) for name, value in own.items()}  # noqa: TID251
    return subprocess.Popen(
        argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_killed_process_ends_the_run_and_nothing_is_lost(
    twins: Mapping[str, tuple[Base, Base]], models_dir: Path, tmp_path: Path
) -> None:
    task = "text-classification"
    spec = job(epochs=3, method={**LORA, "dropout": 0.3}, early_stopping=None)
    splits: Splits = {**CLASSIFICATION, "test": []}
    undisturbed = delta_of(run_two(twins[task], spec, splits)[0])
    (tmp_path / "job.json").write_text(spec.model_dump_json())
    for split in ("train", "validation"):
        lines = [json.dumps(row) for row in splits[split]]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    told: list[Any] = []

    def run_ranks(kill_at: int | None) -> tuple[int, str]:
        port = free_port()
        ranks = [start_rank(tmp_path, rank, port, models_dir / "twin-bert") for rank in range(2)]
        with ranks[0] as lead, ranks[1] as other:
            assert lead.stdout is not None
            for line in lead.stdout:
                told.append(json.loads(line))
                if told[-1]["kind"] == "progress" and told[-1]["step"] == kill_at:
                    other.kill()
            error = lead.communicate()[1]
            other.communicate()
            return lead.returncode, error

    code, error = run_ranks(kill_at=6)
    assert (code, "another process of this job is gone" in error) == (1, True)
    assert not (tmp_path / "delta").exists()
    told.clear()
    assert run_ranks(kill_at=None)[0] == 0
    resumed = next(line["step"] for line in told if line["kind"] == "progress")
    assert resumed >= 6
    assert told[-1]["digest"] == undisturbed.digest


def test_a_job_of_more_devices_than_processes_says_how_to_start_it(
    twins: Mapping[str, tuple[Base, Base]],
) -> None:
    (base, _), spec = twins["text-classification"], job(method=LORA, devices=2)
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 2") as refused:
        run_one(base, spec, SPLITS["text-classification"])
    assert refused.value.param == "training.devices"

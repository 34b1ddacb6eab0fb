"""The faults that matter most again, with the real engine on a tiny BERT made by the test.

One stage and one worker serve the whole module: loading torch is what takes the time here.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.db import adapters
from core.states import JobStatus
from peft_engine.delta import load_delta
from tests.service.servers.valkey import ValkeyServer
from tests.service.worker.stage import Stage, is_alive, kill, wait_until
from tests.service.worker.tiny_stage import tiny_stage

STEPS = 24
BATCH_ROWS = 16
TRAIN_ROWS = 128


@pytest.fixture(scope="module")
def engine_stage(
    tmp_path_factory: pytest.TempPathFactory, _sqlite_template: Path, valkey_server: ValkeyServer
) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("engine")
    rows = {"train": TRAIN_ROWS, "validation": 16, "test": 32}
    yield from tiny_stage(folder, _sqlite_template, valkey_server, rows=rows)


@pytest.fixture(scope="module")
def trained(engine_stage: Stage) -> str:
    """A job that nothing disturbed."""
    engine_stage.start_worker()
    job_id = add_job(engine_stage, "undisturbed")
    job = engine_stage.wait_end(job_id, seconds=90)
    assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
    return job_id


def add_job(stage: Stage, name: str, **metadata: Any) -> str:
    return stage.add_job(
        base_model="tiny",
        adapter_name=name,
        steps=STEPS,
        training={
            "batch_size": BATCH_ROWS,
            "epochs": STEPS * BATCH_ROWS / TRAIN_ROWS,
            "early_stopping": None,
            "eval_every_steps": 10,
        },
        **metadata,
    )


def test_a_published_adapter_is_what_was_trained(engine_stage: Stage, trained: str) -> None:
    job = engine_stage.job(trained)
    (adapter,) = [each for each in engine_stage.adapters() if each.job_id == trained]
    delta = load_delta(engine_stage.store.get_bytes(adapter.key))
    assert delta.digest == adapter.digest == engine_stage.digest(trained)
    assert adapter.labels == ["even", "odd"]
    assert adapter.parameters + delta.head_parameters == delta.parameters
    assert job.metrics is not None
    assert {"before", "after"} <= job.metrics["test"].keys()
    assert job.progress is not None
    assert (job.progress["step"], job.progress["total_steps"]) == (STEPS, STEPS)
    assert job.resolved is not None
    assert job.trainable_parameters == delta.parameters
    assert job.first_step_at is not None
    assert job.started_at is not None
    assert job.first_step_at > job.started_at


def test_what_the_engine_refuses_is_told_to_the_owner(engine_stage: Stage, trained: str) -> None:
    job_id = engine_stage.add_job(base_model="no-such-base")
    job = engine_stage.wait_status(job_id, JobStatus.FAILED)
    assert job.attempt == 1
    assert job.error is not None
    assert job.error["code"] == "base_not_found"
    assert "tiny" in job.error["message"]


def test_a_running_job_is_cancelled_within_two_seconds(engine_stage: Stage, trained: str) -> None:
    stage = engine_stage
    job_id = add_job(stage, "unwanted", hold="5", gates=str(stage.folder))
    stage.wait_held(5)
    stage.cancel(job_id)
    assert stage.wait_status(job_id, JobStatus.CANCELLED, seconds=2).adapter_id is None


def test_killed_at_three_steps_and_drained_it_ends_as_if_undisturbed(
    engine_stage: Stage, trained: str
) -> None:
    stage = engine_stage
    worker = stage.workers[-1]
    gates = {"hold": "1,9,17,21", "gates": str(stage.folder), "trace": str(stage.trace)}
    job_id = add_job(stage, "disturbed", **gates)

    stage.wait_traced(1)  # the start is being evaluated: there is no checkpoint yet
    kill(stage.trainer_of(worker))

    stage.open_gate(1)
    stage.wait_held(9)
    trainer = stage.trainer_of(worker)
    worker.stop_with(signal.SIGKILL)
    wait_until(lambda: not is_alive(trainer), what="the trainer dies with its worker")
    worker = stage.start_worker()

    stage.open_gate(9)
    stage.wait_running_sweeping(job_id, attempt=3)
    stage.wait_held(17)
    os.kill(stage.trainer_of(worker), signal.SIGKILL)

    stage.open_gate(17)
    stage.wait_held(21)
    second = stage.start_worker()
    assert worker.stop_with(signal.SIGTERM) == 0

    stage.open_gate(21)
    job = stage.wait_end(job_id, seconds=60)
    assert (job.status, job.attempt, job.error) == (JobStatus.SUCCEEDED, 5, None)
    # every other step once, over five attempts
    assert stage.traced_steps() == [1, *range(1, STEPS + 1)]
    assert stage.digest(job_id) == stage.digest(trained)
    assert job.metrics is not None
    assert job.metrics["test"] == (stage.job(trained).metrics or {})["test"]
    assert second.process.poll() is None


def continue_job(stage: Stage, parent_id: str, name: str, **metadata: Any) -> str:
    """A job as the api stores it: the parent's id, and its methods by default."""
    return stage.add_job(
        base_model="tiny",
        adapter_name=name,
        parent_adapter_id=parent_id,
        steps=8,
        training={"batch_size": BATCH_ROWS, "early_stopping": None, "eval_every_steps": 4},
        **metadata,
    )


def test_a_job_continues_from_an_adapter_also_after_a_kill(
    engine_stage: Stage, trained: str
) -> None:
    """The start is the parent's end to the bit, and a killed trainer changes nothing."""
    stage = engine_stage
    parent_id = stage.job(trained).adapter_id
    assert parent_id is not None
    worker = stage.workers[-1]
    (stage.folder / "child").mkdir()
    job_id = continue_job(stage, parent_id, "child", hold="5", gates=str(stage.folder / "child"))
    stage.wait_held(5)
    kill(stage.trainer_of(worker))
    (stage.folder / "child" / "5").touch()
    whole_id = continue_job(stage, parent_id, "child")
    job, whole = stage.wait_end(job_id, seconds=60), stage.wait_end(whole_id, seconds=60)
    assert (job.status, job.attempt, job.error) == (JobStatus.SUCCEEDED, 2, None)
    assert stage.digest(job_id) == stage.digest(whole_id)
    assert job.metrics is not None
    assert whole.metrics == job.metrics
    assert job.metrics["test"]["before"] == (stage.job(trained).metrics or {})["test"]["after"]
    assert job.metrics["test"]["before_is"] == "the parent adapter"
    child, parent = (
        next(each for each in stage.adapters() if each.id == identity)
        for identity in (job.adapter_id, parent_id)
    )
    assert child.parent_adapter_id == parent.id
    delta = load_delta(stage.store.get_bytes(child.key))
    assert delta.manifest.parent_digest == parent.digest


def test_a_parent_that_is_gone_or_damaged_ends_the_job_with_a_reason(
    engine_stage: Stage, trained: str
) -> None:
    stage = engine_stage
    with stage.database.write() as session:
        parent = next(each for each in stage.adapters() if each.job_id == trained)
        copies = []
        for name, key in (("gone", parent.key), ("damaged", "deltas/damaged"), ("lost", "no/such")):
            row = adapters.publish(
                session,
                tenant_id=stage.tenant_id,
                name=name,
                base_model="tiny",
                base_fingerprint=parent.base_fingerprint,
                task=parent.task,
                methods=parent.methods,
                parameters=1,
                bytes=1,
                digest=parent.digest,
                key=key,
            )
            copies.append(row.id)
        adapters.mark_deleted(session, stage.tenant_id, copies[0])
    stage.store.put_bytes("deltas/damaged", stage.store.get_bytes(parent.key)[:-9])
    codes = ["adapter_not_found", "adapter_corrupt", "adapter_corrupt"]
    for adapter_id, code in zip(copies, codes, strict=True):
        job = stage.wait_end(continue_job(stage, adapter_id, "orphan"))
        assert (job.status, job.attempt) == (JobStatus.FAILED, 1)
        assert job.error is not None
        assert (job.error["code"], job.error["param"]) == (code, "parent_adapter_id")


def hold_derivation(stage: Stage, name: str, **base: Any) -> str:
    """A job whose derived base is being made, and waits in the middle of that."""
    (stage.folder / "derivation-is-held").unlink(missing_ok=True)
    (stage.folder / "hold-derivation").touch()
    training = {"batch_size": BATCH_ROWS, "early_stopping": None}
    job_id = stage.add_job(
        base_model="tiny", adapter_name=name, base=base, steps=4, training=training
    )
    wait_until((stage.folder / "derivation-is-held").exists, what="the derivation is held")
    return job_id


@pytest.mark.parametrize("base", [{"pruning": {"method": "wanda"}}, {"quantization": "int4"}])
def test_a_job_is_cancelled_while_its_base_is_made(
    engine_stage: Stage, trained: str, base: dict[str, Any]
) -> None:
    stage = engine_stage
    trainer = stage.trainer_of(stage.workers[-1])
    job_id = hold_derivation(stage, "unmade", **base)
    stage.cancel(job_id)
    # sooner than a trainer is killed that does not listen, and this one lives on
    stage.wait_status(job_id, JobStatus.CANCELLED, seconds=2)
    assert stage.trainer_of(stage.workers[-1]) == trainer
    (stage.folder / "hold-derivation").unlink()


def test_a_worker_that_is_told_to_end_leaves_a_base_half_made(
    engine_stage: Stage, trained: str
) -> None:
    stage = engine_stage
    job_id = hold_derivation(
        stage, "drained", pruning={"method": "wanda", "sparsity": 0.4}, quantization="nf4"
    )
    assert stage.workers[-1].stop_with(signal.SIGTERM) == 0
    assert stage.job(job_id).status == JobStatus.QUEUED
    (stage.folder / "hold-derivation").unlink()
    stage.start_worker()
    job = stage.wait_end(job_id, seconds=60)
    assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
    told = [event.message for event in stage.events(job_id)]
    assert any(message.endswith("layers pruned") for message in told)
    assert any(message.endswith("linears quantized") for message in told)

"""Checkpoints as ``model`` of the official client; a real engine answers, workers are played."""

from typing import Any

import openai
import pytest

from core.db import checkpoints, datasets, jobs
from core.db.models import Checkpoint, Job
from core.states import DatasetStatus
from peft_engine.bases.base import Base
from peft_engine.configs import JobSpec
from peft_engine.delta import save_delta
from peft_engine.serving import Engine, Row, prepare_row
from tests.service.inference.conftest import Stored
from tests.service.openai.conftest import House
from worker.deltas import describe_delta

ASKED: Any = {"messages": [{"role": "user", "content": "where is my card"}], "temperature": 0}


def begin_job(house: House) -> Job:
    """A job of the first tenant that a worker has taken."""
    spec = JobSpec.model_validate({"dataset_id": "ds_x", "base_model": "llama"})
    with house.database.write() as session:
        tenant = house.tenant_id(session)
        data = datasets.create(session, tenant_id=tenant, name="d", status=DatasetStatus.READY)
        job = jobs.create(
            session,
            tenant_id=tenant,
            dataset_id=data.id,
            base_model="llama",
            spec=spec.model_dump(mode="json"),
            max_attempts=3,
            task="text-generation",
            adapter_name="menu-texts",
            metadata={},
        )
        assert jobs.claim(session, job.id, owner="test", lease_seconds=60)
    return job


def keep(house: House, job: Job, stored: Stored, *, step: int) -> Checkpoint:
    """Keep a step, as a worker does; its delta is in storage."""
    size = len(save_delta(stored.delta))
    told = describe_delta(stored.delta, key=stored.reference["key"], size_bytes=size)
    with house.database.write() as session:
        return checkpoints.add(
            session,
            job_id=job.id,
            tenant_id=job.tenant_id,
            attempt=1,
            step=step,
            key=f"checkpoints/{job.id}/1-{step}.safetensors",
            bytes=1,
            sha256="0" * 64,
            delta=told,
        )


def test_a_step_answers_with_its_own_weights(house: House, tiny_bases: dict[str, Base]) -> None:
    job = begin_job(house)
    keep(house, job, house.texts, step=20)
    (point,) = house.client.fine_tuning.jobs.checkpoints.list(job.id)
    model = point.fine_tuned_model_checkpoint
    assert model == f"ft:llama:{job.tenant_id}:menu-texts:{job.id}:ckpt-step-20"
    row = Row(None, "where is my card", house.texts.delta, {"max_new_tokens": 6})
    alone = Engine(tiny_bases["llama"]).predict([prepare_row(tiny_bases["llama"], row)])[0]
    answer = house.client.completions.create(
        model=model, prompt="where is my card", max_tokens=6, temperature=0
    )
    assert answer.choices[0].text == alone.output["text"]
    assert answer.model == model
    receipt = answer.x_receipt
    assert receipt["adapter_digest"] == house.texts.delta.digest
    assert (receipt["job_id"], receipt["step"]) == (job.id, 20)
    assert (receipt["adapter_id"], receipt["adapter"]) == (point.id, None)
    chunks = list(house.client.chat.completions.create(model=model, stream=True, **ASKED))
    assert {chunk.model for chunk in chunks} == {model}
    by_id = house.client.chat.completions.create(model=point.id, **ASKED)
    assert by_id.model == model


def test_a_card_tells_which_step_it_is(house: House) -> None:
    job = begin_job(house)
    row = keep(house, job, house.intents, step=7)
    (point,) = house.client.fine_tuning.jobs.checkpoints.list(job.id)
    model = point.fine_tuned_model_checkpoint
    card = house.client.models.retrieve(model)
    assert card.id == model
    own: Any = card.x_tunery
    named = {name: own[name] for name in ("kind", "adapter_id", "job_id", "step", "digest")}
    assert named == {
        "kind": "checkpoint",
        "adapter_id": row.id,
        "job_id": job.id,
        "step": 7,
        "digest": house.intents.delta.digest,
    }
    assert model not in {listed.id for listed in house.client.models.list()}
    vector = house.client.embeddings.create(model=model, input="where is my card")
    assert vector.model == model
    with pytest.raises(openai.BadRequestError) as refused:
        house.client.models.delete(model)
    assert refused.value.code == "unsupported"
    assert "goes away with its job" in refused.value.message


def test_what_is_gone_or_of_another_is_no_model(house: House) -> None:
    job = begin_job(house)
    row = keep(house, job, house.texts, step=20)
    (point,) = house.client.fine_tuning.jobs.checkpoints.list(job.id)
    model = point.fine_tuned_model_checkpoint
    for name in (model, row.id):
        for ask in (
            lambda name=name: house.other.chat.completions.create(model=name, **ASKED),
            lambda name=name: house.other.models.retrieve(name),
        ):
            with pytest.raises(openai.NotFoundError) as unknown:
                ask()
            assert unknown.value.code == "model_not_found"
            assert "step 20" not in unknown.value.message
    with house.database.write() as session:
        checkpoints.prune(session, job.tenant_id, job.id, keep=0)
    with pytest.raises(openai.NotFoundError) as gone:
        house.client.chat.completions.create(model=model, **ASKED)
    assert (gone.value.code, gone.value.param) == ("model_not_found", "model")
    assert f"job {job.id} is running and has none" in gone.value.message
    with pytest.raises(openai.NotFoundError, match="is running and has none"):
        house.client.models.retrieve(model)
    other = model.replace(":llama:", ":bert:")
    with pytest.raises(openai.NotFoundError):
        house.client.chat.completions.create(model=other, **ASKED)

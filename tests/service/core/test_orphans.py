"""What a crash between bytes and row leaves behind is found, and nothing else."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.db import Database, adapters, checkpoints, datasets
from core.db.objects import remove_unneeded
from core.settings import Settings, child_environment
from core.states import DatasetStatus, JobStatus
from core.storage import ObjectStore, checkpoint_key, dataset_key, delta_key, open_store, upload_key
from core.storage.directory import DirectoryStore
from peft_engine.configs import LoraConfig
from peft_engine.configs.manifest import Manifest
from tests.service.core.world import World, make_world
from worker.deltas import store_delta
from worker.journal import JobKey
from worker.orphans import delete_orphans, find_orphans, remove_orphans
from worker.publishing import publish as publish_delta

ROOT = Path(__file__).parents[3]
DAY = 24 * 3600.0


def grow_old(settings: Settings) -> None:
    """Make every object of a folder store a day and an hour old."""
    then = time.time() - DAY - 3600
    for path in (settings.data_dir / "objects").rglob("*"):
        os.utime(path, (then, then))


def publish(world: World, digest: str) -> str:
    with world.database.write() as session:
        return adapters.publish(
            session,
            tenant_id=world.tenant_id,
            name="a",
            base_model="minilm",
            base_fingerprint="f",
            task="text-classification",
            methods=[],
            parameters=1,
            bytes=1,
            digest=digest,
            key=delta_key(digest),
        ).id


def test_only_old_objects_without_a_row_go(world: World, directory_settings: Settings) -> None:
    store, tenant = open_store(directory_settings), world.tenant_id
    job = world.job()
    with world.database.write() as session:
        waiting = datasets.create(
            session, tenant_id=tenant, name="w", status=DatasetStatus.VALIDATING
        ).id
        kept = checkpoint_key(job.id, 1, 5)
        checkpoints.add(
            session,
            job_id=job.id,
            tenant_id=tenant,
            attempt=1,
            step=5,
            key=kept,
            bytes=1,
            sha256="",
            delta={"key": delta_key("beside"), "digest": "sha256:beside"},
        )
    publish(world, "sha256:kept")
    deleted = publish(world, "sha256:deleted")
    with world.database.write() as session:
        adapters.mark_deleted(session, tenant, deleted)
    owned = [
        kept,
        delta_key("beside"),
        delta_key("kept"),
        dataset_key(world.dataset_id, "train"),
        dataset_key(waiting, "train"),
        upload_key(waiting, "all"),
        "derived/plan.safetensors",
    ]
    orphaned = [
        checkpoint_key(job.id, 1, 7),
        dataset_key("ds_nobody", "test"),
        delta_key("deleted"),
        upload_key(world.dataset_id, "all"),  # its validation has ended
        upload_key("imp_1", "adapter"),
    ]
    for key in owned + orphaned:
        store.put_bytes(key, b"x")
    assert find_orphans(world.database, store).keys == ()
    grow_old(directory_settings)
    store.put_new(delta_key("deleted"), b"x")  # as a job that trains the very same delta does
    assert find_orphans(world.database, store).keys == tuple(
        key for key in orphaned if key != delta_key("deleted")
    )
    grow_old(directory_settings)
    assert remove_orphans(world.database, store).keys == tuple(orphaned)
    assert list(store.list("")) == sorted(owned)


class Slow(DirectoryStore):
    """A folder store that another trainer of the same delta meets while it removes the old one."""

    def __init__(self, root: Path, meet: Callable[[], object]) -> None:
        super().__init__(root)
        self._meet = meet

    def delete_older(self, key: str, *, seconds: float) -> bool:
        self._meet()
        self.delete(key)
        return True

    def delete(self, key: str) -> None:
        self._meet()
        super().delete(key)


@pytest.mark.parametrize("remover", ["sweep", "deletion"])
def test_a_delta_that_is_published_while_an_equal_one_is_removed_keeps_its_bytes(
    world: World, directory_settings: Settings, remover: str
) -> None:
    store, digest, data = open_store(directory_settings), "sha256:" + "e" * 64, b"delta"
    manifest = Manifest(
        methods=(LoraConfig(),),
        task="text-classification",
        base_model="minilm",
        base_fingerprint="f",
        architecture="encoder",
        precision="fp32",
        template_digest="t",
        max_length=8,
    )
    delta: Any = SimpleNamespace(digest=digest, manifest=manifest, parameters=2, head_parameters=1)
    result: Any = SimpleNamespace(
        delta=delta,
        outcome="succeeded",
        metrics={},
        resolved={},
        test_draws={},
        validation_draws={},
        trainable_parameters=2,
        base_parameters=9,
    )
    job = world.job(adapter_name="again")
    attempt = world.claim(job.id)
    assert attempt is not None
    stored, published = threading.Event(), threading.Event()

    def publish_again() -> None:
        key = store_delta(store, delta, data)
        stored.set()
        publish_delta(
            world.database,
            store,
            JobKey(job.id, world.tenant_id, attempt),
            job,
            result,
            data=data,
            stored_as=key,
            certificate={},
            environment={},
        )
        published.set()

    trainer = threading.Thread(target=publish_again)

    def meet() -> None:
        if trainer.ident is None:
            trainer.start()
            assert stored.wait(20)
            # it waits for us; one that did not would have ended long before
            assert not published.wait(0.2)

    store.put_bytes(delta_key(digest), data)
    slow = Slow(directory_settings.data_dir / "objects", meet)
    if remover == "sweep":
        grow_old(directory_settings)
        assert delete_orphans(world.database, slow, [delta_key(digest)], older_than_seconds=DAY)
    else:
        assert remove_unneeded(world.database, delta_key(digest), slow.delete)
    trainer.join(20)
    assert world.get(job.id).status is JobStatus.SUCCEEDED
    assert store.get_bytes(delta_key(digest)) == data


def test_a_store_that_is_not_of_this_database_is_left_alone(
    world: World, directory_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    store = open_store(directory_settings)
    for number in range(3):
        store.put_bytes(delta_key(f"{number}"), b"x")
    store.put_bytes(dataset_key(world.dataset_id, "train"), b"x")
    grow_old(directory_settings)
    assert len(remove_orphans(world.database, store).keys) == 3
    assert len(list(store.list("deltas"))) == 3
    assert "is this the database of this store" in caplog.text


def test_ages_are_those_of_the_last_write(object_store: ObjectStore) -> None:
    object_store.put_bytes("a/1", b"x")
    assert list(object_store.list_older("a", seconds=-60)) == ["a/1"]
    assert list(object_store.list_older("a", seconds=60)) == []
    assert list(object_store.list_older("none", seconds=-60)) == []
    assert not object_store.delete_older("a/1", seconds=60)
    assert object_store.exists("a/1")
    assert object_store.delete_older("a/1", seconds=-60)
    assert not object_store.delete_older("a/1", seconds=-60)
    assert list(object_store.list("")) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from app.services.multipart import ReceivedFile
from app.services.parts import Parts
from app.services import uploads
from app.schemas.datasets import DatasetRequest
from core.db import Database, open_database
from core.settings import load_settings
from core.storage import open_store

class Dies(Database):
    def write(self):
        os.kill(os.getpid(), signal.SIGKILL)

settings = load_settings()
folder = Path(sys.argv[1])
(folder / "f.jsonl").write_text('{"text": "a", "label": "x"}\\n{"text": "b", "label": "y"}\\n' * 6)
file = ReceivedFile(folder / "f.jsonl", "f.jsonl", 1, "0" * 64)
upload = uploads.Upload(DatasetRequest(), "f", {"all": file})
parts = Parts(settings, Dies(settings.database_url), open_store(settings), None, None, None)
report = uploads.validate(upload, folder=folder / "splits")
uploads.store_ready(parts, tenant_id="t", upload=upload, report=report, folder=folder / "splits")
"""


def test_an_upload_that_is_killed_before_its_row_leaves_nothing_for_ever(
    database: Database, directory_settings: Settings, tmp_path: Path
) -> None:
    world = make_world(database)
    store = open_store(directory_settings)
    for split in ("train", "validation", "test"):
        store.put_bytes(dataset_key(world.dataset_id, split), b"x")
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=ROOT,
        env=child_environment(directory_settings),
        check=False,
    )
    assert result.returncode == -signal.SIGKILL
    left = [key for key in store.list("datasets") if world.dataset_id not in key]
    assert len(left) == 3
    assert remove_orphans(database, store).keys == ()  # it may be under way
    grow_old(directory_settings)
    assert remove_orphans(database, store).keys == tuple(left)
    assert all(world.dataset_id in key for key in store.list(""))

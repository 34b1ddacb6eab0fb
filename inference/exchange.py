"""Adapters in and out of foreign formats, beside the answering of rows.

This process has the base in memory, which an import is checked against and an export is written
with. Work runs in a thread of its own: frozen weights are only read, and a merge loads a model of
its own, so that the owner thread never waits for it.
"""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from core.errors import BadInput, NotFound, ServiceError
from core.settings import Settings
from core.storage import ObjectStore, delta_key, disk_faults_told, make_scratch
from inference.bases import Bases
from inference.owner import Owner
from inference.schemas import DeltaIn, ExportIn, ImportIn, ImportOut, MergeIn
from peft_engine.bases.base import Base
from peft_engine.delta import Delta, load_delta, save_delta
from peft_engine.errors import BaseModelError, DataError, DeltaError, ExchangeError
from peft_engine.exchange.archives import unpack
from peft_engine.exchange.evaluating import evaluate_delta
from peft_engine.exchange.exporting import export_adapter
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.importing import (
    INVALID,
    Imported,
    ImportOptions,
    find_adapter,
    import_adapter,
    is_native,
    read_base_hint,
)
from peft_engine.exchange.merging import merge_deltas
from peft_engine.generation import Generated, Sampling
from peft_engine.parts.batching import Batch
from peft_engine.runtime import pin_threads
from peft_engine.serving import Engine

T = TypeVar("T")

MAX_JUDGED_ROWS = 2000
"""Of a merge: more rows would keep other requests waiting for minutes on a small machine."""

_THREADS = 1
"""Exchanges wait for one another: each may hold a whole model."""


@dataclass(frozen=True)
class ExportedFile:
    """A file that waits to be sent, in a folder of its own.

    Attributes:
        path: The file.
        suffix: How its name should end.
        folder: To be removed when the file is sent.
    """

    path: Path
    suffix: str
    folder: Path

    def remove(self) -> None:
        """Remove the file and its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


class Exchange:
    """Imports and exports; used on the event loop."""

    def __init__(
        self, settings: Settings, *, bases: Bases, owner: Owner, store: ObjectStore
    ) -> None:
        """Wire the parts.

        Args:
            settings: Where scratch files may lie, and how large an upload may be.
            bases: Base models of the process.
            owner: Computes what a merge answers, a batch at a time.
            store: Where uploads and deltas lie.
        """
        self._data_dir = settings.data_dir
        self._max_bytes = settings.max_upload_bytes
        self._bases = bases
        self._owner = owner
        self._store = store
        self._pool = ThreadPoolExecutor(
            _THREADS, thread_name_prefix="exchange", initializer=lambda: pin_threads(1)
        )

    def close(self) -> None:
        """Begin no more exchanges."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def take_in(self, asked: ImportIn) -> ImportOut:
        """Turn an uploaded archive into a stored delta.

        Args:
            asked: Which upload, and what its files do not say.

        Returns:
            What the delta is, and where it lies.
        """
        if asked.base_model is None:
            return await self._run(lambda: self._take_in(asked))
        base = await self._bases.hold(asked.base_model)
        try:
            return await self._run(lambda: self._take_in(asked))
        finally:
            base.release()

    async def merge(self, asked: MergeIn) -> ImportOut:
        """Make one stored delta of several, and judge it on rows when there are some.

        Args:
            asked: Which deltas, how, and where the rows lie.

        Returns:
            What the delta is, and where it lies.
        """
        held = await self._bases.hold(asked.base_model)
        try:
            return await self._run(lambda: self._merge(asked, held.engine))
        finally:
            held.release()

    async def give_out(self, asked: ExportIn) -> ExportedFile:
        """Write a stored delta in a foreign format.

        Args:
            asked: Which delta, which format.

        Returns:
            The file; the caller removes it.
        """
        held = await self._bases.hold(asked.base_model)
        try:
            return await self._run(lambda: self._give_out(asked, held.engine.base))
        finally:
            held.release()

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except ExchangeError as error:
            raise _told(error) from error
        except (DeltaError, BaseModelError, DataError) as error:
            raise BadInput(error.message, code=error.code, param=error.param) from error

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        with disk_faults_told():
            folder = make_scratch(self._data_dir, prefix="exchange-")
        try:
            yield folder
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _take_in(self, asked: ImportIn) -> ImportOut:
        with self._folder() as folder, disk_faults_told():
            archive, files = folder / "upload", folder / "files"
            self._store.fetch_to(asked.key, archive)
            files.mkdir()
            found = Findings()
            unpack(archive, files, max_bytes=self._max_bytes, found=found)
            found.settle(INVALID, "this archive cannot be imported")
            base, brought = self._import(find_adapter(files), asked)
            shutil.rmtree(folder, ignore_errors=True)
        origin = {"format": brought.format, **brought.origin, "notes": list(brought.notes)}
        return self._keep(brought.delta, origin, base=base)

    def _keep(self, delta: Delta, origin: dict[str, Any], *, base: Base) -> ImportOut:
        data, key = save_delta(delta), delta_key(delta.digest)
        self._store.put_new(key, data)
        manifest = delta.manifest
        return ImportOut(
            digest=delta.digest,
            key=key,
            bytes=len(data),
            parameters=delta.parameters - delta.head_parameters,
            # Not the manifest's: where a file comes from, the same base may have another name.
            base_model=base.name,
            base_fingerprint=manifest.base_fingerprint,
            template_digest=manifest.template_digest,
            task=manifest.task,
            methods=[method.model_dump(mode="json") for method in manifest.methods],
            labels=None if manifest.labels is None else list(manifest.labels),
            origin=origin,
        )

    def _load(self, named: DeltaIn) -> Delta:
        """The stored delta of an adapter.

        Raises:
            NotFound: Another one lies there.
        """
        delta = load_delta(self._store.get_bytes(named.key))
        if delta.digest != named.digest:
            raise NotFound(
                f"the stored delta of adapter {named.adapter_id} is another one",
                code="object_not_found",
            )
        return delta

    def _merge(self, asked: MergeIn, engine: Engine) -> ImportOut:
        deltas = [self._load(named) for named in asked.deltas]
        merged = merge_deltas(engine.base, deltas, asked.weights, asked.spec)
        origin: dict[str, Any] = {"format": "merge", "spec": asked.spec.model_dump(mode="json")}
        if asked.rows_key is not None:
            lines = self._store.get_bytes(asked.rows_key).splitlines()
            records = [json.loads(line) for line in lines[:MAX_JUDGED_ROWS]]
            resident = merged.to(engine.base.device)
            forward = _OwnerForward(engine, self._owner, resident)
            try:
                origin["evaluation"] = evaluate_delta(forward, resident, records)
            finally:
                self._owner.call(lambda: engine.forget(merged.digest)).result()
        return self._keep(merged, origin, base=engine.base)

    def _import(self, folder: Path, asked: ImportIn) -> tuple[Base, Imported]:
        """Import on the base that was named, else on the one that the files state or fit."""
        options = ImportOptions(
            labels=None if asked.labels is None else tuple(asked.labels),
            multi_label=asked.multi_label,
            max_length=asked.max_length,
        )
        if asked.base_model is not None:
            base = self._bases.base(asked.base_model)
            return base, import_adapter(base, folder, options)
        stated, ready = read_base_hint(folder), [engine.base for engine in self._bases.engines()]
        if not is_native(folder):
            # Foreign files know no derived bases, which come and go as they are asked.
            ready = [base for base in ready if base.info.parent_fingerprint is None]
        named = [base for base in ready if stated == base.name]
        named = named or [base for base in ready if stated == base.reference]
        if len(named) == 1:
            return named[0], import_adapter(named[0], folder, options)
        return _import_where_it_fits(ready, folder, options, stated)

    def _give_out(self, asked: ExportIn, base: Base) -> ExportedFile:
        delta = self._load(asked.delta)
        with self._folder() as folder, disk_faults_told():
            exported = export_adapter(base, delta, asked.format, folder, head=asked.head)
        return ExportedFile(exported.path, exported.suffix, folder)


class _OwnerForward:
    """The served base with a delta in force, a batch at a time between those of requests."""

    def __init__(self, engine: Engine, owner: Owner, delta: Delta) -> None:
        self.base = engine.base
        self._engine = engine
        self._owner = owner
        self._delta = delta

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states."""
        return self._owner.call(lambda: self._engine.hidden(batch, self._delta)).result()

    def generate(
        self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]
    ) -> list[Generated]:
        """Never asked for.

        Raises:
            AssertionError: Always.
        """
        raise AssertionError(f"{len(prompts)} texts with {len(samplings)} ways to choose")


def _import_where_it_fits(
    bases: Sequence[Base], folder: Path, options: ImportOptions, stated: str | None
) -> tuple[Base, Imported]:
    """Import on the only base that can hold an adapter.

    Raises:
        BadInput: Several can, or none of several (code ``base_model_required``).
    """
    brought: list[tuple[Base, Imported]] = []
    refused: list[ExchangeError] = []
    for base in bases:
        try:
            brought.append((base, import_adapter(base, folder, options)))
        except ExchangeError as error:
            refused.append(error)
    if len(brought) == 1:
        return brought[0]
    if len(refused) == 1 and not brought:
        first = refused[0]
        raise first
    names = ", ".join(base.name for base, _ in brought) or "none of them"
    told = f"the files state {stated!r}" if stated else "the files state no base"
    raise BadInput(
        f"{told}, which is no name of a base model here; of the loaded ones it fits {names}: "
        "name it",
        code="base_model_required",
        param="base_model",
    )


def _told(error: ExchangeError) -> ServiceError:
    details = [asdict(problem) for problem in error.problems]
    return BadInput(error.message, code=error.code, details=details)

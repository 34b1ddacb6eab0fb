"""Adapters in and out of foreign formats, beside the answering of rows.

This process has the base in memory, which an import is checked against and an export is written
with. Work runs in a thread of its own: frozen weights are only read, and a merge loads a model of
its own, so that the owner thread never waits for it.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from core.errors import BadInput, NotFound, ServiceError
from core.settings import Settings
from core.storage import ObjectStore, delta_key, disk_faults_told
from inference.bases import Bases
from inference.schemas import ExportIn, ImportIn, ImportOut
from peft_engine.bases.base import Base
from peft_engine.delta import load_delta, save_delta
from peft_engine.errors import BaseModelError, DeltaError, ExchangeError
from peft_engine.exchange.archives import unpack
from peft_engine.exchange.exporting import export_adapter
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.importing import (
    INVALID,
    Imported,
    ImportOptions,
    find_adapter,
    import_adapter,
    read_base_hint,
)
from peft_engine.runtime import pin_threads

T = TypeVar("T")

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

    def __init__(self, settings: Settings, *, bases: Bases, store: ObjectStore) -> None:
        """Wire the parts.

        Args:
            settings: Where scratch files may lie, and how large an upload may be.
            bases: Base models of the process.
            store: Where uploads and deltas lie.
        """
        self._scratch = settings.data_dir / "scratch"
        self._max_bytes = settings.max_upload_bytes
        self._bases = bases
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
        except (DeltaError, BaseModelError) as error:
            raise BadInput(error.message, code=error.code, param=error.param) from error

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        with disk_faults_told():
            self._scratch.mkdir(parents=True, exist_ok=True)
            folder = Path(tempfile.mkdtemp(prefix="exchange-", dir=self._scratch))
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
            brought = self._import(find_adapter(files), asked)
            shutil.rmtree(folder, ignore_errors=True)
        delta = brought.delta
        data, key = save_delta(delta), delta_key(delta.digest)
        self._store.put_new(key, data)
        manifest = delta.manifest
        return ImportOut(
            digest=delta.digest,
            key=key,
            bytes=len(data),
            parameters=delta.parameters - delta.head_parameters,
            base_model=manifest.base_model,
            base_fingerprint=manifest.base_fingerprint,
            template_digest=manifest.template_digest,
            task=manifest.task,
            methods=[method.model_dump(mode="json") for method in manifest.methods],
            labels=None if manifest.labels is None else list(manifest.labels),
            origin={"format": brought.format, **brought.origin, "notes": list(brought.notes)},
        )

    def _import(self, folder: Path, asked: ImportIn) -> Imported:
        """Import on the base that was named, else on the one that the files state or fit."""
        options = ImportOptions(
            labels=None if asked.labels is None else tuple(asked.labels),
            multi_label=asked.multi_label,
            max_length=asked.max_length,
        )
        if asked.base_model is not None:
            return import_adapter(self._bases.base(asked.base_model), folder, options)
        stated, ready = read_base_hint(folder), [engine.base for engine in self._bases.engines()]
        named = [base for base in ready if stated in (base.name, base.reference)]
        if len(named) == 1:
            return import_adapter(named[0], folder, options)
        return _import_where_it_fits(ready, folder, options, stated)

    def _give_out(self, asked: ExportIn, base: Base) -> ExportedFile:
        delta = load_delta(self._store.get_bytes(asked.delta.key))
        if delta.digest != asked.delta.digest:
            raise NotFound(
                f"the stored delta of adapter {asked.delta.adapter_id} is another one",
                code="object_not_found",
            )
        with self._folder() as folder, disk_faults_told():
            exported = export_adapter(base, delta, asked.format, folder)
        return ExportedFile(exported.path, exported.suffix, folder)


def _import_where_it_fits(
    bases: Sequence[Base], folder: Path, options: ImportOptions, stated: str | None
) -> Imported:
    """Import on the only base that can hold an adapter.

    Raises:
        BadInput: Several can, or none of several (code ``base_model_required``).
    """
    brought: list[Imported] = []
    refused: list[ExchangeError] = []
    for base in bases:
        try:
            brought.append(import_adapter(base, folder, options))
        except ExchangeError as error:
            refused.append(error)
    if len(brought) == 1:
        return brought[0]
    if len(refused) == 1 and not brought:
        first = refused[0]
        raise first
    names = ", ".join(one.delta.manifest.base_model for one in brought) or "none of them"
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

"""Adapters in and out of foreign formats, and several made into one.

Tensors are read and written by an inference process, which has the base in memory; here bytes are
received, stored, and given away. Callable without HTTP.
"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.schemas.exchange import ImportRequest, MergeRequest
from app.services.form_fields import read_fields, require_file
from app.services.multipart import Form, ReceivedFile
from app.services.parts import Parts
from app.services.uploads import name_from
from core.db import Session, adapters, datasets
from core.db.idempotency import create_once, digest_request, find_by_key, find_recent
from core.db.models import Adapter, Dataset
from core.errors import BadInput, Conflict, NotFound, Unavailable
from core.ids import new_id
from core.states import DatasetStatus
from core.storage import file_pieces, remove_objects, upload_key
from peft_engine.configs.base import parent_name

FILE_FIELDS = frozenset({"file"})

_JSON_FIELDS = frozenset({"labels", "multi_label", "max_length", "metadata"})


@dataclass(frozen=True)
class Brought:
    """A whole upload on local disk.

    Attributes:
        request: What was asked of it.
        file: The archive.
        idempotency_key: The caller's key, if any.
    """

    request: ImportRequest
    file: ReceivedFile
    idempotency_key: str | None = None

    @property
    def name(self) -> str:
        """Name of the adapter."""
        return self.request.name or name_from(Path(self.file.filename).stem)

    @property
    def digest(self) -> str:
        """Same bytes, same wishes: same digest."""
        return digest_request(
            {"file": self.file.sha256, "name": self.name, "request": self.request.model_dump()}
        )


def read_form(form: Form, *, idempotency_key: str | None) -> Brought:
    """Read what a form asks for; what it says wrongly or not at all is told as ``BadInput``.

    Args:
        form: The whole form.
        idempotency_key: The caller's key, if any.

    Returns:
        The upload.
    """
    request = read_fields(ImportRequest, form, json_fields=_JSON_FIELDS)
    return Brought(request, require_file(form, "file", what="archive"), idempotency_key)


async def take_in(parts: Parts, *, tenant_id: str, brought: Brought) -> tuple[Adapter, bool]:
    """Make an adapter out of an upload.

    Args:
        parts: Where to store and whom to ask.
        tenant_id: The owner.
        brought: What was sent.

    Returns:
        The adapter, and whether it is new: the same request again gives the same adapter.

    Raises:
        NotFound: There is no such base model. What an inference process refuses goes through.
    """
    request = brought.request
    named = None if request.base_model is None else parent_name(request.base_model)
    if named is not None and named not in parts.settings.base_models:
        known = ", ".join(sorted(parts.settings.base_models))
        raise NotFound(
            f"there is no base model {request.base_model!r}; there are {known}",
            code="base_not_found",
            param="base_model",
        )
    wish = _Wish(brought.idempotency_key, brought.digest)
    known_row = await asyncio.to_thread(_find_known, parts, tenant_id, wish)
    if known_row is not None:
        return known_row, False
    key = upload_key(new_id("imp"), "adapter")
    await asyncio.to_thread(parts.store.put_stream, key, file_pieces(brought.file.path))
    try:
        asked = request.model_dump(exclude={"name", "metadata"})
        found = await parts.inference.take_in({"key": key, **asked})
    finally:
        await asyncio.to_thread(remove_objects, parts.store, [key])
    origin = {**found["origin"], "file_sha256": brought.file.sha256}
    values = {**found, "name": brought.name, "metadata_": dict(request.metadata), "origin": origin}
    return await asyncio.to_thread(_publish, parts, tenant_id, wish, values)


@dataclass(frozen=True)
class _Wish:
    """What makes two requests the same."""

    idempotency_key: str | None
    digest: str


def _find_known(parts: Parts, tenant_id: str, wish: _Wish) -> Adapter | None:
    with parts.database.read() as session:
        if wish.idempotency_key is not None:
            return find_by_key(
                session,
                Adapter,
                tenant_id=tenant_id,
                key=wish.idempotency_key,
                request_digest=wish.digest,
            )
        return find_recent(
            session,
            Adapter,
            Adapter.deleted_at.is_(None),
            tenant_id=tenant_id,
            request_digest=wish.digest,
        )


def _publish(
    parts: Parts, tenant_id: str, wish: _Wish, values: dict[str, Any]
) -> tuple[Adapter, bool]:
    asked: dict[str, Any] = {
        "idempotency_key": wish.idempotency_key,
        "request_digest": wish.digest,
    }

    def make(session: Session) -> Adapter:
        row = adapters.publish(session, tenant_id=tenant_id, **asked, **values)
        if not parts.store.exists(row.key):
            raise Unavailable(
                "an equal adapter was deleted meanwhile and its weights with it; send this again",
                code="storage_unavailable",
                retry_after_seconds=1,
            )
        return row

    with parts.database.write() as session:
        return create_once(
            session,
            Adapter,
            lambda: make(session),
            Adapter.deleted_at.is_(None),
            tenant_id=tenant_id,
            **asked,
        )


async def merge(
    parts: Parts, *, tenant_id: str, asked: MergeRequest, idempotency_key: str | None
) -> tuple[Adapter, bool]:
    """Make an adapter out of several.

    Args:
        parts: Whom to ask.
        tenant_id: Their owner.
        asked: Which, and how.
        idempotency_key: The caller's key, if any.

    Returns:
        The adapter, and whether it is new.

    Raises:
        BadInput: They belong to different base models. What an inference process refuses goes
            through.
    """
    rows, dataset = await asyncio.to_thread(_find_parts, parts, tenant_id, asked)
    digests = [row.digest for row in rows]
    wish = _Wish(idempotency_key, digest_request([digests, asked.model_dump(mode="json")]))
    known = await asyncio.to_thread(_find_known, parts, tenant_id, wish)
    if known is not None:
        return known, False
    bases = sorted({row.base_model for row in rows})
    if len(bases) > 1:
        raise BadInput(
            f"the adapters belong to different base models: {', '.join(bases)}",
            code="base_mismatch",
            param="adapters",
        )
    body = {
        "deltas": [{"adapter_id": r.id, "digest": r.digest, "key": r.key} for r in rows],
        "weights": [part.weight for part in asked.adapters],
        "base_model": bases[0],
        "spec": asked.merge.model_dump(mode="json"),
        "rows_key": None if dataset is None else str(dataset.splits["test"]["key"]),
    }
    found = await parts.inference.merge(body)
    sources = [
        {"adapter_id": row.id, "adapter": f"{row.name}@{row.version}", "weight": part.weight}
        for row, part in zip(rows, asked.adapters, strict=True)
    ]
    origin = {**found["origin"], "adapters": sources}
    if dataset is not None:
        origin["evaluation"] = {**origin["evaluation"], "dataset_id": dataset.id, "split": "test"}
    values = {**found, "name": asked.name, "metadata_": dict(asked.metadata), "origin": origin}
    return await asyncio.to_thread(_publish, parts, tenant_id, wish, values)


def _find_parts(
    parts: Parts, tenant_id: str, asked: MergeRequest
) -> tuple[list[Adapter], Dataset | None]:
    """The adapters of a merge, and the data set that it is judged on.

    Raises:
        Conflict: The data set cannot be used yet.
        BadInput: It has no test split.
    """
    with parts.database.read() as session:
        rows = [adapters.resolve(session, tenant_id, part.adapter_id) for part in asked.adapters]
        if asked.dataset_id is None:
            return rows, None
        dataset = datasets.get(session, tenant_id, asked.dataset_id)
    if dataset.status != DatasetStatus.READY:
        raise Conflict(f"data set {dataset.id} is {dataset.status}", code="dataset_not_ready")
    if "test" not in (dataset.splits or {}):
        raise BadInput(f"data set {dataset.id} has no test split", param="dataset_id")
    return rows, dataset


@dataclass(frozen=True)
class Sending:
    """An adapter on its way out.

    Attributes:
        filename: What to call it.
        digest: Of the delta.
        pieces: The content of the file.
    """

    filename: str
    digest: str
    pieces: AsyncGenerator[bytes]


async def give_out(parts: Parts, row: Adapter, form: str, head: str) -> Sending:
    """Give an adapter out in a foreign format.

    Args:
        parts: Whom to ask.
        row: The adapter.
        form: The format.
        head: Whether its head goes along.

    Returns:
        The file. What an inference process refuses goes through before the first byte.
    """
    delta = {"adapter_id": row.id, "digest": row.digest, "key": row.key}
    body = {"delta": delta, "base_model": row.base_model, "format": form, "head": head}
    suffix, pieces = await parts.inference.give_out(body)
    ending = suffix if suffix in (".zip", ".gguf") else ".bin"
    return Sending(f"{row.name}-{row.version}-{form}{ending}", row.digest, pieces)

"""Data sets that are there: show, list, read rows, delete. Taking new ones in is ``uploads``."""

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

from app.schemas.datasets import DatasetAnswer, RowPage
from app.services.parts import Unit
from app.services.reports import as_told, leave_problems_out
from core.db import Session, datasets
from core.db.models import Dataset
from core.errors import Conflict, NotFound
from core.states import DatasetStatus
from core.storage import ObjectStore, nearest_mark, remove_objects

PIECE_BYTES = 1 << 18


def as_answer(row: Dataset, *, in_list: bool = False) -> DatasetAnswer:
    """Shape a row for the user.

    Args:
        row: The data set.
        in_list: Whether it is one of a list; see ``leave_problems_out``.

    Returns:
        What is shown of it.
    """
    return DatasetAnswer(
        id=row.id,
        name=row.name,
        task=row.task,
        status=row.status,
        reason=row.reason,
        format=row.format,
        filename=row.filename,
        bytes=row.bytes,
        rows=row.rows,
        sha256=row.sha256,
        splits={split: found["rows"] for split, found in row.splits.items()} or None,
        report=leave_problems_out(as_told(row.report)) if in_list else as_told(row.report),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def read_rows(
    session: Session,
    store: ObjectStore,
    *,
    tenant_id: str,
    dataset_id: str,
    split: str,
    after: int,
    limit: int,
) -> RowPage:
    """Read some rows of a split.

    Args:
        session: To read with.
        store: Where the rows are.
        tenant_id: Who asks.
        dataset_id: Of which data set.
        split: ``train``, ``validation`` or ``test``.
        after: How many rows to pass over.
        limit: How many to give.

    Returns:
        The rows in the order of the split.

    Raises:
        NotFound: The data set has no such split.
        Conflict: It is not ready.
    """
    row = datasets.get(session, tenant_id, dataset_id)
    if row.status != DatasetStatus.READY:
        raise Conflict(
            f"the data set is {row.status}; it has no rows to show", code="dataset_not_ready"
        )
    found = row.splits.get(split)
    if found is None:
        has = ", ".join(row.splits)
        raise NotFound(f"the data set has no split {split!r}; it has {has}", param="split")
    rows: list[dict[str, Any]] = []
    if after < found["rows"]:
        marked, byte = nearest_mark(found, after)
        pieces = store.stream(found["key"], PIECE_BYTES, from_byte=byte)
        lines = _lines_after(pieces, after - marked)
        rows = [json.loads(line) for line in islice(lines, limit)]
    end = after + len(rows)
    has_more = end < found["rows"] and len(rows) == limit
    return RowPage(split=split, data=rows, has_more=has_more, next_after=end if has_more else None)


def delete(unit: Unit, store: ObjectStore, *, tenant_id: str, dataset_id: str) -> None:
    """Delete a data set; its objects go after the commit.

    Args:
        unit: The transaction.
        store: Where the rows are.
        tenant_id: Who asks.
        dataset_id: Which one.
    """
    row = datasets.mark_deleted(unit.session, tenant_id, dataset_id)
    keys = [found["key"] for found in row.splits.values()]
    keys += [found["key"] for found in row.request.get("files", {}).values()]
    unit.then(lambda: remove_objects(store, keys))


def _lines_after(pieces: Iterator[bytes], passed_over: int) -> Iterator[bytes]:
    rest: list[bytes] = []
    for piece in pieces:
        # counted and not cut: several times as fast, and a late page passes over millions
        ends = piece.count(b"\n") if passed_over else 0
        if ends < passed_over:
            passed_over -= ends
            continue
        first, *others = piece.split(b"\n", passed_over)[-1].split(b"\n")
        passed_over = 0
        rest.append(first)
        for other in others:
            yield b"".join(rest)
            rest = [other]
    if any(rest):
        yield b"".join(rest)

"""From the parts of a batch to its files."""

from collections.abc import Iterable
from itertools import chain
from typing import get_args

from app.batches.parts import Kind
from core.db import Database, batches, files
from core.db.batches import Claim
from core.db.models import File
from core.storage import ObjectStore, file_key


def make_files(
    database: Database, store: ObjectStore, claim: Claim, unasked: Iterable[bytes]
) -> dict[str, File]:
    """Join the parts of each kind; their rows are made by whoever ends the batch.

    Args:
        database: Where it stands which parts there are.
        store: Where they lie, and the files then too.
        claim: Of the batch.
        unasked: Lines of requests that were not asked.

    Returns:
        By kind; one that would be empty is left out.
    """
    with database.read() as session:
        kept = batches.list_parts(session, claim.batch_id)
    made = {}
    for kind in get_args(Kind):
        parts = chain.from_iterable(store.stream(key) for key in kept.get(kind, ()))
        pieces = chain(parts, unasked) if kind == "error" else parts
        first = next(pieces, None)
        if first is not None:
            file_id = files.new_file_id()
            stored = store.put_stream(file_key(file_id), chain([first], pieces))
            made[kind] = File(
                id=file_id,
                tenant_id=claim.tenant_id,
                purpose=files.BATCH_OUTPUT,
                filename=f"{claim.batch_id}_{kind}.jsonl",
                bytes=stored.bytes,
                sha256=stored.sha256,
                key=stored.key,
            )
    return made

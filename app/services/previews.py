"""Rows of a data set as training on a base would read them."""

from collections.abc import Sequence

from starlette.concurrency import run_in_threadpool

from app.schemas.datasets import PreviewAnswer, PreviewPart, PreviewRequest, PreviewRow, RowPage
from app.services import datasets as service
from app.services.parts import Parts
from core.db import datasets
from core.errors import Conflict, NotFound
from peft_engine.configs.base import split_base_name


async def preview(
    parts: Parts, *, tenant_id: str, dataset_id: str, asked: PreviewRequest
) -> PreviewAnswer:
    """Have an inference process, which holds the tokenizer, read some rows.

    Args:
        parts: Where the rows are, and whom to ask.
        tenant_id: Who asks.
        dataset_id: Of which data set.
        asked: Which rows, on which base.

    Returns:
        Each row with its tokens.

    Raises:
        NotFound: There is no such base model. What an inference process refuses goes through.
    """  # noqa: DOC502  raised below
    _check_base(asked.base_model, sorted(parts.settings.base_models))
    task, page = await run_in_threadpool(_read, parts, tenant_id, dataset_id, asked)
    body = {"base_model": asked.base_model, "task": task, "max_length": asked.max_length}
    found = await parts.inference.preview({**body, "records": page.data})
    rows = [
        PreviewRow(record=record, parts=[PreviewPart.model_validate(part) for part in read])
        for record, read in zip(page.data, found["records"], strict=True)
    ]
    return PreviewAnswer(
        task=task,
        split=page.split,
        base_model=found["base_model"],
        base_fingerprint=found["base_fingerprint"],
        template_digest=found["template_digest"],
        max_length=found["max_length"],
        data=rows,
        has_more=page.has_more,
        next_after=page.next_after,
    )


def _check_base(name: str, known: Sequence[str]) -> None:
    """Refuse what a job would, although what is done to weights changes no token.

    Raises:
        NotFound: There is no such base model, or what follows its ``@`` means nothing.
    """
    why = f"there are {', '.join(known)}"
    try:
        if split_base_name(name)[0] in known:
            return
    except ValueError as error:
        why = f"{error}"
    raise NotFound(
        f"there is no base model {name!r}; {why}", code="base_not_found", param="base_model"
    )


def _read(
    parts: Parts, tenant_id: str, dataset_id: str, asked: PreviewRequest
) -> tuple[str, RowPage]:
    """The task of a data set, and some of its rows.

    Raises:
        Conflict: It is not ready.
        NotFound: There are no rows behind ``after``.
    """
    with parts.database.read() as session:
        task = datasets.get(session, tenant_id, dataset_id).task
        page = service.read_rows(
            session,
            parts.store,
            tenant_id=tenant_id,
            dataset_id=dataset_id,
            split=asked.split,
            after=asked.after,
            limit=asked.limit,
        )
    if task is None:
        raise Conflict(f"data set {dataset_id} has no task yet", code="dataset_not_ready")
    if not page.data:
        raise NotFound(f"the split {asked.split} has no rows after {asked.after}", param="after")
    return task, page

"""Rows of a data set as training would read them: this process has the tokenizers in memory."""

import asyncio
from dataclasses import asdict

from core.errors import BadInput
from inference.bases import Bases
from inference.schemas import PreviewIn, PreviewOut
from peft_engine.configs.base import parent_name
from peft_engine.errors import EngineError
from peft_engine.training.preview import preview


async def preview_rows(bases: Bases, asked: PreviewIn) -> PreviewOut:
    """Read records as a job would.

    Args:
        bases: Base models of the process.
        asked: Which base, which task, and the records.

    Returns:
        Their tokens.

    Raises:
        BadInput: A job could not read them. ``NotFound``, ``Conflict`` and ``Unavailable`` go
            through for the base.
    """
    # what is done to weights changes no token
    held = await bases.hold(parent_name(asked.base_model))
    try:
        base = held.engine.base
        found = await asyncio.to_thread(
            preview, base, asked.task, asked.records, max_length=asked.max_length
        )
    except EngineError as error:
        param = (error.param or "").removeprefix("training.") or None
        raise BadInput(error.message, code=error.code, param=param) from error
    finally:
        held.release()
    return PreviewOut(
        base_model=base.name,
        base_fingerprint=base.fingerprint,
        template_digest=base.template_digest,
        **asdict(found),
    )

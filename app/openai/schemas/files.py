"""``/v1/files``."""

from typing import Any, Literal

from pydantic import Field

from app.schemas.shared import Sent

FINE_TUNE = "fine-tune"
"""Rows to train on: a data set."""

BATCH = "batch"
"""Requests of a batch."""

PURPOSES = (FINE_TUNE, BATCH)
"""What a file can be sent for; `batch_output` is what a batch makes."""


class FileObject(Sent):
    """A data set, as a file; or requests of a batch, or their answers."""

    id: str = Field(
        description="`ds_…`: a data set, which `/datasets` and `/jobs` know by the same id; "
        "`file_…`: requests or answers of a batch.",
        examples=["ds_06f1k2m3n4p5q6r7s8t9v0w1x2"],
    )
    object: Literal["file"] = "file"
    bytes: int = Field(description="As they were uploaded.")
    created_at: int = Field(description="Unix seconds.")
    filename: str
    purpose: Literal["fine-tune", "batch", "batch_output"]
    status: Literal["uploaded", "processed", "error"] = Field(
        description="`uploaded` while its rows are checked. Requests of a batch are checked when "
        "the batch is made: their file is `processed` at once."
    )
    status_details: str | None = Field(
        None, description="Of `error`: the first problem with its line, and how many there are."
    )
    expires_at: None = Field(None, description="Files stay until they are deleted.")
    x_validation: dict[str, Any] | None = Field(
        None,
        description="What validation found: task, rows by split, and **every** problem with line "
        "and fix (the `report` of `GET /datasets/{id}`). Lists leave it out.",
    )

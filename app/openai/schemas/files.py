"""``/v1/files``."""

from typing import Any, Literal

from pydantic import Field

from app.schemas.shared import Sent

PURPOSE = "fine-tune"
"""The one purpose of a file here."""


class FileObject(Sent):
    """A data set, as a file."""

    id: str = Field(
        description="The data set's own id, which `/datasets` and `/jobs` know too.",
        examples=["ds_06f1k2m3n4p5q6r7s8t9v0w1x2"],
    )
    object: Literal["file"] = "file"
    bytes: int = Field(description="As they were uploaded.")
    created_at: int = Field(description="Unix seconds.")
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    status: Literal["uploaded", "processed", "error"] = Field(
        description="`uploaded` while its rows are checked."
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

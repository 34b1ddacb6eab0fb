"""``/v1/uploads``."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.openai.schemas.files import FileObject
from app.openai.schemas.shared import NotOffered
from app.schemas.shared import Asked, Sent, Text

MAX_PART_BYTES = 64 * 1024**2
"""What OpenAI takes, and the official client sends."""

PartId = Annotated[Text, Field(min_length=1, max_length=64)]


class UploadRequest(Asked):
    """A file that will come in parts."""

    bytes: int = Field(
        ge=1, description="Of the whole file; at most `max_upload_bytes` of the service."
    )
    filename: Text = Field(min_length=1, max_length=255, examples=["menu.jsonl"])
    mime_type: Text = Field(
        min_length=1,
        max_length=255,
        description="Not looked at: the name and the bytes themselves say what the file is.",
        examples=["application/jsonl"],
    )
    purpose: Text = Field(min_length=1, max_length=64, examples=["fine-tune"])
    expires_after: Annotated[Any, NotOffered("a file stays until it is deleted")] = None


class UploadCompletion(Asked):
    """Which parts make the file."""

    part_ids: tuple[PartId, ...] = Field(
        min_length=1,
        max_length=1000,
        description="In the order of the file. Parts that are not named are dropped.",
        examples=[["part_06f1k2m3n4p5q6r7s8t9v0w1x2"]],
    )
    md5: str | None = Field(
        None, pattern="^[0-9a-fA-F]{32}$", description="Of the whole file, in hex; it is checked."
    )


class UploadObject(Sent):
    """A file that comes in parts."""

    id: str = Field(examples=["upload_06f1k2m3n4p5q6r7s8t9v0w1x2"])
    object: Literal["upload"] = "upload"
    bytes: int = Field(description="As announced.")
    created_at: int = Field(description="Unix seconds.")
    expires_at: int = Field(description="An hour later: then it must be completed.")
    filename: str
    purpose: str
    status: Literal["pending", "completed", "cancelled", "expired"]
    file: FileObject | None = Field(
        None, description="Of a completed one; null again once the file is deleted."
    )


class UploadPartObject(Sent):
    """Some bytes of the file."""

    id: str = Field(examples=["part_06f1k2m3n4p5q6r7s8t9v0w1x2"])
    object: Literal["upload.part"] = "upload.part"
    created_at: int = Field(description="Unix seconds.")
    upload_id: str

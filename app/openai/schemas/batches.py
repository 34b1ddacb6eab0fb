"""``/v1/batches``, and a line of their files."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.openai.schemas.fine_tuning import FileId, MetadataKey, MetadataValue
from app.openai.schemas.shared import NotOffered
from app.schemas.shared import Asked, Sent, Text
from core.states import BatchStatus

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/predict"]
"""Where the requests of a batch can go."""

WINDOW_SECONDS = 24 * 3600.0
"""Of the one completion window."""

MAX_CUSTOM_ID_CHARS = 512


class BatchRequest(Asked):
    """What shall be asked."""

    input_file_id: FileId = Field(description="A file that was sent for the purpose `batch`.")
    endpoint: Endpoint = Field(description="Where every request of the file goes.")
    completion_window: Literal["24h"] = Field(
        description="What was not answered by then is not asked any more."
    )
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16)
    output_expires_after: Annotated[Any, NotOffered("files stay until they are deleted")] = None


class RequestLine(Asked):
    """A line of the file that is sent."""

    custom_id: Text = Field(
        min_length=1,
        max_length=MAX_CUSTOM_ID_CHARS,
        description="Your own name of the request, once in a file; its answer has it too.",
    )
    method: Literal["POST"]
    url: Text = Field(description="The batch's `endpoint`.")
    body: dict[str, Any] = Field(description="What the endpoint takes, but `stream`.")


class BatchError(Sent):
    """Something that is wrong with the file."""

    code: str
    line: int | None = Field(None, description="From 1; null for the file as a whole.")
    message: str
    param: str | None = None


class BatchErrors(Sent):
    """Why a batch failed."""

    object: Literal["list"] = "list"
    data: list[BatchError] = Field(description="The first 1000.")
    x_total: int = Field(description="How many there are.")


class BatchCounts(Sent):
    """Requests of a batch; those in neither of the last two were not asked, or not yet."""

    total: int = Field(description="0 until the file is checked.")
    completed: int = Field(description="Answered; they stand in the output file.")
    failed: int = Field(description="Refused; they stand in the error file.")


class BatchObject(Sent):
    """A batch. Times are Unix seconds, null for what has not happened."""

    id: str = Field(examples=["batch_06f1k2m3n4p5q6r7s8t9v0w1x2"])
    object: Literal["batch"] = "batch"
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"] = "24h"
    status: BatchStatus
    output_file_id: str | None = Field(
        description="Answers in the order of the requests; null until the batch has ended, and "
        "where no request was answered."
    )
    error_file_id: str | None = Field(
        description="Refusals, and requests that were not asked; null where there are none."
    )
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: BatchCounts
    metadata: dict[str, str] | None

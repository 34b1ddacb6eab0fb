"""Bodies and answers about data sets. The report is what ``peft_engine.records`` wrote."""

from typing import Annotated, Any, Literal

from pydantic import Field

from app.schemas.shared import Asked, Moment, Name, Sent, Text
from core.states import DatasetStatus
from peft_engine.configs.model import TaskName
from peft_engine.configs.training import LengthTokens

Format = Literal["jsonl", "json", "csv", "tsv", "parquet"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Record = dict[str, Any]


class SplitRequest(Asked):
    """How to cut splits that have no file of their own."""

    fractions: tuple[Fraction, Fraction, Fraction] = Field(
        (0.8, 0.1, 0.1), description="Train, validation, test; they add up to 1."
    )
    seed: int = Field(0, ge=0, le=2**31 - 1)
    column: Text | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="Column whose value names the split of a row.",
    )


class DatasetRequest(Asked):
    """What is asked of an upload, besides its bytes."""

    name: Name | None = Field(None, description="null: taken from the file name.")
    task: TaskName | None = Field(None, description="null: recognised from the first rows.")
    format: Format | None = Field(
        None, description="null: recognised from the content; gzip is always recognised."
    )
    mapping: dict[Text, Text] | None = Field(
        None,
        max_length=50,
        description="Our field: your column.",
        examples=[{"text": "sentence", "label": "target"}],
    )
    split: SplitRequest = SplitRequest()


class DatasetCreate(DatasetRequest):
    """A small data set in the body itself."""

    records: list[Record] = Field(
        min_length=1,
        description="Rows; what has no records of its own below is cut out of them.",
        examples=[[{"text": "Where is my card?", "label": "card_arrival"}]],
    )
    validation_records: list[Record] | None = Field(
        None, min_length=1, description="As `validation_file` of an upload."
    )
    test_records: list[Record] | None = Field(
        None, min_length=1, description="As `test_file` of an upload."
    )


class DatasetAnswer(Sent):
    """A data set as it stands now."""

    id: str = Field(examples=["ds_06f1k2m3n4p5q6r7s8t9v0w1x2"])
    object: Literal["dataset"] = "dataset"
    name: str
    task: str | None = None
    status: DatasetStatus = Field(description="`validating`, then `ready` or `invalid`.")
    reason: str | None = Field(
        None, description="Why it is `validating` for long: what the service lacks, such as disk."
    )
    format: str | None = None
    filename: str | None = None
    bytes: int | None = None
    rows: int | None = None
    sha256: str | None = Field(None, description="Digest of the bytes as uploaded.")
    splits: dict[str, int] | None = Field(
        None,
        description="Rows by split.",
        examples=[{"train": 800, "validation": 100, "test": 100}],
    )
    report: dict[str, Any] | None = Field(
        None,
        description="What validation found: problems and warnings with line and fix, label "
        "counts, lengths, duplicates, leakage.",
    )
    created_at: Moment
    updated_at: Moment


class PreviewRequest(Asked):
    """Which rows to read as a job would read them."""

    base_model: Text = Field(min_length=1, max_length=128, examples=["minilm"])
    split: Literal["train", "validation", "test"] = "train"
    after: int = Field(0, ge=0, le=2**31 - 1, description="`next_after` of the preview before.")
    limit: int = Field(5, ge=1, le=20, description="Rows to read.")
    max_length: Literal["auto"] | LengthTokens = Field(
        "auto", description="As `training.max_length` of a job."
    )


class PreviewTokens(Sent):
    """What the base reads of a row."""

    ids: list[int]
    tokens: list[str] = Field(description="Their texts.")
    learned: list[bool] | None = Field(
        None, description="Whether the loss counts a token; null where a task learns no tokens."
    )


class PreviewPart(Sent):
    """One example that is made of a record."""

    rows: list[PreviewTokens] = Field(description="One, or one for each choice.")
    decoder: PreviewTokens | None = Field(
        None, description="What is written, where the base has two stacks."
    )
    cut_tokens: int = Field(description="Tokens that did not fit into `max_length`.")


class PreviewRow(Sent):
    """A record, and what training would read of it."""

    record: Record
    parts: list[PreviewPart] = Field(
        description="One; several windows of a long context; on a base with two stacks one for "
        "each turn that is learned."
    )


class PreviewAnswer(Sent):
    """Rows as a job on this base would read them."""

    object: Literal["dataset.preview"] = "dataset.preview"
    task: str
    split: str
    base_model: str = Field(description="Of a derived base its parent, whose tokens it reads.")
    base_fingerprint: str
    template_digest: str
    max_length: int = Field(description="Longest row in tokens.")
    data: list[PreviewRow]
    has_more: bool
    next_after: int | None = None


class RowPage(Sent):
    """Some rows of one split, in the order of the split."""

    object: Literal["list"] = "list"
    split: str
    data: list[Record]
    has_more: bool
    next_after: int | None = Field(None, description="Send as `after` for the next page.")

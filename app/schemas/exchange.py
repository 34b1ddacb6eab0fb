"""What is asked of an adapter that is brought along."""

from pydantic import Field

from app.schemas.shared import Asked, Name, Text


class ImportRequest(Asked):
    """What is asked of an upload, besides its bytes."""

    name: Name | None = Field(None, description="null: taken from the file name.")
    base_model: Name | None = Field(
        None, description="null: the base that the files state, or the only one that they fit."
    )
    labels: list[Text] | None = Field(
        None,
        max_length=10_000,
        description="Classes in the order of the head; HF PEFT stores none. null: those of the "
        "files, else `LABEL_0` and so on.",
    )
    multi_label: bool | None = Field(
        None, description="Whether a text may have several labels; the files of HF PEFT do not say."
    )
    max_length: int | None = Field(
        None, ge=1, le=1_000_000, description="Longest input in tokens; null: what the base holds."
    )
    metadata: dict[Text, Text] = Field(default_factory=dict, max_length=50)

"""What is asked of an adapter that is brought along, or made out of others."""

from typing import Annotated

from pydantic import Field

from app.schemas.shared import MAX_REFERENCE_CHARS, Asked, Name, Text
from peft_engine.configs.base import MAX_BASE_NAME_CHARS
from peft_engine.configs.job import DatasetId
from peft_engine.configs.merge import MergeSpec

Weight = Annotated[float, Field(ge=-10, le=10)]


class MergePart(Asked):
    """One adapter of a merge."""

    adapter_id: Text = Field(
        min_length=1,
        max_length=MAX_REFERENCE_CHARS,
        description="Id, name, `name@version` or alias.",
    )
    weight: Weight = Field(1.0, description="Factor on its change; negative: it is taken away.")


class MergeRequest(Asked):
    """A new adapter out of several of one base, one task and one set of labels."""

    name: Name
    adapters: list[MergePart] = Field(min_length=1, max_length=16)
    merge: MergeSpec = Field(default_factory=MergeSpec)
    dataset_id: DatasetId | None = Field(
        None, description="The merge is evaluated on its test split; null: it is not evaluated."
    )
    metadata: dict[Text, Text] = Field(default_factory=dict, max_length=50)


class ImportRequest(Asked):
    """What is asked of an upload, besides its bytes."""

    name: Name | None = Field(None, description="null: taken from the file name.")
    base_model: Text | None = Field(
        None,
        max_length=MAX_BASE_NAME_CHARS,
        description="null: the base that the files state, or the only one that they fit.",
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

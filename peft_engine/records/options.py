"""What the caller of the records package may ask for: limits, splits, sources, token counters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from peft_engine.configs.nesting import MAX_DEPTH

SPLIT_NAMES = ("train", "validation", "test")


class Limits(BaseModel):
    """Bounds that keep one upload from hurting the others. All are generous for real data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Twice the default upload limit: text packs about 3:1, a bomb 1,000:1.
    max_unpacked_bytes: int = Field(4 * 2**30, ge=1)
    # A ratio that repetitive text does not reach; checked only past the floor below it.
    max_unpack_ratio: int = Field(200, ge=2)
    unpack_ratio_floor_bytes: int = Field(64 * 2**20, ge=0)
    # About a million tokens in one row: more than any model here reads.
    max_line_bytes: int = Field(4 * 2**20, ge=1_024)
    max_rows: int = Field(5_000_000, ge=1)
    max_depth: int = Field(MAX_DEPTH, ge=4, le=500)
    # 2**63 has 19 digits. Python itself refuses 4,300 with a plain ValueError.
    max_integer_digits: int = Field(40, ge=19, le=4_000)
    max_keys: int = Field(1_000, ge=10)
    max_columns: int = Field(1_000, ge=2)
    max_label_characters: int = Field(512, ge=1)
    # Every label is held in memory, and each is a row of the classifier.
    max_labels: int = Field(10_000, ge=2)
    max_choices: int = Field(256, ge=2)
    min_rows: int = Field(4, ge=1)


class SplitSpec(BaseModel):
    """How rows are dealt to train, validation and test.

    Attributes:
        fractions: Shares of train, validation and test; they add up to 1.
        seed: Another seed deals other rows; the same seed always deals the same ones.
        column: Name of the column that says the split. None: ``split``, where the rows have it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    seed: int = Field(0, ge=0, lt=2**63)
    column: str | None = Field(None, min_length=1, max_length=200)

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        train, validation, test = self.fractions
        if train <= 0 or validation < 0 or test < 0 or abs(train + validation + test - 1) > 1e-6:
            msg = "fractions must be (train > 0, validation >= 0, test >= 0) and add up to 1"
            raise ValueError(msg)
        return self


@dataclass(frozen=True)
class SourceFile:
    """One uploaded file.

    Attributes:
        path: Where its bytes are.
        filename: The user's name for it. Only its ending is used, to guess the format.
    """

    path: Path
    filename: str | None = None


@dataclass(frozen=True)
class TokenMeasure:
    """Counts tokens as one base model would.

    Attributes:
        base: Name of the base model.
        max_tokens: Longest row that is read whole; None: however long, it is not cut.
        count: Token counts of a batch of texts, in its order.
    """

    base: str
    max_tokens: int | None
    count: Callable[[Sequence[str]], Sequence[int]]

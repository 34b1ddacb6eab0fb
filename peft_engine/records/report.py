"""The report on a data set: plain, JSON-able, without a path of the machine."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from peft_engine.records.problems import Notice, Problem


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitReport(_Part):
    """One split as written."""

    file: str
    rows: int
    bytes: int
    sha256: str
    label_counts: dict[str, int] = {}


class TokenReport(_Part):
    """Row lengths in tokens of one base (or by an estimate)."""

    p50: int
    p90: int
    p99: int
    max: int
    mean: float
    limit: int | None
    over_limit_rows: int
    measured_rows: int


class DuplicateReport(_Part):
    """Rows that stand more than once.

    Attributes:
        exact_rows: Rows that are copies of an earlier row.
        near_rows: Rows that equal an earlier one but for case, blanks and punctuation.
        conflicting_inputs: Inputs that stand with several labels.
    """

    exact_rows: int = 0
    near_rows: int = 0
    conflicting_inputs: int = 0


class LeakPair(_Part):
    """Rows of the later split whose input also stands in the earlier one."""

    exact: int
    near: int


class LeakExample(_Part):
    """One such row, by physical lines."""

    split: str
    line: int
    other_split: str
    other_line: int


class LeakReport(_Part):
    """Inputs that stand in more than one split."""

    exact_rows: int = 0
    near_rows: int = 0
    pairs: dict[str, LeakPair] = {}
    examples: list[LeakExample] = []
    blocks: bool = False


class DatasetReport(_Part):
    """All that is known about an uploaded data set."""

    status: Literal["ready", "invalid"]
    rows: int
    rows_read: int
    bytes: int
    sha256: str
    format: str | None
    compression: str | None = None
    encoding: str | None = None
    task: str | None
    kind: str | None
    splits: dict[str, SplitReport] = {}
    labels: list[str] = []
    label_counts: dict[str, int] = {}
    tokens: dict[str, TokenReport] = {}
    duplicates: DuplicateReport = DuplicateReport()
    leakage: LeakReport = LeakReport()
    problems: list[Problem] = []
    problems_total: int = 0
    warnings: list[Notice] = []
    notes: list[Notice] = []
    columns_found: list[str] = []
    mapping: dict[str, str] = {}

    @property
    def blocks_training(self) -> bool:
        """Whether a job must say ``allow_leakage`` to train on it."""
        return self.leakage.blocks

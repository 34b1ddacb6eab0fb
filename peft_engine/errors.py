"""Everything the engine raises on purpose. Knows no HTTP.

EngineError
├── ConfigError      a job asks for something that does not exist or does not fit
├── BaseModelError   a base model cannot be found, read or supported
├── DataError        records that cannot be learned from
├── DeltaError       a delta is corrupt, incomplete or belongs elsewhere
├── ExchangeError    a foreign file cannot be held here, or a delta not there
├── RowError         one row of a prediction cannot be answered
├── TrainingError    training itself went wrong (not a number, nothing to learn)
└── PlanError        the router is used against its rules (a fault of the calling code)
"""

import copyreg
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


class EngineError(Exception):
    """A failure with a message for people and a stable code for programs.

    Args:
        message: What failed, the value, and what to do.
        code: Stable, lower case with underscores.
        param: Path of the field that is at fault, such as ``training.max_length``.
    """

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param

    def __reduce__(self) -> tuple[Any, ...]:
        """Let it come whole out of another process, which an error with keywords does not."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class ConfigError(EngineError):
    """A job asks for something that does not exist or does not fit."""


class BaseModelError(EngineError):
    """A base model cannot be found, read or supported."""


class DataError(EngineError):
    """Records that cannot be learned from."""


class DeltaError(EngineError):
    """A delta is corrupt, incomplete or belongs elsewhere."""


@dataclass(frozen=True)
class Problem:
    """One reason why something cannot be exchanged.

    Attributes:
        code: Stable, lower case with underscores.
        message: What is wrong, with the value.
        where: The tensor, option or file at fault, if one is.
    """

    code: str
    message: str
    where: str | None = None


class ExchangeError(EngineError):
    """A foreign file cannot be held here, or a delta cannot be held there.

    Args:
        message: What failed and the first reason.
        code: ``adapter_invalid`` for a file, ``export_not_possible`` for a delta.
        problems: Every reason.
    """

    def __init__(self, message: str, *, code: str, problems: Sequence[Problem]) -> None:
        super().__init__(message, code=code)
        self.problems = tuple(problems)


class RowError(EngineError):
    """One row of a prediction cannot be answered."""


class TrainingError(EngineError):
    """Training itself went wrong."""


class PlanError(EngineError):
    """The router is used against its rules."""

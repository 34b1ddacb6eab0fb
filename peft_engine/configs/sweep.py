"""A sweep, exactly as ``POST /sweeps`` takes it: a job, and which of its fields are tried out."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StrictFloat, StrictInt, model_validator

from peft_engine.configs.job import Name
from peft_engine.configs.model import Auto, Config
from peft_engine.configs.nesting import refuse_deep
from peft_engine.configs.training import MetricName

MAX_JOBS = 256
MAX_PARALLEL = 64
DEFAULT_JOBS = 16
"""Of a search that has no end of its own."""

_GOLDEN = (math.sqrt(5) - 1) / 2
"""Where a range of fractions is tried besides its ends; between whole ends that is a fraction."""

Strategy = Literal["grid", "random", "tpe"]
Whole = Annotated[StrictInt, Field(ge=-(2**62), le=2**62 - 2)]
Number = Whole | Annotated[StrictFloat, Field(allow_inf_nan=False)]

Values = Annotated[tuple[Any, ...], Field(min_length=1, max_length=64), AfterValidator(refuse_deep)]
FieldPath = Annotated[
    str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")
]


class SearchField(Config):
    """The values that one field of the job may take: a list of them, or a range."""

    values: Values | None = Field(
        None, description="Anything that the field takes: numbers, names, objects, null."
    )
    min: Number | None = Field(
        None,
        description="Least value of a range. Whole numbers are tried if both ends are whole (`4`, "
        "not `4.0`).",
    )
    max: Number | None = Field(None, description="Greatest value of a range.")
    log: bool = Field(False, description="Of a range: orders of magnitude are equally likely.")

    @model_validator(mode="before")
    @classmethod
    def _as_values(cls, data: Any) -> Any:
        """Accept a list where values are meant.

        Args:
            data: As sent.

        Returns:
            An object.
        """
        return {"values": data} if isinstance(data, list | tuple) else data

    @model_validator(mode="after")
    def _one_form(self) -> "SearchField":
        is_range = self.min is not None or self.max is not None
        if (self.values is not None) == is_range:
            raise ValueError("give values, or min and max")
        if not is_range:
            if self.log:
                raise ValueError("log is for a range: give min and max, or leave it out")
            return self
        if self.min is None or self.max is None or self.min >= self.max:
            raise ValueError(f"a range needs min < max, not {self.min} and {self.max}")
        if self.log and self.min <= 0:
            raise ValueError(f"log needs a min above 0, not {self.min}")
        return self

    @property
    def choices(self) -> Sequence[Any] | None:
        """All values of a list, or of a range of whole numbers; None for one of fractions."""
        if self.values is not None:
            return self.values
        if isinstance(self.min, int) and isinstance(self.max, int):
            return range(self.min, self.max + 1)
        return None

    @property
    def samples(self) -> tuple[Any, ...]:
        """Values by which the field is checked: a list's, a range's ends and a fraction in it."""
        if self.values is not None or self.min is None or self.max is None:
            return self.values or ()
        if self.choices is not None:
            return (self.min, self.max)
        return (self.min, self.max, self.min + (self.max - self.min) * _GOLDEN)


class SweepSpec(Config):
    """Which job, which of its fields are tried out, and how."""

    job: Annotated[dict[str, Any], AfterValidator(refuse_deep)] = Field(
        description="The body of `POST /jobs` that every trial begins with; see there."
    )
    search: dict[FieldPath, SearchField] = Field(
        min_length=1,
        max_length=16,
        description="By path of a field of the job: `training.learning_rate`, `method.r`, `method` "
        "(whole methods), `method.1.r` (of the second one of a combination), `training.seed`. "
        "Each is `{values: […]}` (or just the list) or `{min, max, log}`.",
    )
    strategy: Strategy = Field(
        "grid",
        description="`grid`: every combination of the values. `random`: drawn alike. `tpe`: each "
        "trial drawn where earlier ones did well (Bergstra et al. 2011), after ten at random.",
    )
    seed: int = Field(
        0, ge=0, le=2**31 - 1, description="Of the draws of `random` and `tpe`; not of the jobs."
    )
    max_jobs: int | None = Field(
        None,
        ge=1,
        le=MAX_JOBS,
        description=f"Most trials. null: the whole grid ({MAX_JOBS} at most), else "
        f"{DEFAULT_JOBS}; fewer where there are no more points.",
    )
    max_parallel: int = Field(
        4,
        ge=1,
        le=MAX_PARALLEL,
        description="Most trials that wait or run at a time. `tpe` learns from those that ended: "
        "fewer at a time, better informed.",
    )
    metric: Auto | MetricName = Field(
        "auto",
        description="By which trials keep a step and are compared, on validation; `auto`: the "
        "job's own `training.early_stopping.metric`, or the task's.",
    )
    name: Name | None = Field(None, description="null: the adapter's name.")

    @property
    def combinations(self) -> int | None:
        """How many points there are; None where a field has a range of fractions."""
        size = 1
        for field in self.search.values():
            if field.choices is None:
                return None
            size *= len(field.choices)
        return size

    @property
    def trials(self) -> int:
        """How many trials are made."""
        size, asked = self.combinations, self.max_jobs
        if self.strategy == "grid" and size is not None:
            return size
        wanted = DEFAULT_JOBS if asked is None else asked
        return wanted if size is None else min(wanted, size)

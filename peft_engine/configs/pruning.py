"""Which weights of a base are taken away before training."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from peft_engine.configs.model import Config

PruningPattern = Literal["unstructured", "2:4", "heads", "ffn", "layers"]

_PATTERNS: dict[str, tuple[PruningPattern, ...]] = {
    "magnitude": ("unstructured", "2:4"),
    "wanda": ("unstructured", "2:4"),
    "movement": ("unstructured",),
    "structured": ("ffn", "heads", "layers"),
}
"""By method, the pattern that is meant when none is given first."""

_CALIBRATION = "[0-9a-f]{16}"
# `wanda-0.5`, `magnitude-2:4`, `ffn-0.25-0123456789abcdef`
_NAME = re.compile(
    rf"(magnitude|wanda|movement|ffn|heads|layers)-(0\.[0-9]{{1,3}}|2:4)(?:-({_CALIBRATION}))?"
)


class PruningConfig(Config):
    """Weights that are set to zero, or whole parts that are taken out.

    `magnitude`, `wanda` (Sun et al. 2024, arXiv 2306.11695) and `movement` (Sanh et al. 2020, arXiv
    2005.07683) set single weights of all linears to zero: the base keeps its size. `structured`
    makes it smaller and quicker.
    """

    method: Literal["magnitude", "wanda", "movement", "structured"] = Field(
        "wanda",
        description="`magnitude`: the smallest weights of each matrix. `wanda`: in each output row "
        "the weights with the smallest product of size and input norm. `movement`: weights that a "
        "training of its own, with the job's method and settings, moves towards zero. "
        "`structured`: parts that contribute least on calibration rows.",
    )
    pattern: PruningPattern = Field(
        "unstructured",
        description="Of `magnitude` and `wanda`: `unstructured` (default) or `2:4`, two of every "
        "four neighbouring inputs. Of `movement`: `unstructured`. Of `structured`: `ffn` "
        "(default), inner features of every FFN; `heads`, attention heads, those that share keys "
        "and values together; `layers`.",
    )
    sparsity: float = Field(
        0.5,
        ge=0.01,
        le=0.9,
        description="Share that is taken away, of every matrix or of every layer's parts; 2:4 "
        "takes 0.5. Three decimals at most: the number is a part of the derived base's name.",
    )
    calibration_rows: int = Field(
        128,
        ge=1,
        le=1024,
        description="Rows of the training split on which `wanda` and `structured` look at inputs; "
        "`movement` learns from all.",
    )

    calibration: str | None = Field(
        None,
        pattern=f"^{_CALIBRATION}$",
        description="Names the rows that have decided what is taken away. null: rows of the job's "
        "own training split; the job then shows the value that came out.",
    )

    @field_validator("sparsity")
    @classmethod
    def _keep_short(cls, value: float) -> float:
        """Refuse a number that a name would not hold.

        Args:
            value: The share.

        Returns:
            The same.

        Raises:
            ValueError: It has more than three decimals.
        """
        if round(value, 3) != value:
            raise ValueError(f"sparsity {value} has more than three decimals")
        return value

    @model_validator(mode="before")
    @classmethod
    def _fill_pattern(cls, value: Any) -> Any:
        """Give a method the pattern that is meant without one.

        Args:
            value: What was asked for.

        Returns:
            The same with a pattern.
        """
        if not isinstance(value, dict) or value.get("pattern") is not None:
            return value
        offered = _PATTERNS.get(value.get("method", "wanda"), ("unstructured",))
        return {**value, "pattern": offered[0]}

    @model_validator(mode="after")
    def _fit(self) -> "PruningConfig":
        """Refuse what does not go together.

        Returns:
            The same.

        Raises:
            ValueError: The method has no such pattern, or 2:4 another share than a half.
        """
        offered = _PATTERNS[self.method]
        if self.pattern not in offered:
            raise ValueError(
                f"pruning method {self.method!r} has the patterns {', '.join(offered)}, not "
                f"{self.pattern!r}"
            )
        if self.pattern == "2:4" and self.sparsity != 0.5:
            raise ValueError("the pattern 2:4 takes a sparsity of 0.5")
        if self.calibration is not None and not self.looks_at_rows:
            raise ValueError(f"{self.method} looks at no rows; leave calibration out")
        return self

    @property
    def looks_at_rows(self) -> bool:
        """Whether the choice depends on calibration rows."""
        return self.method != "magnitude"

    @property
    def name(self) -> str:
        """Such as ``wanda-0.5-0123456789abcdef``; without the rows before they are known."""
        what = self.pattern if self.method == "structured" else self.method
        share = "2:4" if self.pattern == "2:4" else f"{self.sparsity:g}"
        rows = "" if self.calibration is None else f"-{self.calibration}"
        return f"{what}-{share}{rows}"

    @classmethod
    def parse(cls, name: str) -> "PruningConfig":
        """Read a name back.

        Args:
            name: As ``name`` gives it.

        Returns:
            A configuration of this name.

        Raises:
            ValueError: It is no such name.
        """
        no_name = f"{name!r} is no pruning; such are magnitude-0.5, wanda-2:4, ffn-0.25"
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError(no_name)
        what, share, calibration = found.groups()
        structured = what in _PATTERNS["structured"]
        whole = {
            "method": "structured" if structured else what,
            "pattern": what if structured else "2:4" if share == "2:4" else "unstructured",
            "sparsity": 0.5 if share == "2:4" else float(share),
            "calibration": calibration,
        }
        made = cls.model_validate(whole)
        if made.name != name:  # `ffn-2:4`, `wanda-0.50`: a base has one name
            raise ValueError(no_name)
        return made

"""Which weights of a base are taken away before training."""

from typing import Any, Literal

from pydantic import Field, model_validator

from peft_engine.configs.model import Config

PruningPattern = Literal["unstructured", "2:4", "heads", "ffn", "layers"]

_PATTERNS: dict[str, tuple[PruningPattern, ...]] = {
    "magnitude": ("unstructured", "2:4"),
    "wanda": ("unstructured", "2:4"),
    "structured": ("ffn", "heads", "layers"),
}
"""By method, the pattern that is meant when none is given first."""


class PruningConfig(Config):
    """Weights that are set to zero, or whole parts that are taken out.

    `magnitude` and `wanda` (Sun et al. 2024, arXiv 2306.11695) set single weights of all linears to
    zero: the base keeps its size. `structured` makes it smaller and quicker.
    """

    method: Literal["magnitude", "wanda", "structured"] = Field(
        "wanda",
        description="`magnitude`: the smallest weights of each matrix. `wanda`: in each output row "
        "the weights with the smallest product of size and input norm. `structured`: parts that "
        "contribute least on calibration rows.",
    )
    pattern: PruningPattern = Field(
        "unstructured",
        description="Of `magnitude` and `wanda`: `unstructured` (default) or `2:4`, two of every "
        "four neighbouring inputs. Of `structured`: `ffn` (default), inner features of every FFN; "
        "`heads`, attention heads, those that share keys and values together; `layers`.",
    )
    sparsity: float = Field(
        0.5,
        ge=0.01,
        le=0.9,
        description="Share that is taken away, of every matrix or of every layer's parts; 2:4 "
        "takes 0.5.",
    )
    calibration_rows: int = Field(
        128,
        ge=1,
        le=1024,
        description="Rows of the training split on which `wanda` and `structured` look at inputs.",
    )

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
        return self

    @property
    def looks_at_rows(self) -> bool:
        """Whether the choice depends on calibration rows."""
        return self.method != "magnitude"

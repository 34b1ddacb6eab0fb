"""How the frozen base model is prepared before training; each choice names a derived base.

A derived base is known by the name of its parent and a short name of what was done to it:
``minilm@int8``, ``smollm2@wanda-0.5-0123456789abcdef+nf4``. The short name says all: from it the
same configuration is read back.
"""

from typing import Literal

from pydantic import Field

from peft_engine.configs.model import Config
from peft_engine.configs.pruning import PruningConfig

Quantization = Literal["none", "fp16", "int8", "int8-weight-only", "int4", "nf4"]
QUANTIZATIONS: tuple[Quantization, ...] = ("fp16", "int8", "int8-weight-only", "int4", "nf4")
"""Everything but ``none``."""

MAX_BASE_NAME_CHARS = 128
"""Name of a parent (64 at most), ``@``, and the longest short name of a derivation."""


class BaseConfig(Config):
    """What is done to the base before training: first pruned, then quantized."""

    quantization: Quantization = Field(
        "none",
        description="`none`: the weights as published. `fp16`: weights rounded to half precision, "
        "computed with in fp32, for speed on CPUs without bf16. `int8`: weights and activations in "
        "8 bits, for speed. `int8-weight-only`, `int4` and `nf4` (Dettmers et al. 2023, arXiv "
        "2305.14314): weights in 8 or 4 bits, for memory. The adapter is trained and served on the "
        "base so derived.",
    )
    pruning: PruningConfig | None = Field(None, description="null: no weight is removed.")

    @property
    def is_derived(self) -> bool:
        """Whether anything is done at all."""
        return self.quantization != "none" or self.pruning is not None

    @property
    def name(self) -> str:
        """Short name such as ``wanda-0.5+int8``; empty where nothing is done."""
        parts = [] if self.pruning is None else [self.pruning.name]
        return "+".join(parts if self.quantization == "none" else [*parts, self.quantization])

    @classmethod
    def parse(cls, name: str) -> "BaseConfig":
        """Read a short name back.

        Args:
            name: As ``name`` writes it.

        Returns:
            The configuration.

        Raises:
            ValueError: It is no such name.
        """
        *before, last = name.split("+")
        quantization = last if last in QUANTIZATIONS else "none"
        pruning = before if quantization != "none" else [*before, last]
        if len(pruning) > 1:
            raise ValueError(f"{name!r}: pruning comes once and first, quantization once and last")
        return cls.model_validate(
            {
                "quantization": quantization,
                "pruning": PruningConfig.parse(pruning[0]) if pruning else None,
            }
        )


def join_base_name(parent: str, derivation: BaseConfig) -> str:
    """Name of a base, derived or not.

    Args:
        parent: Name of the base model as published.
        derivation: What is done to it.

    Returns:
        ``parent`` or ``parent@derivation``.
    """
    return f"{parent}@{derivation.name}" if derivation.is_derived else parent


def split_base_name(name: str) -> tuple[str, BaseConfig]:
    """Parent and derivation of a base.

    Args:
        name: As ``join_base_name`` writes it.

    Returns:
        Name of the base model as published, and what is done to it.

    Raises:
        ValueError: What follows the ``@`` names no derivation.
    """  # noqa: DOC502  raised below
    parent, at, derivation = name.partition("@")
    return parent, BaseConfig.parse(derivation) if at else BaseConfig()


def parent_name(name: str) -> str:
    """Name of the base model as published.

    Args:
        name: Name of a base, derived or not; never refused.

    Returns:
        What stands before the ``@``.
    """
    return name.partition("@")[0]

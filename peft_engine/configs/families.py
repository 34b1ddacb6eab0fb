"""Families of base models, and which of them can be tuned for which task.

Here because the api refuses a job for the wrong family at once, and must not load torch to know.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from peft_engine.errors import ConfigError

Architecture = Literal["encoder", "causal", "encoder-decoder"]

_ALL: frozenset[Architecture] = frozenset({"encoder", "causal", "encoder-decoder"})

ARCHITECTURES: Mapping[str, frozenset[Architecture]] = MappingProxyType(
    {
        "text-classification": _ALL,
        "regression": _ALL,
        "token-classification": _ALL,
        "relation-extraction": _ALL,
        # A causal token has not seen what follows, which the end of an answer depends on.
        "question-answering": _ALL - {"causal"},
        "multiple-choice": _ALL,
        "text-generation": _ALL - {"encoder"},
    }
)
"""By task; of a base with two stacks a task with a head reads the encoder alone."""


def tasks_of(architecture: Architecture) -> tuple[str, ...]:
    """What a family of bases can be tuned for.

    Args:
        architecture: The family.

    Returns:
        Names of tasks, in a fixed order.
    """
    return tuple(task for task, offered in ARCHITECTURES.items() if architecture in offered)


def check_family(task: str, architecture: str, *, base: str) -> None:
    """Make sure that a task is offered on bases of a family.

    Args:
        task: Name of the task.
        architecture: The family.
        base: The base's name, for the message.

    Raises:
        ConfigError: It is not (``task_not_supported``).
    """
    if architecture not in ARCHITECTURES[task]:
        offered = " or ".join(sorted(ARCHITECTURES[task]))
        raise ConfigError(
            f"{task} needs a base of the family {offered}; {base} is {architecture}",
            code="task_not_supported",
            param="base_model",
        )

"""How much a target of each class counts in the loss."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from peft_engine.errors import ConfigError
from peft_engine.parts.batching import Example
from peft_engine.tasks.protocol import HeadTask, Task

# Legend of axes: C classes.


def resolve_class_weights(
    asked: Literal["balanced"] | Mapping[str, float] | None,
    task: Task,
    examples: Sequence[Example],
    labels: tuple[str, ...] | None,
) -> Tensor | None:
    """Weights of the classes.

    Args:
        asked: ``balanced``: targets / (C · targets of the class), as scikit-learn has it, or for
            labels that do not exclude one another rows without / rows with; a class without any
            target weighs 1. A mapping: those it does not name weigh 1. None: no weights.
        task: The task.
        examples: Training examples.
        labels: Class names.

    Returns:
        (C,) fp32 on the CPU, or None.

    Raises:
        ConfigError: The task has no classes, or not the one that is named.
    """
    if asked is None:
        return None
    if not task.weighs_classes or labels is None or not isinstance(task, HeadTask):
        raise ConfigError(
            f"{task.name} has no classes to weigh",
            code="no_classes",
            param="training.class_weights",
        )
    if asked != "balanced":
        unknown = sorted(set(asked) - set(labels))
        if unknown:
            raise ConfigError(
                f"class_weights names {unknown[0]!r}, which no training row has; "
                f"there are {', '.join(labels[:20])}",
                code="unknown_label",
                param="training.class_weights",
            )
        return torch.tensor([float(asked.get(label, 1.0)) for label in labels])
    counts = task.count_classes(examples, classes=len(labels)).float()
    if counts.dim() == 2:  # with and without: (2, C)
        told = (counts > 0).all(0)  # a label that every row has, or none, has nothing to even out
        return torch.where(told, counts[1] / counts[0].clamp(min=1), 1.0)
    return torch.where(counts > 0, counts.sum() / (len(labels) * counts.clamp(min=1)), 1.0)

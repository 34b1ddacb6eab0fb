"""One evaluation of the validation split: what is told, and what decides which step is kept."""

from collections.abc import Callable
from typing import Any

import torch

from peft_engine.bases.base import Base
from peft_engine.parts.statistics import draw_values
from peft_engine.router import Router
from peft_engine.training.forwards import EvaluationForward
from peft_engine.training.prepare import Prepared


@torch.no_grad()
def validate(
    base: Base, router: Router, job: Prepared, check: Callable[[], None]
) -> dict[str, Any]:
    """Evaluate the values as they are now on the validation split.

    Args:
        base: The base.
        router: Its router.
        job: The job.
        check: Called before each forward; may raise to interrupt.

    Returns:
        ``metrics``; and ``draws``, the deciding one over resamples of the rows where noise decides,
        else empty.
    """
    split = job.splits["validation"]
    forward = EvaluationForward(
        base, router, job.trainable.actor(training=False), check, job.frozen_layers
    )
    found = job.task.evaluate(
        forward,
        job.trainable.head(),
        split.examples,
        split.records,
        batch_size=job.evaluation_rows,
        generate_rows=job.resolved.validation_generate_rows,
    )
    own = found.rows.get(job.resolved.metric)
    draws: list[float] = []
    if job.resolved.keep == "one_se" and own is not None and own.count:
        draws = draw_values(own).tolist()
    return {"metrics": dict(found.metrics), "draws": draws}

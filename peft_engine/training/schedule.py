"""Learning-rate schedules as pure functions of the step."""

import math
from typing import Literal


def rate_factor(
    step: int,
    *,
    total_steps: int,
    warmup_ratio: float,
    schedule: Literal["linear", "cosine", "constant"],
) -> float:
    """Factor on the peak learning rate.

    Args:
        step: Number of the step from 0.
        total_steps: Steps of the whole run.
        warmup_ratio: Share of the steps that rise linearly from near 0 to 1.
        schedule: Course after the warm-up; ``linear`` and ``cosine`` fall to 0 at the end.

    Returns:
        A factor in (0, 1].
    """
    warmup = round(total_steps * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total_steps - warmup)
    if schedule == "linear":
        return 1.0 - done
    return 0.5 * (1 + math.cos(math.pi * done))

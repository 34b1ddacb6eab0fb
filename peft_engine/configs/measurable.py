"""Which jobs cannot be measured beforehand, and why; no bad number is given instead."""

from dataclasses import dataclass

from peft_engine.configs.job import JobSpec


@dataclass(frozen=True)
class Unmeasured:
    """Why a job is not measured.

    Attributes:
        message: For people, with what to do.
        param: The field that stands in the way.
    """

    message: str
    param: str


def explain_unmeasured(spec: JobSpec) -> Unmeasured | None:
    """Say why a job is not measured.

    Args:
        spec: The job.

    Returns:
        None: it can be.
    """
    pruning = spec.base.pruning
    if spec.training.devices > 1:
        return Unmeasured(
            f"the steps of {spec.training.devices} devices are not measured on one; estimate with "
            "training.devices 1",
            "training.devices",
        )
    if pruning is not None and pruning.looks_at_rows and pruning.calibration is None:
        return Unmeasured(
            f"what base.pruning {pruning.method!r} takes away is decided by the job itself, which "
            "may take longer than its training; estimate without it, or on the base that such a "
            "job has made",
            "base.pruning",
        )
    return None

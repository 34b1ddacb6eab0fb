"""How a job is shown."""

import pytest

from app.services.job_answers import progress_now
from core.db.models import Job
from core.states import JobStatus, Phase

TOLD = {"step": 9, "total_steps": 9, "training_seconds_left": 1.5, "eta_seconds": 4.0}


@pytest.mark.parametrize(
    ("status", "phase", "eta"),
    [
        (JobStatus.RUNNING, Phase.TRAINING, 4.0),
        (JobStatus.RUNNING, Phase.EVALUATING, None),
        (JobStatus.RUNNING, Phase.PUBLISHING, None),
        (JobStatus.PAUSED, None, None),
        (JobStatus.SUCCEEDED, Phase.PUBLISHING, None),
    ],
)
def test_time_left_is_shown_while_it_counts_down(
    status: JobStatus, phase: Phase | None, eta: float | None
) -> None:
    shown = progress_now(Job(status=status, phase=phase, progress=TOLD))
    assert shown is not None
    assert (shown["step"], shown["eta_seconds"]) == (9, eta)


def test_a_job_without_a_step_has_no_progress() -> None:
    assert progress_now(Job(status=JobStatus.QUEUED, progress=None)) is None

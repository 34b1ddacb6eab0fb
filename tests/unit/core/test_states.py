from itertools import pairwise
from pathlib import Path

import pytest

from core.errors import InvalidTransition
from core.states import (
    ACTIVE,
    TERMINAL,
    TRANSITIONS,
    JobStatus,
    check_transition,
    render_state_diagram,
)

ROOT = Path(__file__).parents[3]
ALLOWED = {
    "validating_files": "queued paused failed cancelled",
    "queued": "running paused failed cancelled",
    "running": "queued pausing cancelling succeeded failed",
    "pausing": "paused cancelling succeeded failed",
    "paused": "queued cancelled",
    "cancelling": "cancelled succeeded failed",
    "succeeded": "",
    "failed": "queued",
    "cancelled": "",
}


@pytest.mark.parametrize("old", JobStatus)
@pytest.mark.parametrize("new", JobStatus)
def test_exactly_the_moves_of_the_table_are_allowed(old: JobStatus, new: JobStatus) -> None:
    if new == old or new.value in ALLOWED[old.value].split():
        check_transition(old, new)
    else:
        with pytest.raises(InvalidTransition, match=f"{old}.*{new}"):
            check_transition(old, new)


def test_every_state_can_be_reached_and_every_job_can_end() -> None:
    def reachable(start: JobStatus) -> set[JobStatus]:
        found = {start}
        while more := {new for old in found for new in TRANSITIONS[old]} - found:
            found |= more
        return found

    assert reachable(JobStatus.VALIDATING_FILES) == set(JobStatus)
    for status in JobStatus:
        assert reachable(status) & TERMINAL, status


def test_only_a_job_that_a_worker_holds_can_succeed() -> None:
    before = {old for old in JobStatus if JobStatus.SUCCEEDED in TRANSITIONS[old]}
    assert before == ACTIVE


@pytest.mark.parametrize(
    "path",
    [
        "validating_files queued running succeeded",
        "queued running queued running cancelling cancelled",
        "running pausing paused queued running failed queued",
    ],
)
def test_the_usual_lives_are_possible(path: str) -> None:
    for old, new in pairwise(path.split()):
        check_transition(JobStatus(old), JobStatus(new))


def test_the_diagram_is_the_generated_one_and_shows_every_move() -> None:
    page = (ROOT / "docs" / "states.md").read_text()
    assert page == render_state_diagram(), "run: python -m core.states > docs/states.md"
    for old, targets in ALLOWED.items():
        for new in targets.split():
            assert f"    {old} --> {new}" in page

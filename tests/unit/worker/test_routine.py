"""The log of a worker is of what happens, not of what is due every few seconds."""

import logging

import pytest

from core.queue import ORPHANS_TASK, SWEEP_TASK
from worker.celery_app import leave_routine_out


def test_a_sweep_is_logged_when_it_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    leave_routine_out()
    with caplog.at_level(logging.INFO):
        for task in (SWEEP_TASK, ORPHANS_TASK):
            logging.getLogger("celery.beat").info("Scheduler: Sending due task (%s)", task)
            logging.getLogger("celery.worker.strategy").info("Task %s[1] received", task)
            logging.getLogger("celery.app.trace").info("Task %s[1] succeeded in 0.1s", task)
            logging.getLogger("celery.app.trace").error("Task %s[1] raised unexpected", task)
    of_sweeps = [record for record in caplog.records if SWEEP_TASK in record.getMessage()]
    assert [record.levelno for record in of_sweeps] == [logging.ERROR]
    assert len(caplog.records) - len(of_sweeps) == 4

import errno

import pytest

from core.errors import NotFound, Unavailable
from peft_engine.errors import TrainingError
from worker.failures import explain, explain_death, explain_hang


class OutOfMemoryError(RuntimeError):
    """Named like torch's own, which this tier does not import."""


def test_errors_of_the_engine_are_told_as_they_are_and_are_final() -> None:
    failure = explain(TrainingError("the loss is nan", code="loss_not_finite", param="training"))
    assert failure.as_job_error() == {
        "code": "loss_not_finite",
        "message": "the loss is nan",
        "param": "training",
    }
    assert not failure.retry


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_memory_errors_say_what_to_lower_and_want_a_fresh_process(error: BaseException) -> None:
    failure = explain(error)
    assert failure.code == "out_of_memory"
    assert "batch_size" in failure.message
    assert failure.retry
    assert failure.fresh_process


def test_unexpected_errors_say_nothing_of_the_inside() -> None:
    failure = explain(RuntimeError("/srv/secret/key at line 7"))
    assert failure.code == "internal_error"
    assert "/" not in failure.message
    assert failure.retry
    assert failure.fresh_process


def test_a_full_disk_is_told_apart_even_when_wrapped() -> None:
    assert explain(OSError(errno.ENOSPC, "No space left on device")).code == "storage_full"
    assert explain(Unavailable("no room", code="storage_full")).code == "storage_full"


def test_our_own_faults_are_tried_again_and_the_users_are_not() -> None:
    away = explain(Unavailable("away", code="storage_unavailable"))
    assert (away.retry, away.outage) == (True, True)
    assert not explain(NotFound("no object", code="object_not_found")).retry
    assert not explain(RuntimeError("ours")).outage


def test_a_process_killed_by_the_system_points_at_memory() -> None:
    assert explain_death(-9).code == "trainer_killed"
    assert "memory" in explain_death(-9).message
    assert explain_death(1).code == "trainer_crashed"
    assert explain_death(None).code == "trainer_unavailable"
    assert explain_hang(30).code == "trainer_hung"

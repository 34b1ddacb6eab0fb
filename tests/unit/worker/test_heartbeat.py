import threading
from collections.abc import Callable

import pytest

from worker.heartbeat import Fenced, Heart, LeaseState, Unreachable


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Answers:
    """A database that answers beats in turn; the last answer for ever."""

    def __init__(self, *answers: str | None | type[Exception]) -> None:
        self._answers = list(answers)
        self._enough = threading.Condition()
        self.beats = 0

    def __call__(self) -> str | None:
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        with self._enough:
            self.beats += 1
            self._enough.notify_all()
        if isinstance(answer, type):
            raise answer
        return answer

    def wait_for(self, beats: int) -> None:
        with self._enough:
            assert self._enough.wait_for(lambda: self.beats >= beats, 5)


def hear_nothing() -> str | None:
    return None


def make_heart(
    pulse: Callable[[], str | None],
    clock: Clock,
    *,
    listen: Callable[[], str | None] = hear_nothing,
    heartbeat_seconds: float = 0.001,
) -> Heart:
    return Heart(
        pulse,
        listen,
        claimed_at=clock(),
        lease_seconds=10,
        heartbeat_seconds=heartbeat_seconds,
        clock=clock,
    )


def test_a_beat_renews_the_lease_from_the_moment_it_was_sent() -> None:
    clock, answers = Clock(), Answers(None)
    heart = make_heart(answers, clock)
    clock.now += 9
    assert heart.state is LeaseState.HELD
    heart.start()
    answers.wait_for(2)
    clock.now += 9
    assert heart.state is LeaseState.HELD
    heart.stop()


def test_without_beats_the_lease_lapses_by_our_own_clock() -> None:
    clock, answers = Clock(), Answers(Unreachable)
    heart = make_heart(answers, clock)
    heart.start()
    answers.wait_for(3)
    states = [heart.state]
    clock.now += 10
    states.append(heart.state)
    assert states == [LeaseState.HELD, LeaseState.LAPSED]
    heart.stop()


def test_a_database_that_hangs_does_not_keep_the_lease_alive() -> None:
    clock, release = Clock(), threading.Event()

    def hang() -> str | None:
        release.wait()
        return None

    heart = make_heart(hang, clock)
    heart.start()
    clock.now += 11
    assert heart.state is LeaseState.LAPSED
    release.set()
    heart.stop()


def test_a_fenced_beat_is_the_last() -> None:
    clock, answers = Clock(), Answers(None, Fenced)
    heart = make_heart(answers, clock)
    heart.start()
    answers.wait_for(2)
    heart._thread.join(5)
    assert heart.state is LeaseState.FENCED
    assert answers.beats == 2


def test_a_wish_is_remembered() -> None:
    clock, answers = Clock(), Answers(None, "cancel", None)
    heart = make_heart(answers, clock)
    heart.start()
    answers.wait_for(4)
    assert heart.wish == "cancel"
    heart.stop()


def test_a_wish_is_heard_between_two_beats() -> None:
    clock, beats, looks = Clock(), Answers(None), Answers(Unreachable, None, "pause")
    heart = make_heart(beats, clock, listen=looks, heartbeat_seconds=3600)
    heart.start()
    looks.wait_for(3)
    heart.stop()
    heart._thread.join(5)
    assert (heart.wish, beats.beats, heart.state) == ("pause", 0, LeaseState.HELD)


@pytest.mark.parametrize("written", [True, False])
def test_a_write_is_tried_again_while_the_lease_holds(written: bool) -> None:
    clock = Clock()
    heart = make_heart(Answers(None), clock)
    tries = []

    def write() -> bool:
        tries.append(1)
        if len(tries) < 3:
            raise Unreachable
        return written

    assert heart.persist(write) is written
    assert len(tries) == 3


def test_a_write_is_given_up_when_the_lease_has_passed() -> None:
    clock = Clock()
    heart = make_heart(Answers(None), clock)

    def write() -> bool:
        clock.now += 11
        raise Unreachable

    assert heart.persist(write) is False

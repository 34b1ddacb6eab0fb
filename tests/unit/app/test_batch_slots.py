"""Requests of batches and a queue that takes fewer of them than may be under way."""

import asyncio

from app.batches.door import Answer
from app.batches.slots import Slots
from app.batches.stopping import Stop
from app.batches.tries import Tries

REFUSED = b'{"error": {"code": "queue_full"}}'


ONE = Stop(grace_seconds=10)
"""Stands for a batch."""


class NoClock(Stop):
    """A stop behind which nobody may wait for time to pass."""

    async def pause(self, seconds: float) -> None:
        raise AssertionError(f"waits for {seconds} s")


class Queue:
    """Takes so many requests at a time, and answers one when it is told to."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken: list[tuple[bytes, asyncio.Event]] = []
        self.refused = 0

    async def ask(self, body: bytes) -> Answer:
        if len(self.taken) == self.room:
            self.refused += 1
            return Answer(429, "req", REFUSED, retry_after_seconds=3)
        entry = (body, asyncio.Event())
        self.taken.append(entry)
        await entry[1].wait()
        return Answer(200, "req", body)

    async def answer_first(self) -> bytes:
        body, event = self.taken.pop(0)
        event.set()
        await settle()
        return body


async def settle() -> None:
    """Let everything happen that waits for nothing."""
    for _ in range(100):
        await asyncio.sleep(0)


async def look() -> None:
    """The service is alive."""


async def enter(slots: Slots) -> None:
    async with slots.place(slots.take_turn(ONE)):
        await settle()


def test_a_full_queue_is_waited_for_and_not_a_clock() -> None:
    async def test() -> None:
        queue, tries, stop = Queue(4), Tries(Slots(16), look), NoClock(grace_seconds=10)
        bodies = [b"%d" % place for place in range(64)]
        asked = [asyncio.create_task(tries.ask(queue, body, stop)) for body in bodies]  # type: ignore[arg-type]
        await settle()
        answered = []
        for _ in bodies:
            # as many as there is room for, all the time
            assert len(queue.taken) == min(4, len(bodies) - len(answered))
            answered.append(await queue.answer_first())
        assert [answer and answer.content for answer in await asyncio.gather(*asked)] == bodies
        # who was refused is asked before those behind it
        assert all(answered.index(body) <= place + 16 for place, body in enumerate(bodies))
        assert 12 <= queue.refused < len(bodies)

    asyncio.run(test())


def test_room_that_others_leave_is_found() -> None:
    async def test() -> None:
        slots = Slots(3)
        async with slots.place(slots.take_turn(ONE)):
            async with slots.place(slots.take_turn(ONE)):
                slots.shrink()
            waiting = asyncio.create_task(enter(slots))
            await settle()
            assert slots.under_way == 1
            slots.probe()
            await waiting

    asyncio.run(test())


def test_what_comes_too_late_together_is_asked_one_by_one() -> None:
    late = Answer(503, "req", b'{"error": {"code": "deadline_exceeded"}}')

    async def test() -> None:
        most, under_way, tries = [0], [0], Tries(Slots(4), look)
        deadline = asyncio.Event()

        class Slow:
            async def ask(self, body: bytes) -> Answer:
                under_way[0] += 1
                most[0] = max(most[0], under_way[0])
                await (settle() if deadline.is_set() else deadline.wait())
                under_way[0] -= 1
                return Answer(200, "req", body) if most[0] == 1 else late

        stop = Stop(grace_seconds=10)
        asked = [asyncio.create_task(tries.ask(Slow(), b"x", stop)) for _ in range(12)]  # type: ignore[arg-type]
        await settle()
        assert most == [4]
        most[0] = 0
        stop.set("cancelled")
        deadline.set()
        await asyncio.gather(*asked)
        stop = Stop(grace_seconds=10)
        asked = [asyncio.create_task(tries.ask(Slow(), b"x", stop)) for _ in range(2)]  # type: ignore[arg-type]
        await settle()
        assert most[0] == 1
        for task in asked:
            task.cancel()

    asyncio.run(test())


def test_batches_alternate() -> None:
    async def test() -> None:
        slots, done = Slots(1), []

        async def enter_as(name: str, batch: Stop) -> None:
            async with slots.place(slots.take_turn(batch)):
                done.append(name)

        async def come(names: str, batch: Stop) -> None:
            waiting.extend(asyncio.create_task(enter_as(name, batch)) for name in names)
            await settle()

        waiting: list[asyncio.Task[None]] = []
        async with slots.place(slots.take_turn(ONE)):
            await come("abcdef", ONE)
            await come("xy", Stop(grace_seconds=10))
        await asyncio.gather(*waiting)
        assert "".join(done) == "axbycdef"
        # who comes later claims nothing for the time before
        async with slots.place(slots.take_turn(ONE)):
            await come("gh", ONE)
            await come("xyz", Stop(grace_seconds=10))
        await asyncio.gather(*waiting)
        assert "".join(done[8:]) == "gxhyz"

    asyncio.run(test())


def test_who_gives_up_waiting_leaves_no_place_taken() -> None:
    async def test() -> None:
        slots = Slots(1)
        async with slots.place(slots.take_turn(ONE)):
            waiting = [asyncio.create_task(enter(slots)) for _ in range(3)]
            await settle()
            waiting[0].cancel()
            await settle()
        waiting[1].cancel()  # it has been let in and has not noticed yet
        await asyncio.gather(*waiting, return_exceptions=True)
        assert [task.cancelled() for task in waiting] == [True, True, False]
        assert slots.under_way == 0
        async with slots.place(slots.take_turn(ONE)):
            assert slots.under_way == 1

    asyncio.run(test())

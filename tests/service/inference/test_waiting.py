"""Who waits for a text beside rows that nobody waits for: places, pace, the same texts."""

import math

from inference.runner import Asked, Settler
from inference.scheduler import Scheduler
from inference.shares import background_of
from inference.tickets import Lane, Ticket, Work
from inference.writers import Writers
from peft_engine.bases.base import Base
from peft_engine.serving import Engine, Row, prepare_row
from tests.service.inference.conftest import Process

ROWS = 40


def test_what_nobody_waits_for_leaves_places_and_nine_of_ten_steps(
    process: Process, tiny_bases: dict[str, Base]
) -> None:
    base = tiny_bases["llama"]
    engine, scheduler = Engine(base), Scheduler(max_rows=100)
    writers = Writers(scheduler, Settler(scheduler, process.parts.bank), lambda: [engine])
    row = prepare_row(base, Row(None, "my card", None, {"max_new_tokens": 40}))

    def ask(count: int, tenant: str) -> Ticket:
        lane, asked = Lane("llama", "generation"), Asked(row, engine, None, None)
        works = [Work(place, lane, 50, asked) for place in range(count)]
        return scheduler.submit(works, deadline=math.inf, tenant=tenant)

    nobodys = ask(ROWS, background_of("one"))
    writers.step()
    assert len(engine.writer.open) == engine.writer.most_rows // 2
    somebodys = ask(1, "one")
    while not somebodys.answers.done():
        writers.step()
    (answered,) = somebodys.answers.result()
    written = answered.answer.output["tokens"]
    assert written >= 20
    assert 1 <= max(own.output_tokens for own in engine.writer.open) <= written / 10 + 2
    while not nobodys.answers.done():
        writers.step()
    outputs = [own.answer.output for own in nobodys.answers.result()]
    assert outputs == [answered.answer.output] * ROWS

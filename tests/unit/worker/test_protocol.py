import pytest

from worker.protocol import (
    Alive,
    Control,
    Ended,
    Failure,
    Measure,
    Message,
    Outcome,
    Ready,
    Room,
    Run,
    Wish,
    decode,
    encode,
)

MESSAGES: list[Message] = [
    Run(job_id="job_1", attempt=3),
    Measure(estimate_id="est_1", attempt=2),
    Control(job_id="job_1", attempt=3, wish=Wish.DRAIN),
    Ready(pid=7),
    Alive(ticks=11),
    Room(jobs=3),
    Ended(job_id="job_1", attempt=3, outcome=Outcome.SUCCEEDED),
    Ended("job_1", 3, Outcome.FAILED, Failure("bad\ncode", "line\nfeed ü", None, retry=True)),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: Message) -> None:
    line = encode(message)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    decoded = decode(line)
    assert decoded == message
    assert type(decoded) is type(message)


@pytest.mark.parametrize(
    "line", [b'{"type":"exec","pid":1}\n', b'{"pid":1}\n', b"loading weights\n"]
)
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 json's own error is a ValueError too
        decode(line)

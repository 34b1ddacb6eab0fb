import time

from hypothesis import given
from hypothesis import strategies as st

from core.ids import ALPHABET, ID_LENGTH, new_id


def test_ids_of_one_process_are_unique_and_in_the_order_of_their_creation() -> None:
    ids = [new_id("job") for _ in range(20_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


@given(st.sampled_from(["job", "ds", "adp", "key"]))
def test_an_id_is_its_prefix_and_26_characters(prefix: str) -> None:
    head, tail = new_id(prefix).split("_")
    assert head == prefix
    assert len(tail) == ID_LENGTH
    assert set(tail) <= set(ALPHABET)


def test_an_id_begins_with_the_time_in_milliseconds() -> None:
    before = time.time_ns() // 1_000_000
    tail = new_id("x").split("_")[1]
    after = time.time_ns() // 1_000_000
    # 26 characters hold 130 bits: two zeros, 48 of time, 80 below
    value = 0
    for character in tail:
        value = value * 32 + ALPHABET.index(character)
    assert before <= value >> 80 <= after


def test_half_of_an_id_cannot_be_guessed() -> None:
    tails = {new_id("x")[-13:] for _ in range(1000)}
    assert len(tails) == 1000

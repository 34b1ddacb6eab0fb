from inference.uses import Uses


def test_requests_are_counted_by_adapter_until_they_end() -> None:
    uses = Uses()
    uses.begin({"a", "b"})
    uses.begin({"a"})
    assert [uses.count(name) for name in "abc"] == [2, 1, 0]
    uses.end({"a", "b"})
    assert [uses.count(name) for name in "abc"] == [1, 0, 0]
    uses.end({"a"})
    uses.end(set())
    assert uses.count("a") == 0

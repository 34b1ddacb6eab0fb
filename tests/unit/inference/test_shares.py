"""Whose rows come next where somebody waits for some and nobody for others."""

from collections import Counter

import pytest

from inference.shares import Shares, background_of


def turns(shares: Shares, tenants: list[str], count: int) -> Counter[str]:
    """Who had a turn, where all wait and each turn costs the same."""
    taken: Counter[str] = Counter()
    for _ in range(count):
        tenant = shares.in_turn(tenants)[0]
        shares.charge(tenant, 10)
        taken[tenant] += 1
    return taken


@pytest.mark.parametrize("weights", [{}, {"ten_a": 3.0}])
def test_what_nobody_waits_for_gets_a_tenth(weights: dict[str, float]) -> None:
    quiet = background_of("ten_a")
    taken = turns(Shares(weights), ["ten_a", quiet], 1100)
    assert taken["ten_a"] == pytest.approx(1000, abs=2)
    assert taken[quiet] == pytest.approx(100, abs=2)


def test_it_has_everything_where_nobody_waits() -> None:
    quiet = background_of("ten_a")
    assert turns(Shares({}), [quiet], 7) == {quiet: 7}


def test_another_tenant_is_not_held_up_by_it() -> None:
    taken = turns(Shares({}), [background_of("ten_a"), "ten_b"], 110)
    assert taken["ten_b"] == pytest.approx(100, abs=2)

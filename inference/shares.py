"""Fair shares: whose rows come next, by how many tokens each tenant has had.

Every tenant has a counter of tokens that were computed for it, divided by its weight; the next row
is that of the waiting tenant with the lowest counter. A tenant that comes back from idle starts at
the lowest counter of those that wait, so that nobody saves up a claim while away.

Source: Sheng et al. 2024, "Fairness in Serving Large Language Models" (virtual token counter),
arXiv 2401.00588, algorithm 2.
"""

from collections.abc import Collection, Mapping

BACKGROUND_WEIGHT = 0.1
"""Share of what nobody waits for, relative to the same tenant's rows that somebody waits for: where
both wait, the latter get ten tokens of eleven. Never nothing, or a batch would not end."""

_BACKGROUND = "/background"
"""No id of a tenant has a slash."""

_KEPT_TENANTS = 10_000
"""Counters of tenants without rows are only kept to order those that come back at once."""


class Shares:
    """Counters of tenants; used under the scheduler's lock.

    Args:
        weights: Share of a tenant relative to 1; those not named have 1.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        self._served: dict[str, float] = {}

    def arrive(self, tenant: str, waiting: Collection[str], *, unused: Mapping[str, float]) -> None:
        """Note that a tenant without waiting rows has some now.

        Args:
            tenant: The tenant.
            waiting: Tenants with waiting rows before it came.
            unused: What tenants were charged for rows that still run and has not been computed:
                who comes must not wait for what is given back to the others.
        """

        def computed(other: str) -> float:
            return self._served.get(other, 0.0) - unused.get(other, 0.0) / self._weight(other)

        if waiting:
            level = min(map(computed, waiting))
        else:
            level = max(map(computed, self._served), default=0.0)
        if len(self._served) >= _KEPT_TENANTS:
            kept = {*waiting, *unused}
            self._served = {other: self._served.get(other, 0.0) for other in kept}
        risen = max(level - computed(tenant), 0.0)
        self._served[tenant] = self._served.get(tenant, 0.0) + risen

    def charge(self, tenant: str, tokens: float) -> None:
        """Note what was, or will be, computed for a tenant.

        Args:
            tenant: The tenant.
            tokens: How many; negative gives back what was charged too much.
        """
        self._served[tenant] = self._served.get(tenant, 0.0) + tokens / self._weight(tenant)

    def in_turn(self, tenants: Collection[str]) -> list[str]:
        """Order tenants: who has had least comes first.

        Args:
            tenants: Tenants in order of arrival, which decides between equals.

        Returns:
            The same, in the order of their turns; of equals, those that somebody waits for first:
            who comes is raised to what waits, and that may be a batch alone.
        """
        return sorted(tenants, key=lambda own: (self._served.get(own, 0.0), is_background(own)))

    def _weight(self, tenant: str) -> float:
        own = self._weights.get(tenant.removesuffix(_BACKGROUND), 1.0)
        return own * BACKGROUND_WEIGHT if is_background(tenant) else own


def background_of(tenant: str) -> str:
    """Name the share of a tenant's rows that nobody waits for.

    Args:
        tenant: The tenant.

    Returns:
        What stands for it where a tenant is named.
    """
    return f"{tenant}{_BACKGROUND}"


def is_background(tenant: str) -> bool:
    """Tell whether nobody waits for rows.

    Args:
        tenant: Whose rows they are.

    Returns:
        True for a name from ``background_of``.
    """
    return tenant.endswith(_BACKGROUND)

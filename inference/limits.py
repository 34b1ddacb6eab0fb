"""How much goes into one micro-batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from inference.tickets import Family


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Bounds of one micro-batch; ``tokens`` counts padding (rows times the longest row)."""

    rows: int
    tokens: int

    def for_background(self) -> "LaneLimits":
        """Bounds of a batch that nobody waits for; who comes meanwhile waits for its end."""
        return LaneLimits(max(self.rows // 4, 1), max(self.tokens // 8, 1))


# On a CPU, forwards beyond about a thousand tokens are slower per token than two smaller ones.
DEFAULT_LIMITS: Mapping[Family, LaneLimits] = MappingProxyType(
    {"encoder": LaneLimits(rows=32, tokens=1024)}
)

# An accelerator wants more rows and tokens at once than a CPU before it is busy.
ACCELERATOR_LIMITS: Mapping[Family, LaneLimits] = MappingProxyType(
    {"encoder": LaneLimits(rows=256, tokens=32_768)}
)

"""Base models that stay loaded between jobs, so that the next job's first step comes at once.

Bases are frozen: training never changes one, so a cached base equals a fresh one. Used by the one
training thread of a trainer child.
"""

import logging
from collections import OrderedDict

from peft_engine.compression.watch import UNWATCHED, Watch
from worker.engine import LoadedBase, TrainerEngine

_log = logging.getLogger(__name__)

# Two: the demo's encoder and a small causal model, or one base in two precisions. More would only
# take memory from the job that runs.
DEFAULT_CAPACITY = 2


class BaseCache:
    """Least recently used bases, by name and precision."""

    def __init__(self, engine: TrainerEngine, capacity: int = DEFAULT_CAPACITY) -> None:
        """Make an empty cache.

        Args:
            engine: Loads what is missing.
            capacity: Most bases kept at a time, at least 1.
        """
        self._engine = engine
        self._capacity = capacity
        self._bases: OrderedDict[tuple[str, str], LoadedBase] = OrderedDict()

    def get(self, name: str, precision: str, watch: Watch = UNWATCHED) -> LoadedBase:
        """Return a base, loaded if it must be.

        Args:
            name: Name in the settings' ``base_models``, perhaps with a derivation.
            precision: ``auto``, ``fp32`` or ``bf16``.
            watch: Told of each part of a derivation; may end it by raising.

        Returns:
            The base; the same object until it is put out.
        """
        key = (name, precision)
        base = self._bases.get(key)
        if base is None:
            while len(self._bases) >= self._capacity:
                self._put_out_oldest()
            base = self._load(name, precision, watch)
            self._bases[key] = base
        self._bases.move_to_end(key)
        return base

    def _load(self, name: str, precision: str, watch: Watch) -> LoadedBase:
        try:
            return self._engine.load_base(name, precision, watch)
        except MemoryError:
            if not self._bases:
                raise
        # What other jobs left warm must not be the reason why this one fails.
        while self._bases:
            self._put_out_oldest()
        return self._engine.load_base(name, precision, watch)

    def _put_out_oldest(self) -> None:
        name, precision = next(iter(self._bases))
        # Not held by any name here: what is still referred to cannot be given back.
        del self._bases[name, precision]
        self._engine.tidy()
        _log.info("base %s (%s) put out of the cache", name, precision)

"""What the collector of cycles no longer looks at."""

import gc
import weakref

from core.heap import freeze_heap


class Cycle:
    """An object that only a collection frees."""

    def __init__(self) -> None:
        self.itself = self


def test_what_is_alive_is_frozen_and_what_is_garbage_is_freed_first() -> None:
    alive, garbage = Cycle(), weakref.ref(Cycle())
    try:
        freeze_heap()
        assert garbage() is None
        assert not any(found is alive for found in gc.get_objects())
    finally:
        gc.unfreeze()
    assert any(found is alive for found in gc.get_objects())

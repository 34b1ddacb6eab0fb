"""Objects of storage in host memory, bounded in bytes: what a delta is made of once more.

Knows no lock; whoever has it holds one.
"""

from collections import OrderedDict


class Objects:
    """The objects that were used last.

    Args:
        bound: Bytes of all of them together; 0 keeps none.

    Attributes:
        bytes: Of those that are kept.
    """

    def __init__(self, bound: int) -> None:
        self.bytes = 0
        self._bound = bound
        self._kept: OrderedDict[str, memoryview] = OrderedDict()  # unused longest first

    def get(self, digest: str) -> memoryview | None:
        """Find an object.

        Args:
            digest: Of its delta.

        Returns:
            The object, or None.
        """
        return self._kept.get(digest)

    def keep(self, digest: str, blob: memoryview) -> None:
        """Keep an object, as the one that was used last, in the place of those unused longest.

        Args:
            digest: Of its delta.
            blob: The object.
        """
        self.drop(digest)
        self._kept[digest] = blob
        self.bytes += len(blob)
        while self.bytes > self._bound:
            _, dropped = self._kept.popitem(last=False)
            self.bytes -= len(dropped)

    def drop(self, digest: str) -> None:
        """Keep an object no longer; one that is not there is ignored.

        Args:
            digest: Of its delta.
        """
        self.bytes -= len(self._kept.pop(digest, b""))

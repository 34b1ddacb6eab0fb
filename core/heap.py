"""The interpreter's collector of cycles, in a process whose pauses somebody waits for."""

import gc


def freeze_heap() -> None:
    """Take what is alive now out of the collector's sight.

    Libraries, and the bases of an inference process, are 150,000 to 400,000 objects that live as
    long as the process. A full collection looks at each of them, for 0.1 to 0.2 s in which no other
    thread runs Python; many small objects, such as the hundreds of tensors of an adapter that is
    loaded, bring one about now and then. Called once, when a process has started and before
    anybody waits.

    Source: ``gc.freeze`` in Python's manual; Instagram Engineering, "Copy-on-write friendly Python
    garbage collection", 2017.
    """
    gc.collect()
    gc.freeze()

from itertools import pairwise

import pytest

from app.services.datasets import _lines_after
from core.storage import nearest_mark
from core.storage.splits import Mark, marking

ROWS = [b"{}", b'{"text": "a"}', b"", b'{"text": "' + b"b" * 40 + b'"}', b"[]"]


@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 1000])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_rows_are_read_from_any_place_in_pieces_of_any_size(piece_bytes: int, end: bytes) -> None:
    content = b"\n".join(ROWS) + end
    for after in range(len(ROWS) + 2):
        pieces = (
            content[start : start + piece_bytes] for start in range(0, len(content), piece_bytes)
        )
        assert list(_lines_after(pieces, after)) == ROWS[after:]


@pytest.mark.parametrize("piece_bytes", [1, 2, 7, 1000])
@pytest.mark.parametrize("every_bytes", [1, 5, 30, 1000])
def test_rows_are_read_from_the_nearest_mark(piece_bytes: int, every_bytes: int) -> None:
    content = b"\n".join(ROWS) + b"\n"

    def pieces(content: bytes) -> list[bytes]:
        return [content[at : at + piece_bytes] for at in range(0, len(content), piece_bytes)]

    marks: list[Mark] = []
    assert b"".join(marking(pieces(content), marks, every_bytes=every_bytes)) == content
    assert bool(marks) == (every_bytes < len(content))
    for after in range(len(ROWS)):
        row, byte = nearest_mark({"marks": marks}, after)
        assert row <= after
        assert list(_lines_after(iter(pieces(content[byte:])), after - row)) == ROWS[after:]
    starts = [byte for _, byte in marks]
    assert all(later - earlier > every_bytes for earlier, later in pairwise([0, *starts]))

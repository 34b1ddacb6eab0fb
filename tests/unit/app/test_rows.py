import pytest

from app.services.datasets import _lines_after

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

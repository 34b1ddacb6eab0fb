"""The form receiver: any cut of the bytes gives the same form, and every fault is told."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.services.multipart import (
    MAX_FIELD_BYTES,
    MAX_FIELDS,
    Form,
    FormReceiver,
    boundary_of,
    display_name,
)
from core.errors import BadInput, ServiceError, TooLarge, UnsupportedMedia

FILE = b'{"text": "a"}\r\n--a not a boundary\r\n-b\r\r\n{"text": "b"}\n'
BODY = (
    b"--b\r\n"
    b'Content-Disposition: form-data; name="name"\r\n\r\nmy set\r\n'
    b"--b\r\n"
    b'Content-Disposition: form-data; name="file"; filename="a.jsonl"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n" + FILE + b"\r\n--b--\r\n"
)


def receive(
    folder: Path, pieces: Iterator[bytes] | list[bytes], *, max_bytes: int = 10_000_000
) -> Form:
    receiver = FormReceiver(
        b"b", folder=folder, file_fields=frozenset({"file"}), max_bytes=max_bytes
    )
    try:
        for piece in pieces:
            receiver.feed(piece)
        return receiver.close()
    finally:
        receiver.abandon()


def part(name: str, content: bytes, *, filename: str | None = None) -> bytes:
    named = f'; filename="{filename}"' if filename is not None else ""
    head = f'--b\r\nContent-Disposition: form-data; name="{name}"{named}\r\n\r\n'
    return head.encode() + content + b"\r\n"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, len(BODY)), max_size=12))
def test_any_cut_gives_the_same_form(tmp_path: Path, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(BODY)]
    form = receive(tmp_path, [BODY[a:b] for a, b in pairwise(edges)])
    assert form.fields == {"name": "my set"}
    file = form.files["file"]
    assert file.path.read_bytes() == FILE
    assert (file.filename, file.bytes) == ("a.jsonl", len(FILE))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(end=st.integers(0, len(BODY) - 5))
def test_a_form_that_is_cut_off_is_never_taken(tmp_path: Path, end: int) -> None:
    with pytest.raises(BadInput):
        receive(tmp_path, [BODY[:end]])


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300))
def test_any_bytes_are_a_form_or_a_clear_error(tmp_path: Path, body: bytes) -> None:
    status = 200
    try:
        receive(tmp_path, [body])
    except ServiceError as error:
        status = error.status
    assert status in {200, 400}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (part("a", b"1") + part("a", b"2"), "two parts"),
        (part("file", b"1") + part("file", b"2"), "two parts"),
        (part("other", b"1", filename="x"), "cannot carry a file"),
        (part("a", b"\xff"), "UTF-8"),
        (b"--b\r\nContent-Type: text/plain\r\n\r\nx\r\n", "no name"),
        (b"".join(part(f"f{place}", b"") for place in range(MAX_FIELDS + 1)), "more than"),
        (b"nonsense", "malformed"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, body: bytes, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        receive(tmp_path, [body + b"--b--\r\n"])


def test_limits(tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="a"):
        receive(tmp_path, [part("a", b"x" * (MAX_FIELD_BYTES + 1))])
    with pytest.raises(TooLarge, match="100 bytes"):
        receive(tmp_path, [part("file", b"x" * 200)], max_bytes=100)


def test_files_never_leave_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    form = receive(folder, [part("file", b"x", filename="../../evil") + b"--b--\r\n"])
    assert form.files["file"].path.parent == folder
    assert form.files["file"].filename == "evil"
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a.jsonl", "a.jsonl"),
        ("../../x.jsonl", "x.jsonl"),
        ("C:\\dir\\x.csv", "x.csv"),
        ("..", ""),
        ("", ""),
        ("a\0b\nc.csv", "abc.csv"),
        ("ü 😀.csv", "ü 😀.csv"),
        ("\u202egnp.csv", "gnp.csv"),
        ("x" * 400, "x" * 255),
    ],
)
def test_names_are_only_for_display(given: str, shown: str) -> None:
    assert display_name(given) == shown


def test_the_boundary() -> None:
    fields = {"data"}
    assert boundary_of('multipart/form-data; boundary="a b"', file_fields=fields) == b"a b"
    with pytest.raises(UnsupportedMedia, match="a part named data"):
        boundary_of("text/csv", file_fields=fields)
    with pytest.raises(BadInput):
        boundary_of("multipart/form-data", file_fields=fields)
    with pytest.raises(BadInput):
        FormReceiver(b"x" * 300, folder=Path(), file_fields=frozenset(), max_bytes=1)

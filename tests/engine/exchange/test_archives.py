"""Zips of strangers: what is unpacked, and what is not. Tars: over HTTP, in ``test_exchange``."""

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from peft_engine.exchange.archives import pack, unpack
from peft_engine.exchange.findings import Findings

LIMIT = 40 << 20


def put(archive: zipfile.ZipFile, name: str, content: bytes = b"{}", *, mode: int = 0) -> None:
    entry = zipfile.ZipInfo(name)
    entry.external_attr = mode << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)


def unpacked(path: Path, folder: Path) -> list[str]:
    found = Findings()
    folder.mkdir()
    unpack(path, folder, max_bytes=LIMIT, found=found)
    return [problem.message for problem in found.problems]


ATTACKS: dict[str, tuple[Callable[[zipfile.ZipFile], None], str]] = {
    "outside": (lambda a: put(a, "../out.json"), "leads out"),
    "absolute": (lambda a: put(a, "/out.json"), "leads out"),
    "backslash": (lambda a: put(a, "..\\out.json"), "leads out"),
    "deep": (lambda a: put(a, "a/b/c/d/e.json"), "leads out"),
    "link": (lambda a: put(a, "x.json", b"/etc/hostname", mode=stat.S_IFLNK | 0o777), "is a link"),
    "device": (lambda a: put(a, "x.json", mode=stat.S_IFCHR | 0o600), "is a link"),
    "bomb": (lambda a: put(a, "x.json", bytes(30 << 20)), "more bytes"),
    "twice": (lambda a: [put(a, "x.json") for _ in range(2)] and None, "stands twice"),
    "crowd": (lambda a: [put(a, f"{n}.json") for n in range(201)] and None, "more than 200"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", ATTACKS)
def test_what_is_not_unpacked(case: str, tmp_path: Path) -> None:
    attack, message = ATTACKS[case]
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        attack(archive)
    (told,) = unpacked(tmp_path / "x.zip", tmp_path / "inside")
    assert message in told
    assert not list(tmp_path.glob("out*"))
    assert not [path for path in (tmp_path / "inside").rglob("*") if path.is_symlink()]


def test_what_is_packed_comes_back_and_has_no_clock(tmp_path: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.json").write_text("{}")
    (files / "b.safetensors").write_bytes(bytes(range(256)))
    pack(files, tmp_path / "one.zip")
    (files / "a.json").touch()
    pack(files, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert unpacked(tmp_path / "one.zip", tmp_path / "back") == []
    assert {p.name: p.read_bytes() for p in (tmp_path / "back").iterdir()} == {
        p.name: p.read_bytes() for p in files.iterdir()
    }


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_what_is_no_archive(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content)
    assert len(unpacked(tmp_path / "x", tmp_path / "inside")) == 1

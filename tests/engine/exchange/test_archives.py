"""Archives of strangers: what is unpacked, and what is not. More tars: in ``test_exchange``."""

import gzip
import io
import random
import resource
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

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


def zipped(method: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("adapter_config.json", b'{"a": 1}' * 200)
        archive.writestr("adapter_model.safetensors", random.Random(0).randbytes(3000))
    return buffer.getvalue()


def tarred(mode: Literal["w:gz", "w:bz2", "w:xz"]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in (("a.json", b"{}"), ("b.bin", random.Random(0).randbytes(3000))):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


KINDS: dict[str, Callable[[], bytes]] = {
    "deflated": lambda: zipped(zipfile.ZIP_DEFLATED),
    "bzip2": lambda: zipped(zipfile.ZIP_BZIP2),
    "lzma": lambda: zipped(zipfile.ZIP_LZMA),
    "tar.gz": lambda: tarred("w:gz"),
    "tar.bz2": lambda: tarred("w:bz2"),
    "tar.xz": lambda: tarred("w:xz"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_archives_are_told(kind: str, tmp_path: Path) -> None:
    """Also where a decompressor, and not its archive's reader, finds the damage."""
    whole, dice = KINDS[kind](), random.Random(1)
    (tmp_path / "whole").write_bytes(whole)
    assert unpacked(tmp_path / "whole", tmp_path / "inside") == []
    for number in range(150):
        damaged = bytearray(whole)
        for _ in range(dice.randrange(1, 20)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        (tmp_path / "x").write_bytes(damaged[: dice.choice((len(whole), dice.randrange(9999)))])
        assert len(unpacked(tmp_path / "x", tmp_path / str(number))) <= 1


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_of_tars_are_not_read_at_any_length(kind: bytes, tmp_path: Path) -> None:
    """Three megabytes of archive may hold gigabytes, and a name is read at once."""
    entry = tarfile.TarInfo("x")
    entry.type, entry.size = kind, 64 << 20
    with gzip.open(tmp_path / "x", "wb") as archive:
        archive.write(entry.tobuf(tarfile.GNU_FORMAT) + bytes(entry.size))
    tracemalloc.start()
    (told,) = unpacked(tmp_path / "x", tmp_path / "inside")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "is no whole zip" in told
    assert peak < 8 << 20


def test_lists_of_zips_are_not_read_at_any_length(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        for number in range(3000):
            put(archive, f"{number:0400}.json")
    (told,) = unpacked(tmp_path / "x", tmp_path / "inside")
    assert "ReadError" in told


def test_a_full_disk_is_no_fault_of_the_archive(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(zipped(zipfile.ZIP_DEFLATED))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            unpacked(tmp_path / "x", tmp_path / "inside")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

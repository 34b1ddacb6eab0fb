"""One contract, two stores."""

import ctypes
import hashlib
import itertools
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from core.errors import BadInput, Conflict, NotFound, TooLarge, Unavailable
from core.settings import Settings, child_environment, load_settings
from core.storage import ObjectStore, Stored, open_store
from tests.service.core.world import at_once
from tests.service.servers.processes import free_port
from tests.service.servers.s3 import S3Server

ROOT = Path(__file__).parents[3]
MIB = 1024 * 1024


def _stored(key: str, data: bytes) -> Stored:
    return Stored(key, len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("size", [0, 1, 1000, 3 * MIB])
def test_what_is_put_is_got(object_store: ObjectStore, size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert object_store.put_bytes("a/b.bin", data) == _stored("a/b.bin", data)
    assert object_store.get_bytes("a/b.bin") == data
    for asked in (0, 5, size + 7):
        heads = []

        def aligned(head: bytes, asked: int = asked, heads: list[bytes] = heads) -> int:
            heads.append(head)
            return asked

        buffer = object_store.get_buffer("a/b.bin", most_bytes=size, aligned=aligned)
        assert buffer == data
        assert heads == [data[:8]]
        if size:
            address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
            assert (address + asked) % 64 == 0
    assert b"".join(object_store.stream("a/b.bin")) == data
    assert object_store.exists("a/b.bin")


@pytest.mark.parametrize("pieces", [[], [b""], [b"a", b"", b"bc"], [b"x" * 700_000] * 30])
def test_streams_of_any_cut_are_stored_whole(
    object_store: ObjectStore, pieces: list[bytes]
) -> None:
    whole = b"".join(pieces)
    assert object_store.put_stream("s", iter(pieces)) == _stored("s", whole)
    assert object_store.get_bytes("s") == whole


def test_objects_are_joined_into_one(object_store: ObjectStore) -> None:
    pieces = [b"", b"a" * 10, b"b" * 9 * MIB, b"c"]
    for place, piece in enumerate(pieces):
        object_store.put_bytes(f"p/{place}", piece)
    keys = list(object_store.list("p"))
    joined = itertools.chain.from_iterable(map(object_store.stream, keys))
    assert object_store.put_stream("whole", joined) == _stored("whole", b"".join(pieces))
    assert object_store.get_bytes("whole") == b"".join(pieces)
    with pytest.raises(NotFound):
        object_store.put_stream(
            "other", (b for key in ["p/1", "none"] for b in object_store.stream(key))
        )
    assert not object_store.exists("other")


def test_an_object_that_is_larger_than_wanted_is_not_read(object_store: ObjectStore) -> None:
    object_store.put_bytes("k", b"12345")
    with pytest.raises(TooLarge, match="5 bytes"):
        object_store.get_buffer("k", most_bytes=4)


def test_pieces_are_no_larger_than_asked(object_store: ObjectStore) -> None:
    data = random.Random(1).randbytes(2_500_000)
    object_store.put_bytes("k", data)
    pieces = list(object_store.stream("k", 100_000))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 100_000
    assert all(isinstance(piece, bytes) for piece in pieces)
    for start in (1, 99_999, len(data) - 1):
        assert b"".join(object_store.stream("k", 100_000, from_byte=start)) == data[start:]


@pytest.mark.parametrize("before", [None, b"old"])
@pytest.mark.parametrize("size", [10, 20 * MIB])
def test_a_stream_that_breaks_leaves_everything_as_it_was(
    object_store: ObjectStore, before: bytes | None, size: int
) -> None:
    def broken() -> Iterator[bytes]:
        for _ in range(size // (10 if size < MIB else MIB)):
            yield b"x" * min(size, MIB)
        raise ZeroDivisionError("the client went away")

    if before is not None:
        object_store.put_bytes("d/k", before)
    with pytest.raises(ZeroDivisionError, match="went away"):
        object_store.put_stream("d/k", broken())
    assert list(object_store.list("")) == ([] if before is None else ["d/k"])
    if before is not None:
        assert object_store.get_bytes("d/k") == before
    else:
        assert not object_store.exists("d/k")


def test_a_broken_stream_leaves_no_bytes_behind(
    directory_settings: Settings, s3_settings: Settings, s3_server: S3Server
) -> None:
    def broken() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * MIB
        raise ZeroDivisionError

    for settings in (directory_settings, s3_settings):
        with pytest.raises(ZeroDivisionError):
            open_store(settings).put_stream("k", broken())
    folder = directory_settings.data_dir / "objects"
    assert [path for path in folder.rglob("*") if path.is_file()] == []
    bucket = s3_settings.storage_url.split("/")[2]
    uploads = s3_server.client().list_multipart_uploads(Bucket=bucket)
    assert uploads.get("Uploads", []) == []


KILLED = """
import os, signal
from core.settings import load_settings
from core.storage import open_store
def half():
    for _ in range(12):
        yield b"x" * 1024 * 1024
    os.kill(os.getpid(), signal.SIGKILL)
    yield b""
open_store(load_settings()).put_stream("d/k", half())
"""


def test_a_process_that_is_killed_while_it_writes_leaves_nothing_to_see(
    storage_settings: Settings,
) -> None:
    store = open_store(storage_settings)
    store.put_bytes("d/other", b"1")
    result = subprocess.run(
        [sys.executable, "-c", KILLED],
        cwd=ROOT,
        env=child_environment(storage_settings),
        check=False,
    )
    assert result.returncode == -signal.SIGKILL
    assert list(store.list("")) == ["d/other"]
    assert not store.exists("d/k")
    store.put_bytes("d/k", b"2")
    assert list(store.list("d")) == ["d/k", "d/other"]


def test_put_new_creates_and_never_replaces(object_store: ObjectStore) -> None:
    assert object_store.put_new("n/k", b"first") == _stored("n/k", b"first")
    assert object_store.put_new("n/k", b"first") == _stored("n/k", b"first")
    with pytest.raises(Conflict) as caught:
        object_store.put_new("n/k", b"other")
    assert caught.value.code == "object_exists"
    assert object_store.get_bytes("n/k") == b"first"
    assert list(object_store.list("n")) == ["n/k"]


def test_of_many_that_put_new_at_once_one_wins(object_store: ObjectStore) -> None:
    def put(number: int) -> bytes | None:
        data = b"%d" % number
        try:
            object_store.put_new("race", data)
        except Conflict:
            return None
        return data

    winners = [data for data in at_once(put, list(range(8))) if data is not None]
    assert winners == [object_store.get_bytes("race")]


def test_what_is_missing_is_told_so_and_deleted_without_error(
    object_store: ObjectStore, tmp_path: Path
) -> None:
    assert not object_store.exists("no/such")
    target = tmp_path / "target" / "file"
    for act in (
        lambda: object_store.get_bytes("no/such"),
        lambda: object_store.get_buffer("no/such", most_bytes=9),
        lambda: object_store.stream("no/such"),
        lambda: object_store.fetch_to("no/such", target),
    ):
        with pytest.raises(NotFound) as caught:
            act()
        assert caught.value.code == "object_not_found"
    assert not target.exists()
    object_store.delete("no/such")
    object_store.put_bytes("k", b"x")
    object_store.delete("k")
    object_store.delete("k")
    assert not object_store.exists("k")


def test_a_folder_is_no_object(object_store: ObjectStore) -> None:
    object_store.put_bytes("a/b/c", b"x")
    assert not object_store.exists("a/b")
    with pytest.raises((NotFound, Unavailable)):
        object_store.get_bytes("a/b")
    assert list(object_store.list("a/b/c/d")) == []


def test_lists_are_sorted_and_know_folders(object_store: ObjectStore) -> None:
    keys = ["a/1", "a/10", "a/2", "a/b/c", "ab/1", "z"]
    for key in reversed(keys):
        object_store.put_bytes(key, b"x")
    assert list(object_store.list("")) == sorted(keys)
    assert list(object_store.list("a")) == ["a/1", "a/10", "a/2", "a/b/c"]
    assert list(object_store.list("a/")) == ["a/1", "a/10", "a/2", "a/b/c"]
    assert list(object_store.list("none")) == []


@pytest.mark.parametrize("key", ["../x", "/x", "a/../../x", "a/..", "", ".part-x", "a//b"])
def test_no_key_leads_out(object_store: ObjectStore, key: str, tmp_path: Path) -> None:
    acts = [
        lambda: object_store.put_bytes(key, b"x"),
        lambda: object_store.put_stream(key, [b"x"]),
        lambda: object_store.put_new(key, b"x"),
        lambda: object_store.get_bytes(key),
        lambda: object_store.get_buffer(key, most_bytes=9),
        lambda: object_store.stream(key),
        lambda: object_store.exists(key),
        lambda: object_store.delete(key),
        lambda: object_store.fetch_to(key, tmp_path / "t"),
    ]
    if key:
        acts.append(lambda: list(object_store.list(key)))
    for act in acts:
        with pytest.raises(BadInput) as caught:
            act()
        assert caught.value.code == "invalid_key"


def test_readers_see_one_version_while_writers_overwrite(object_store: ObjectStore) -> None:
    versions = [bytes([number]) * (MIB + number) for number in range(4)]
    object_store.put_bytes("hot", versions[0])
    done = Event()

    def work(number: int) -> int:
        if number < 2:
            for turn in range(8):
                object_store.put_stream("hot", [versions[number * 2 + turn % 2]])
            done.set()
            return 0
        reads = 0
        while not done.is_set() or reads == 0:
            data = (
                object_store.get_bytes("hot")
                if reads % 2
                else b"".join(object_store.stream("hot", 100_000))
            )
            assert data == versions[data[0]]
            reads += 1
        return reads

    assert min(at_once(work, list(range(5)))[2:]) > 0


def test_fetch_to_makes_a_whole_local_file(object_store: ObjectStore, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(2 * MIB)
    object_store.put_bytes("d/k", data)
    target = tmp_path / "new" / "folder" / "file"
    assert object_store.fetch_to("d/k", target) == _stored("d/k", data)
    assert target.read_bytes() == data
    object_store.put_bytes("d/k", b"short")
    object_store.fetch_to("d/k", target)
    assert target.read_bytes() == b"short"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


FULL = """
import resource, sys
from core.errors import ServiceError
from core.settings import load_settings
from core.storage import open_store
store = open_store(load_settings())
store.put_bytes("d/k", b"old")
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for put in (
    lambda: store.put_bytes("d/k", b"x" * 200_000),
    lambda: store.put_stream("e/new", iter([b"x" * 60_000] * 3)),
    lambda: store.put_new("f/g/new", b"x" * 200_000),
):
    try:
        put()
    except ServiceError as error:
        print(error.code, error.status)
print(store.get_bytes("d/k"), list(store.list("")))
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 100_000))
try:
    store.ping()
except ServiceError as error:
    print(error.code, error.status)
"""


def test_a_full_disk_is_told_apart_and_nothing_is_lost(directory_settings: Settings) -> None:
    result = subprocess.run(
        [sys.executable, "-c", FULL],
        cwd=ROOT,
        env=child_environment(directory_settings),
        check=True,
        capture_output=True,
        text=True,
    )
    assert result.stdout.splitlines() == [
        *["storage_full 503"] * 3,
        "b'old' ['d/k']",
        "storage_full 503",
    ]
    objects = directory_settings.data_dir / "objects"
    assert {path.relative_to(objects).as_posix() for path in objects.rglob("*")} == {"d", "d/k"}


def test_ping(object_store: ObjectStore) -> None:
    object_store.ping()


def test_a_store_that_is_away_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    stores = [
        open_store(load_settings(storage_url=f"file://{tmp_path}/file/objects")),
        open_store(
            load_settings(
                storage_url="s3://bucket/prefix",
                s3_endpoint=f"http://127.0.0.1:{free_port()}",
                s3_access_key_id="a",
                s3_secret_access_key="b",
            )
        ),
    ]
    for store in stores:
        for act in (store.ping, lambda store=store: store.put_bytes("a/k", b"x")):
            with pytest.raises(Unavailable) as caught:
                act()
            assert caught.value.code == "storage_unavailable"
            assert str(tmp_path) not in caught.value.message
            assert "127.0.0.1" not in caught.value.message


def test_a_bucket_that_does_not_exist_is_unavailable_not_missing(s3_settings: Settings) -> None:
    store = open_store(s3_settings.model_copy(update={"storage_url": "s3://no-such-bucket/x"}))
    with pytest.raises(Unavailable):
        store.put_bytes("k", b"x")
    with pytest.raises(Unavailable):
        store.ping()


def test_prefixes_of_one_bucket_are_apart(s3_settings: Settings) -> None:
    bucket = s3_settings.storage_url.split("/")[2]
    first, second = (
        open_store(s3_settings.model_copy(update={"storage_url": f"s3://{bucket}{prefix}"}))
        for prefix in ("/one", "/two/")
    )
    first.put_bytes("k", b"1")
    assert not second.exists("k")
    whole = open_store(s3_settings.model_copy(update={"storage_url": f"s3://{bucket}"}))
    assert list(whole.list("")) == ["one/k"]


def test_a_folder_goes_with_its_last_object(directory_settings: Settings) -> None:
    store = open_store(directory_settings)
    for key in ("a/b/1", "a/b/2", "a/c/3", "k"):
        store.put_bytes(key, b"x")
    root = directory_settings.data_dir / "objects"
    left = []
    for delete in (
        lambda: store.delete("a/b/1"),
        lambda: store.delete_older("a/b/2", seconds=0),
        lambda: store.delete("a/c/3"),
        lambda: store.delete("k"),
    ):
        delete()
        left.append(sorted(path.relative_to(root).as_posix() for path in root.rglob("*")))
    assert left == [
        ["a", "a/b", "a/b/2", "a/c", "a/c/3", "k"],
        ["a", "a/c", "a/c/3", "k"],
        ["k"],
        [],
    ]
    assert root.is_dir()


def test_a_folder_that_goes_takes_nobodys_object_along(directory_settings: Settings) -> None:
    store = open_store(directory_settings)

    def write_and_delete(name: str) -> None:
        for number in range(150):
            key = f"a/b/{name}"
            put = store.put_new if number % 2 else store.put_bytes
            put(key, name.encode())
            assert store.get_bytes(key) == name.encode()
            assert key in store.list("a")
            store.delete(key)

    at_once(write_and_delete, ["1", "2", "3", "4"])
    assert list(store.list("")) == []


def test_objects_are_readable_by_other_processes_of_the_machine(
    directory_settings: Settings,
) -> None:
    store = open_store(directory_settings)
    store.put_bytes("a", b"x")
    store.put_new("b", b"x")
    for name in ("a", "b"):
        assert (directory_settings.data_dir / "objects" / name).stat().st_mode & 0o777 == 0o644

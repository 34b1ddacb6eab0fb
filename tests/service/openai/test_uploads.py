"""Files in parts as the official client sends them; the worker is played by the test."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from openai.types import FilePurpose, Upload

from app.main import create_app
from app.openai.schemas.files import FileObject
from app.openai.services import files
from core.db import Database, uploads
from core.db.migrate import upgrade
from core.db.models import Upload as UploadRow
from core.queue import JobQueue
from core.settings import load_settings
from core.storage import ObjectStore, open_store
from tests.service.app.running import run_server
from tests.service.openai.conftest import open_clients
from tests.service.openai.test_training import chats, jsonl
from worker.validation import DatasetValidator

MOST_BYTES = 200_000


@dataclass(frozen=True)
class Desk:
    """A running api, its storage, and what a worker needs."""

    database: Database
    store: ObjectStore
    validator: DatasetValidator
    client: OpenAI
    other: OpenAI

    def begin(
        self, content: bytes, *, name: str = "menu.jsonl", purpose: FilePurpose = "fine-tune"
    ) -> Upload:
        return self.client.uploads.create(
            bytes=len(content), filename=name, mime_type="application/jsonl", purpose=purpose
        )

    def send(self, upload: Upload, content: bytes) -> str:
        return self.client.uploads.parts.create(upload.id, data=content).id

    def rows(self, file_id: str) -> list[Any]:
        """The rows of a file, once a worker has checked it."""
        self.validator.validate(file_id)
        done = self.client.files.wait_for_processing(file_id, poll_interval=0.01)
        assert done.status == "processed", done.status_details
        content = self.client.files.content(file_id).read()
        return [json.loads(line) for line in content.splitlines()]

    def stored(self, upload: Upload) -> list[str]:
        return list(self.store.list(f"uploads/{upload.id}"))


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    settings = load_settings(
        data_dir=tmp_path_factory.mktemp("desk"),
        max_upload_bytes=MOST_BYTES,
        max_open_uploads=40,
    )
    upgrade(settings.database_url)
    with ExitStack() as stack:
        database = Database(settings.database_url)
        stack.callback(database.dispose)
        queue = JobQueue(settings)
        stack.callback(queue.close)
        store = open_store(settings)
        validator = DatasetValidator(settings, database, store, queue)
        url = stack.enter_context(run_server(create_app(settings)))
        yield Desk(database, store, validator, *open_clients(stack, database, url))


def test_a_file_comes_in_parts_of_any_size(desk: Desk, tmp_path: Path) -> None:
    rows = chats(40, word="chunked")
    path = tmp_path / "chunked.jsonl"
    path.write_bytes(jsonl(rows))
    whole = path.read_bytes()
    md5 = hashlib.md5(whole).hexdigest()
    # a part may end within a line, and within a character
    done = desk.client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=97, md5=md5
    )
    assert (done.status, done.object, done.bytes) == ("completed", "upload", len(whole))
    assert done.expires_at - done.created_at == 3600
    assert done.file is not None
    assert (done.file.filename, done.file.bytes) == ("chunked.jsonl", len(whole))
    assert desk.stored(done) == []
    assert desk.rows(done.file.id) == rows
    # however they come, the same bytes under the same name are the same file
    at_once = desk.client.files.create(file=path, purpose="fine-tune")
    again = desk.client.uploads.upload_file_chunked(
        file=whole,
        filename="chunked.jsonl",
        bytes=len(whole),
        mime_type="application/jsonl",
        purpose="fine-tune",
    )
    assert again.file is not None
    assert at_once.id == again.file.id == done.file.id


def test_parts_are_joined_in_the_order_of_their_ids(desk: Desk) -> None:
    rows = chats(8, word="order")
    content = jsonl(rows)
    upload = desk.begin(content, name="order.jsonl")
    places = range(0, len(content), 100)
    pieces = [content[place : place + 100] for place in places]
    with ThreadPoolExecutor(4) as pool:
        sent = list(pool.map(lambda piece: desk.send(upload, piece), reversed(pieces)))
    lost = desk.send(upload, pieces[0])  # its answer never came, so it was sent again
    assert len(desk.stored(upload)) == len(pieces) + 1
    done = desk.client.uploads.complete(upload.id, part_ids=sent[::-1])
    assert lost not in sent
    assert desk.stored(upload) == []
    assert done.file is not None
    assert desk.rows(done.file.id) == rows


def test_completed_again_it_is_the_same_file(desk: Desk) -> None:
    content = jsonl(chats(5, word="again"))
    upload = desk.begin(content, name="again.jsonl")
    part_ids = [desk.send(upload, content[:50]), desk.send(upload, content[50:])]

    def complete(_: int) -> Upload:
        return desk.client.uploads.complete(upload.id, part_ids=part_ids)

    with ThreadPoolExecutor(4) as pool:
        files = [done.file for done in pool.map(complete, range(4))]
    assert None not in files
    assert len({file.id for file in files if file is not None}) == 1
    with pytest.raises(openai.ConflictError) as told:
        desk.client.uploads.complete(upload.id, part_ids=part_ids[::-1])
    assert (told.value.code, told.value.param) == ("upload_not_pending", "part_ids")
    with pytest.raises(openai.ConflictError):
        desk.client.uploads.cancel(upload.id)
    assert files[0] is not None
    desk.validator.validate(files[0].id)
    desk.client.files.delete(files[0].id)
    gone = complete(0)
    assert (gone.status, gone.file) == ("completed", None)


def test_what_was_not_announced_is_refused_and_can_be_mended(desk: Desk) -> None:
    content = jsonl(chats(5, word="mended"))
    upload = desk.begin(content, name="mended.jsonl")
    first, cut, rest = (
        desk.send(upload, piece) for piece in (content[:50], content[50:70], content[50:])
    )
    complete = desk.client.uploads.complete
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        ("upload_mismatch", "part_ids", {"part_ids": [first, cut]}),
        ("upload_mismatch", "md5", {"part_ids": [first, rest], "md5": "0" * 32}),
        ("bad_input", "md5", {"part_ids": [first, rest], "md5": "none"}),
        ("bad_input", "part_ids.1", {"part_ids": [first, first]}),
        ("bad_input", "part_ids.1", {"part_ids": [first, "part_none"]}),
        ("bad_input", "part_ids", {"part_ids": []}),
    ]
    for code, param, ask in wrong:
        with pytest.raises(openai.BadRequestError) as told:
            complete(upload.id, **ask)
        assert (told.value.code, told.value.param) == (code, param)
    md5 = hashlib.md5(content).hexdigest().upper()
    assert complete(upload.id, part_ids=[first, rest], md5=md5).status == "completed"


def test_a_cancelled_upload_is_gone(desk: Desk) -> None:
    upload = desk.begin(b"x" * 10)
    part_id = desk.send(upload, b"x" * 10)
    for _ in range(2):
        assert desk.client.uploads.cancel(upload.id).status == "cancelled"
    assert desk.stored(upload) == []
    for call in (
        lambda: desk.send(upload, b"x"),
        lambda: desk.client.uploads.complete(upload.id, part_ids=[part_id]),
    ):
        with pytest.raises(openai.ConflictError) as told:
            call()
        assert told.value.code == "upload_not_pending"
    assert desk.stored(upload) == []


@pytest.mark.parametrize("purpose", ["fine-tune", "batch"])
def test_cancelled_while_it_is_completed_it_makes_no_file(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, purpose: FilePurpose
) -> None:
    content = jsonl(chats(5, word=f"withdrawn {purpose}"))
    upload = desk.begin(content, name=f"withdrawn-{purpose}.jsonl", purpose=purpose)
    part_id = desk.send(upload, content)
    kept = list(desk.store.list(""))
    make_file = files.make_file

    def make_late(*args: Any, **values: Any) -> FileObject:
        assert desk.client.uploads.cancel(upload.id).status == "cancelled"
        return make_file(*args, **values)

    monkeypatch.setattr(files, "make_file", make_late)
    with pytest.raises(openai.ConflictError) as told:
        desk.client.uploads.complete(upload.id, part_ids=[part_id])
    assert told.value.code == "upload_not_pending"
    assert upload.filename not in {file.filename for file in desk.client.files.list()}
    assert set(kept) - set(desk.store.list("")) == {f"uploads/{upload.id}/{part_id}"}
    assert set(desk.store.list("")) <= set(kept)


def test_an_upload_expires(desk: Desk) -> None:
    content = jsonl(chats(5, word="late"))
    upload = desk.begin(content)
    part_id = desk.send(upload, content)
    with desk.database.write() as session:
        row = session.get(UploadRow, upload.id)
        assert row is not None
        row.expires_at = uploads.clock.later(-1)
    with pytest.raises(openai.ConflictError, match="expired"):
        desk.client.uploads.complete(upload.id, part_ids=[part_id])


def test_uploads_have_bounds(desk: Desk) -> None:
    ask: Any = {"filename": "f", "mime_type": "text/plain", "purpose": "fine-tune", "bytes": 10}
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        ("unsupported", "purpose", {"purpose": "vision"}),
        ("unsupported", "expires_after", {"extra_body": {"expires_after": {"seconds": 3600}}}),
        ("bad_input", "bytes", {"bytes": 0}),
        ("too_large", "bytes", {"bytes": MOST_BYTES + 1}),
    ]
    for code, param, change in wrong:
        with pytest.raises(openai.APIStatusError) as told:
            desk.client.uploads.create(**ask | change)
        assert (told.value.code, told.value.param) == (code, param)
    upload = desk.client.uploads.create(**ask)
    with pytest.raises(openai.APIStatusError) as large:
        desk.send(upload, b"x" * 31)
    assert (large.value.status_code, large.value.code) == (413, "too_large")
    for content in (b"", None):
        form = {} if content is None else {"data": ("data", content)}
        refused = httpx.post(
            f"{desk.client.base_url}uploads/{upload.id}/parts",
            headers={"authorization": f"Bearer {desk.client.api_key}"},
            files=form or {"other": (None, "x")},
        )
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] == "data"
    assert desk.stored(upload) == []


def test_so_many_uploads_may_be_open(desk: Desk) -> None:
    opened: list[str] = []

    def open_all() -> None:
        for _ in range(41):
            opened.append(desk.begin(b"x").id)  # noqa: PERF401 the ids until it raises

    with pytest.raises(openai.ConflictError) as told:
        open_all()
    assert told.value.code == "too_many_uploads"
    assert told.value.response.headers["x-should-retry"] == "false"
    for upload_id in opened:
        desk.client.uploads.cancel(upload_id)
    desk.client.uploads.cancel(desk.begin(b"x").id)


def test_only_the_owner_sees_an_upload(desk: Desk) -> None:
    upload = desk.begin(b"x" * 10)
    theirs = desk.other.uploads
    for call in (
        lambda: theirs.parts.create(upload.id, data=b"x"),
        lambda: theirs.complete(upload.id, part_ids=["part_1"]),
        lambda: theirs.cancel(upload.id),
    ):
        with pytest.raises(openai.NotFoundError) as told:
            call()
        assert (told.value.code, told.value.param) == ("upload_not_found", "upload_id")

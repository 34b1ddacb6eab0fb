"""``/datasets`` over HTTP, on both databases."""

import gzip
import io
import json
import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from core.db import datasets
from core.errors import Unavailable
from core.queue import JobQueue
from core.storage import Stored, open_store, splits
from core.storage.directory import DirectoryStore
from tests.service.app.conftest import Edge
from tests.service.app.rows import error_of, jsonl, records, upload
from worker.validation import DatasetValidator


def staged(edge: Edge) -> list[Path]:
    return list((edge.settings.data_dir / "scratch").glob("*"))


def test_a_file_becomes_a_ready_data_set(client: httpx.Client, edge: Edge) -> None:
    response = client.post("/datasets", files={"file": ("my rows.jsonl", jsonl(records(50)))})
    made = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == f"/datasets/{made['id']}"
    assert (made["status"], made["task"], made["name"]) == (
        "ready",
        "text-classification",
        "my-rows",
    )
    assert made["splits"] == {"train": 40, "validation": 5, "test": 5}
    assert made["report"]["label_counts"] == {"arrived": 25, "lost": 25}
    assert client.get(f"/datasets/{made['id']}").json() == made
    assert staged(edge) == []


def test_rows_come_back_in_pages(client: httpx.Client) -> None:
    made = upload(client)
    seen, after = [], 0
    while after is not None:
        page = client.get(
            f"/datasets/{made['id']}/rows", params={"after": after, "limit": 15}
        ).json()
        seen += page["data"]
        after = page["next_after"]
    assert len(seen) == made["splits"]["train"] == 32
    assert all(row in records() for row in seen)
    assert error_of(client.get(f"/datasets/{made['id']}/rows?split=dev"))["param"] == "split"


def test_rows_are_seen_as_training_reads_them(client: httpx.Client, other: httpx.Client) -> None:
    made = upload(client)
    path = f"/datasets/{made['id']}:preview"
    asked = {"base_model": "minilm", "split": "test", "after": 1, "limit": 2, "max_length": 9}
    seen = client.post(path, json=asked).json()
    page = client.get(
        f"/datasets/{made['id']}/rows", params={"split": "test", "after": 1, "limit": 2}
    ).json()
    assert [row["record"] for row in seen["data"]] == page["data"]
    assert (seen["task"], seen["max_length"]) == ("text-classification", 9)
    assert (seen["has_more"], seen["next_after"]) == (page["has_more"], page["next_after"])
    (part,) = seen["data"][0]["parts"]
    assert part == {
        "rows": [{"ids": [7], "tokens": ["text-classification"], "learned": None}],
        "decoder": None,
        "cut_tokens": 0,
    }
    for wrong, status, code, param in (
        ({"base_model": "gpt-9"}, 404, "base_not_found", "base_model"),
        ({"base_model": "minilm@int9"}, 404, "base_not_found", "base_model"),
        ({"after": 10_000}, 404, "not_found", "after"),
        ({"limit": 21}, 400, "bad_input", "limit"),
        ({"max_length": 7}, 400, "bad_input", "max_length"),  # as of a job
    ):
        refused = client.post(path, json=asked | wrong)
        error = error_of(refused)
        assert (refused.status_code, error["code"]) == (status, code), error
        assert error["param"] == param
    assert other.post(path, json=asked).status_code == 404


def test_csv_and_gzip_are_read(client: httpx.Client) -> None:
    lines = ["text,label", *(f'"{row["text"]}",{row["label"]}' for row in records())]
    csv = "\n".join(lines).encode()
    for name, data in (("a.csv", csv), ("b.csv.gz", gzip.compress(csv))):
        made = client.post("/datasets", files={"file": (name, data)}).json()
        assert (made["rows"], made["format"]) == (40, "csv"), made


def test_parquet_is_read(client: httpx.Client) -> None:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records()), sink)
    made = client.post("/datasets", files={"file": ("a.parquet", sink.getvalue())}).json()
    assert (made["rows"], made["format"], made["status"]) == (40, "parquet", "ready"), made
    twin = client.post("/datasets", files={"file": ("a.jsonl", jsonl(records()))}).json()
    assert made["splits"] == twin["splits"]
    refused = client.post("/datasets", files={"file": ("a.parquet", sink.getvalue()[:-30])})
    error = error_of(refused)
    assert (refused.status_code, error["details"][0]["code"]) == (400, "parquet_truncated")


def test_a_mapping_and_files_per_split(client: httpx.Client) -> None:
    rows = [{"sentence": row["text"], "target": row["label"]} for row in records(30)]
    response = client.post(
        "/datasets",
        files={"file": ("a.jsonl", jsonl(rows[:20])), "test_file": ("b.jsonl", jsonl(rows[20:]))},
        data={
            "mapping": json.dumps({"text": "sentence", "label": "target"}),
            "split": json.dumps({"fractions": [0.5, 0.5, 0], "seed": 7}),
            "name": "mapped",
            "task": "text-classification",
        },
    )
    assert response.status_code == 201, response.text
    made = response.json()
    assert made["splits"] == {"train": 10, "validation": 10, "test": 10}
    assert made["name"] == "mapped"


def test_every_problem_is_told_and_nothing_is_kept(client: httpx.Client, edge: Edge) -> None:
    good = records(40)
    lines = jsonl(good).splitlines(keepends=True)
    lines[3], lines[8], lines[11] = (
        b'{"text": "no label"}\n',
        b"{oops\n",
        b'{"text": "", "label": "lost"}\n',
    )
    response = client.post("/datasets", files={"file": ("bad.jsonl", b"".join(lines))})
    error = error_of(response)
    assert response.status_code == 400
    assert (error["code"], error["param"]) == ("dataset_invalid", "file")
    assert [problem["line"] for problem in error["details"]] == [4, 9, 12]
    assert all(problem["fix"] and problem["file"] == "file" for problem in error["details"])
    assert client.get("/datasets").json()["data"] == []
    assert staged(edge) == []
    assert list(open_store(edge.settings).list("datasets")) == []


def test_the_same_bytes_are_one_data_set_for_a_tenant(
    client: httpx.Client, other: httpx.Client
) -> None:
    first = upload(client)
    again = client.post("/datasets", files={"file": ("row.jsonl", jsonl(records()))})
    assert (again.status_code, again.json()["id"]) == (200, first["id"])
    assert upload(client, name="another-name")["id"] != first["id"]
    assert upload(other)["id"] != first["id"]
    assert len(client.get("/datasets").json()["data"]) == 2


def test_eight_uploads_at_once_are_one_data_set(client: httpx.Client, edge: Edge) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: upload(client)["id"], range(8)))
    assert len(set(made)) == 1
    assert len(list(open_store(edge.settings).list("datasets"))) == 3


def test_different_uploads_at_once_are_kept_apart(client: httpx.Client) -> None:
    words = [f"word{place}" for place in range(6)]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda word: upload(client, word=word), words))
    for word, found in zip(words, made, strict=True):
        rows = client.get(f"/datasets/{found['id']}/rows", params={"limit": 100}).json()["data"]
        assert all(row["text"].startswith(word) for row in rows)


def test_an_idempotency_key(client: httpx.Client) -> None:
    def send(word: str) -> httpx.Response:
        file = {"file": ("a.jsonl", jsonl(records(word=word)))}
        return client.post("/datasets", files=file, headers={"idempotency-key": "k1"})

    first, again, different = send("one"), send("one"), send("two")
    assert first.json()["id"] == again.json()["id"]
    assert (different.status_code, error_of(different)["code"]) == (409, "idempotency_mismatch")
    assert different.headers["x-should-retry"] == "false"


HOSTILE_NAMES = [
    "../../x.jsonl",
    "a b.jsonl",
    "ünïcode 😀.jsonl",
    ".jsonl",
    "x.JSONL",
    "x.jsonl.exe",
    "con.jsonl",
    "n" * 300 + ".jsonl",
    "no-extension",
    "..",
    "a/b\\c.jsonl",
    "C:\\temp\\rows.jsonl",
    'quo"te.jsonl',
    "<script>alert(1)</script>.jsonl",
    "'; DROP TABLE datasets; --.jsonl",
    "{{7*7}}.jsonl",
]


def test_any_file_name_is_only_shown(client: httpx.Client, edge: Edge) -> None:
    for place, name in enumerate(HOSTILE_NAMES):
        data = jsonl(records(word=f"w{place}"))
        response = client.post("/datasets", files={"file": (name, data)})
        assert response.status_code == 201, (name, response.text)
        made = response.json()
        assert len(made["filename"] or "") <= 255
        assert "/" not in (made["filename"] or "")
        assert "\\" not in (made["filename"] or "")
        assert made["name"].strip("abcdefghijklmnopqrstuvwxyz0123456789._-") == ""
    assert len(client.get("/datasets?limit=100").json()["data"]) == len(HOSTILE_NAMES)
    assert {path.name for path in edge.settings.data_dir.iterdir()} <= {"objects", "scratch"}


def test_a_file_without_a_name(client: httpx.Client) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        + jsonl(records())
        + b"\r\n--b--\r\n"
    )
    response = client.post(
        "/datasets", content=body, headers={"content-type": "multipart/form-data; boundary=b"}
    )
    assert (response.status_code, response.json()["name"]) == (201, "dataset")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"task": "text-clasification"}, "task", "bad_input"),
        ({"name": "Not Allowed"}, "name", "bad_input"),
        ({"format": "xml"}, "format", "bad_input"),
        ({"mapping": "{"}, "mapping", "invalid_json"),
        ({"mapping": '{"text": 1}'}, "mapping.text", "bad_input"),
        ({"mapping": '{"te\\u0000xt": "a"}'}, "mapping", "bad_input"),
        ({"split": '{"fractions": [0.9, 0.9, 0.1]}'}, "split.fractions", "bad_input"),
        ({"split": '{"fractions": [2, -1, 0]}'}, "split.fractions.0", "bad_input"),
        ({"split": '{"seeds": 1}'}, "split.seeds", "bad_input"),
        ({"colour": "red"}, "colour", "bad_input"),
    ],
)
def test_a_wrong_field_is_named(
    client: httpx.Client, fields: dict[str, str], param: str, code: str
) -> None:
    response = client.post("/datasets", files={"file": ("a.jsonl", jsonl(records()))}, data=fields)
    error = error_of(response)
    assert (response.status_code, error["code"]) == (400, code), error
    assert error["param"].startswith(param), error


def test_what_is_no_upload(client: httpx.Client) -> None:
    def send(content: bytes, content_type: str) -> tuple[int, str]:
        response = client.post("/datasets", content=content, headers={"content-type": content_type})
        return response.status_code, error_of(response)["code"]

    assert send(b"text,label\n", "text/csv") == (415, "unsupported_media_type")
    assert send(b"", "multipart/form-data") == (400, "bad_input")
    assert send(b"nonsense", "multipart/form-data; boundary=b") == (400, "bad_input")
    assert send(b"--b--\r\n", "multipart/form-data; boundary=b") == (400, "missing_field")
    twice = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n' * 2 + b"--b--\r\n"
    assert send(twice, "multipart/form-data; boundary=b") == (400, "bad_input")
    assert send(b'{"records": ', "application/json") == (400, "invalid_json")
    assert send(b"\xff\xfe", "application/json") == (400, "invalid_json")
    assert send(b"[" * 100_000, "application/json") == (400, "invalid_json")
    assert send(b'{"records": [' + b"9" * 5000 + b"]}", "application/json") == (400, "invalid_json")
    assert send(b'{"records": []}', "application/json") == (400, "bad_input")
    assert send(b"{}", "application/json") == (400, "bad_input")
    second = client.post("/datasets", files={"other_file": ("a.jsonl", b"x")})
    assert error_of(second)["param"] == "other_file"


def test_records_in_the_body(client: httpx.Client) -> None:
    response = client.post("/datasets", json={"name": "small", "records": records()})
    assert response.status_code == 201, response.text
    assert response.json()["name"] == "small"
    wrong = [*records(), {"text": "half \ud800 a pair", "label": "lost"}]
    response = client.post(
        "/datasets",
        content=json.dumps({"records": wrong}),
        headers={"content-type": "application/json"},
    )
    assert response.status_code in {201, 400}, response.text


def test_a_large_file_is_validated_later_and_may_be_used_at_once(
    client: httpx.Client, edge: Edge
) -> None:
    data = jsonl(records(6000))
    assert len(data) > edge.settings.background_validation_bytes
    response = client.post("/datasets", files={"file": ("big.jsonl", data)})
    made = response.json()
    assert (response.status_code, made["status"]) == (202, "validating")
    assert error_of(client.get(f"/datasets/{made['id']}/rows"))["code"] == "dataset_not_ready"
    job = client.post("/jobs", json={"dataset_id": made["id"], "base_model": "minilm"}).json()
    assert job["status"] == "validating_files"

    validator = DatasetValidator(
        edge.settings, edge.database, open_store(edge.settings), JobQueue(edge.settings)
    )
    validator.validate(made["id"])

    ready = client.get(f"/datasets/{made['id']}").json()
    assert (ready["status"], ready["rows"]) == ("ready", 6000)
    assert client.get(f"/jobs/{job['id']}").json()["status"] == "queued"
    assert list(open_store(edge.settings).list("uploads")) == []


def test_a_late_page_is_read_from_close_before_it(
    client: httpx.Client, edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "MARK_BYTES", 100_000)
    made = client.post("/datasets", files={"file": ("late.jsonl", jsonl(records(6000)))}).json()
    store = open_store(edge.settings)
    DatasetValidator(edge.settings, edge.database, store, JobQueue(edge.settings)).validate(
        made["id"]
    )
    with edge.database.read() as session:
        kept = datasets.get_for_worker(session, made["id"])
        assert kept is not None
        entry = kept.splits["train"]
    ((row, byte),) = entry["marks"]
    content = store.get_bytes(entry["key"])
    lines = content.splitlines()

    def page(after: int) -> Any:
        params = {"after": after, "limit": 2}
        return client.get(f"/datasets/{made['id']}/rows", params=params).json()["data"]

    for after in (0, row - 1, row, row + 1, entry["rows"] - 1):
        assert page(after) == [json.loads(line) for line in lines[after : after + 2]]
    store.put_bytes(entry["key"], bytes(byte) + content[byte:])
    assert page(row + 1) == [json.loads(line) for line in lines[row + 1 : row + 3]]


class Held(DirectoryStore):
    """A store whose reader rests with an upload in hand until it is let go."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.fetched, self.let_go = threading.Event(), threading.Event()

    def fetch_to(self, key: str, path: Path) -> Stored:
        stored = super().fetch_to(key, path)
        self.fetched.set()
        assert self.let_go.wait(20)
        return stored


def test_a_message_that_was_sent_twice_does_not_disturb_a_validation(
    client: httpx.Client, edge: Edge
) -> None:
    """Two threads of a worker read both, where the first had waited long for its turn."""
    response = client.post("/datasets", files={"file": ("big.jsonl", jsonl(records(6000)))})
    held = Held(edge.settings.data_dir / "objects")
    queue = JobQueue(edge.settings)
    first, second = (
        DatasetValidator(edge.settings, edge.database, store, queue)
        for store in (held, open_store(edge.settings))
    )
    path = f"/datasets/{response.json()['id']}"
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(first.validate, response.json()["id"])
        assert held.fetched.wait(20)
        second.validate(response.json()["id"])
        assert client.get(path).json()["status"] == "validating"
        held.let_go.set()
        ended.result()
    found = client.get(path).json()
    assert (found["status"], found["rows"]) == ("ready", 6000), found


def test_deleting_while_it_is_validated_leaves_no_rows(client: httpx.Client, edge: Edge) -> None:
    made = client.post("/datasets", files={"file": ("big.jsonl", jsonl(records(6000)))}).json()
    held = Held(edge.settings.data_dir / "objects")
    validator = DatasetValidator(edge.settings, edge.database, held, JobQueue(edge.settings))
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(validator.validate, made["id"])
        assert held.fetched.wait(20)
        client.delete(f"/datasets/{made['id']}").raise_for_status()
        held.let_go.set()
        ended.result()
    assert list(held.list("")) == []


class Full(DirectoryStore):
    """A store whose downloads leave room for nothing that is as large."""

    def fetch_to(self, key: str, path: Path) -> Stored:
        stored = super().fetch_to(key, path)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (stored.bytes // 2, hard))
        return stored


@pytest.fixture
def file_size() -> Iterator[None]:
    """Gives this process its limit back."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_no_fault_of_the_rows(client: httpx.Client, edge: Edge) -> None:
    data = jsonl(records(6000))
    made = client.post("/datasets", files={"file": ("big.jsonl", data)}).json()
    queue = JobQueue(edge.settings)
    full = Full(edge.settings.data_dir / "objects")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(Unavailable) as caught:
        DatasetValidator(edge.settings, edge.database, full, queue).validate(made["id"])
    assert caught.value.code == "storage_full"
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    waiting = client.get(f"/datasets/{made['id']}").json()
    assert waiting["status"] == "validating"
    assert "the disk is full" in waiting["reason"]
    # the sweep sends its message again
    DatasetValidator(edge.settings, edge.database, open_store(edge.settings), queue).validate(
        made["id"]
    )
    ready = client.get(f"/datasets/{made['id']}").json()
    assert (ready["status"], ready["reason"]) == ("ready", None)


def test_a_large_file_that_is_bad_says_so_in_its_report(client: httpx.Client, edge: Edge) -> None:
    data = jsonl(records(6000)) + b"{oops\n"
    made = client.post("/datasets", files={"file": ("big.jsonl", data)}).json()
    DatasetValidator(
        edge.settings, edge.database, open_store(edge.settings), JobQueue(edge.settings)
    ).validate(made["id"])
    found = client.get(f"/datasets/{made['id']}").json()
    assert found["status"] == "invalid"
    assert [problem["line"] for problem in found["report"]["problems"]] == [6001]
    (listed,) = client.get("/datasets").json()["data"]
    assert "problems" not in listed["report"]
    assert listed["report"]["problems_total"] == 1
    response = client.post("/jobs", json={"dataset_id": made["id"], "base_model": "minilm"})
    assert (response.status_code, error_of(response)["code"]) == (409, "dataset_not_ready")


def test_deleting(client: httpx.Client, edge: Edge) -> None:
    made = upload(client)
    job = client.post("/jobs", json={"dataset_id": made["id"], "base_model": "minilm"}).json()
    busy = client.delete(f"/datasets/{made['id']}")
    assert (busy.status_code, error_of(busy)["code"]) == (409, "dataset_in_use")
    client.post(f"/jobs/{job['id']}:cancel")
    gone = client.delete(f"/datasets/{made['id']}")
    assert gone.json() == {"id": made["id"], "object": "dataset", "deleted": True}
    assert client.get(f"/datasets/{made['id']}").status_code == 404
    assert client.delete(f"/datasets/{made['id']}").status_code == 404
    assert list(open_store(edge.settings).list("datasets")) == []
    assert upload(client)["id"] != made["id"]


def test_deleting_while_storage_is_away(client: httpx.Client, edge: Edge) -> None:
    """The data set is gone at once; its rows are orphans until they can be removed."""
    made = upload(client)
    folder = edge.settings.data_dir / "objects" / "datasets" / made["id"]
    folder.rename(folder.with_name("away"))
    folder.touch()  # a file where a folder is expected
    gone = client.delete(f"/datasets/{made['id']}")
    assert (gone.status_code, gone.json().get("deleted")) == (200, True), gone.text
    assert client.get(f"/datasets/{made['id']}").status_code == 404


def test_lists_have_pages_and_filters(client: httpx.Client) -> None:
    made = [upload(client, word=f"w{place}", name=f"set-{place}")["id"] for place in range(5)]
    first = client.get("/datasets?limit=2").json()
    assert [row["id"] for row in first["data"]] == made[:2:-1]
    assert (first["has_more"], first["last_id"]) == (True, made[3])
    rest = client.get("/datasets", params={"limit": 3, "after": first["last_id"]}).json()
    assert [row["id"] for row in rest["data"]] == made[2::-1]
    assert rest["has_more"] is False
    assert [row["id"] for row in client.get("/datasets?name=set-1").json()["data"]] == [made[1]]
    assert client.get("/datasets?status=invalid").json()["data"] == []
    assert client.get("/datasets?task=regression").json()["data"] == []
    assert client.get("/datasets?limit=0").status_code == 400


def test_another_tenant_sees_nothing(client: httpx.Client, other: httpx.Client) -> None:
    made = upload(client)
    path = f"/datasets/{made['id']}"
    for response in (other.get(path), other.get(f"{path}/rows"), other.delete(path)):
        assert (response.status_code, error_of(response)["code"]) == (404, "dataset_not_found")
    assert other.get("/datasets").json()["data"] == []
    response = other.post("/jobs", json={"dataset_id": made["id"], "base_model": "minilm"})
    assert (response.status_code, error_of(response)["code"]) == (404, "dataset_not_found")

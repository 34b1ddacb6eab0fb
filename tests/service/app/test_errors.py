"""One shape for every failure."""

import httpx

from tests.service.app.conftest import Edge
from tests.service.app.rows import error_of


def test_unknown_paths_and_methods(
    edge: Edge, client: httpx.Client, stranger: httpx.Client
) -> None:
    for path in ("/nope", "/jobs/a/b/c", "/v1/nothing", "/%00", "/%ff", "/datasets/x/rows/1"):
        for someone in (client, stranger):
            response = someone.get(path)
            assert (response.status_code, error_of(response)["code"]) == (404, "not_found"), path
    response = client.put("/jobs")
    assert (response.status_code, error_of(response)["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "GET, POST"
    assert client.patch("/jobs/job_x:cancel").headers["allow"] == "GET, POST"
    assert client.post("/adapters/adp_x").headers["allow"] == "DELETE, GET"


def test_ids_that_cannot_be(client: httpx.Client) -> None:
    for id in ("%00", "a%20b", "...", "x" * 300, "%F0%9F%98%80", "'%20OR%201=1%20--", "a%0Ab"):
        for path in ("/jobs", "/datasets", "/adapters"):
            response = client.get(f"{path}/{id}")
            assert response.status_code in {400, 404}, (path, id)
            error_of(response)


def test_bodies_that_are_not_json(client: httpx.Client) -> None:
    def send(content: bytes, content_type: str | None = "application/json") -> tuple[int, str]:
        headers = {} if content_type is None else {"content-type": content_type}
        response = client.post("/jobs", content=content, headers=headers)
        return response.status_code, error_of(response)["code"]

    assert send(b"{") == (400, "invalid_json")
    assert send(b"") == (400, "bad_input")
    assert send(b"null") == (400, "bad_input")
    assert send(b"[]") == (400, "bad_input")
    assert send(b'"text"') == (400, "bad_input")
    assert send(b"\xff\xfe{}") == (400, "invalid_json")
    assert send(b"[" * 50_000) == (400, "invalid_json")
    assert send(b"9" * 5_000) == (400, "invalid_json")
    assert send(b'{"dataset_id": "x", "base_model": "minilm"}', "text/plain") == (
        415,
        "unsupported_media_type",
    )
    assert send(b'{"dataset_id": "x", "base_model": "minilm"}', None) == (
        415,
        "unsupported_media_type",
    )


def test_fields_that_do_not_exist_are_named(client: httpx.Client) -> None:
    job = {"dataset_id": "x", "base_model": "minilm", "base": {"pruning": {"ffn": 0.5}}}
    error = error_of(client.post("/jobs", json=job))
    found = {problem["param"]: problem["message"] for problem in error["details"]}
    assert found["base.pruning.ffn"].startswith("there is no such field (/docs")


def test_parameters_that_do_not_exist_are_named(
    client: httpx.Client, stranger: httpx.Client
) -> None:
    """On every route that has a key: a misspelt filter would else give the whole list."""
    response = client.get("/jobs?statsu=failed&limit=2&stats=x&metadata=care")
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, "bad_input", "statsu")
    assert error["message"] == (
        "statsu: there is no such query parameter; known here: "
        "status, dataset_id, base_model, sweep, limit, after, metadata[…]"
    )
    assert [problem["param"] for problem in error["details"]] == ["statsu", "stats", "metadata"]
    paths = ("/datasets", "/adapters", "/aliases", "/keys", "/models", "/metrics", "/jobs/job_1")
    for path in (*paths, "/jobs/job_1/events", "/models/minilm"):
        assert error_of(client.get(f"{path}?page=2"))["param"] == "page", path
    none = error_of(client.post("/jobs?dry_run=true", json={}))
    assert none["message"] == "dry_run: there is no such query parameter; this route has none"
    assert stranger.get("/jobs?statsu=failed").status_code == 401
    assert stranger.get("/healthz?at=1").status_code == 200  # probes and pages name none


def test_request_ids(stranger: httpx.Client) -> None:
    given = stranger.get("/healthz", headers={"x-request-id": "my-id.1"})
    assert given.headers["x-request-id"] == "my-id.1"
    for bad in ("a b", "x" * 65, "<script>"):
        answer = stranger.get("/healthz", headers={"x-request-id": bad})
        assert answer.headers["x-request-id"].startswith("req_")


def test_a_fault_of_ours_tells_nothing_of_the_inside(client: httpx.Client, edge: Edge) -> None:
    """A row that is broken by hand: a 500 in the shape, and the next request is served."""
    from core.db.models import Dataset
    from tests.service.app.rows import upload

    made = upload(client)
    with edge.database.write() as session:
        row = session.get(Dataset, made["id"])
        assert row is not None
        row.splits = {"train": {"nothing": "here"}}
    response = client.get(f"/datasets/{made['id']}")
    assert (response.status_code, error_of(response)["code"]) == (500, "internal_error")
    assert response.headers["x-should-retry"] == "false"
    assert "KeyError" not in response.text
    assert client.get("/jobs").status_code == 200

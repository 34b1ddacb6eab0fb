"""A batch answers what the endpoint answers, in the order of its file."""

from typing import Any

import openai
import pytest

from core.storage import open_store
from tests.service.batches.office import ROOT, Office, asking, line

CHAT = "/v1/chat/completions"


def conversation(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "smollm2", "messages": [{"role": "user", "content": text}], **more}


def test_a_batch_lives_from_the_file_to_its_answers(office: Office) -> None:
    rows = [line(f"q{place}", CHAT, **conversation(f"hello {place}")) for place in range(10)]
    rows[3]["body"]["tools"] = [{"type": "function", "function": {"name": "f"}}]
    file_id = office.send(rows)
    sent = office.client.files.retrieve(file_id)
    assert (sent.purpose, sent.status, sent.filename) == ("batch", "processed", "requests.jsonl")
    made = office.client.batches.create(
        input_file_id=file_id,
        endpoint=CHAT,
        completion_window="24h",
        metadata={"team": "care"},
    )
    assert (made.status, made.object, made.metadata) == ("validating", "batch", {"team": "care"})
    assert made.expires_at == made.created_at + 24 * 3600
    office.start()
    done = office.wait(made.id)
    assert done.status == "completed", done
    counts = done.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (10, 9, 1)
    moments = [done.created_at, done.in_progress_at, done.finalizing_at, done.completed_at]
    assert moments == sorted(moment for moment in moments if moment is not None)
    answers = office.read(done.output_file_id)
    assert [row["custom_id"] for row in answers] == [f"q{n}" for n in range(10) if n != 3]
    alone = office.client.chat.completions.create(**conversation("hello 7", seed=1)).to_dict()
    for row in answers:
        assert set(row) == {"id", "custom_id", "response", "error"}
        assert (row["response"]["status_code"], row["error"]) == (200, None)
        assert row["response"]["request_id"].startswith("req_")
        assert set(row["response"]["body"]) == set(alone)
    assert answers[6]["response"]["body"]["choices"] == alone["choices"]
    (refused,) = office.read(done.error_file_id)
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("q3", 400)
    error = refused["response"]["body"]["error"]
    assert (error["code"], error["param"]) == ("unsupported", "tools")
    assert error["request_id"] == refused["response"]["request_id"]
    output = office.client.files.retrieve(str(done.output_file_id))
    assert (output.purpose, output.filename) == ("batch_output", f"{made.id}_output.jsonl")
    assert output.bytes == len(office.client.files.content(output.id).read())


def test_one_file_asks_many_adapters_of_any_task(office: Office) -> None:
    office.edge.publish("spans", task="token-classification")
    rows = [
        line("a", adapter_id="intents", inputs=["one", "two"]),
        line("b", adapter_id="spans@1", inputs=["three"]),
        line("c", base_model="smollm2", inputs=["four"], options={"max_new_tokens": 3}),
        line("d", inputs=[{"adapter_id": "intents", "input": "five"}], adapter_id="spans"),
        line("e", adapter_id="intents", inputs=[]),
    ]
    made = office.create(rows)
    office.start()
    done = office.wait(made.id)
    found = {row["custom_id"]: row["response"]["body"] for row in office.read(done.output_file_id)}
    assert list(found) == ["a", "b", "c", "d"]
    http = office.edge.client(office.edge.key)
    for row in rows[:4]:
        assert found[row["custom_id"]] == http.post("/predict", json=row["body"]).json()
    (refused,) = office.read(done.error_file_id)
    told = http.post("/predict", json=rows[4]["body"]).json()["error"]
    own = refused["response"]["body"]["error"]
    assert own | {"request_id": ""} == told | {"request_id": ""}


def test_rows_of_batches_take_a_share_of_their_own(office: Office) -> None:
    made = office.create(asking(["quiet"]))
    office.start()
    office.wait(made.id)
    (share,) = office.twin.shares
    assert share.startswith("ten_")
    assert share.endswith("/background")


def test_a_lost_answer_makes_one_file_and_one_batch(office: Office) -> None:
    files = [office.send(asking(["once"])) for _ in range(2)]
    assert files[0] == files[1]
    asked: Any = {"input_file_id": files[0], "endpoint": "/predict", "completion_window": "24h"}
    first, again = (office.client.batches.create(**asked) for _ in range(2))
    assert first.id == again.id
    other = office.client.batches.create(**asked, metadata={"run": "2"})
    assert other.id != first.id
    assert [batch.id for batch in office.client.batches.list(limit=1)] == [other.id, first.id]
    keyed = [
        office.client.batches.create(**asked, extra_headers={"Idempotency-Key": "k"}).id
        for _ in range(2)
    ]
    assert keyed[0] == keyed[1] != first.id


def test_what_cannot_be_a_batch_is_refused_at_once(office: Office) -> None:
    file_id = office.send(asking(["a"]))
    rows = [{"text": f"row {place}", "label": "ab"[place % 2]} for place in range(8)]
    trained = office.edge.client(office.edge.key).post("/datasets", json={"records": rows}).json()
    asked: Any = {"input_file_id": file_id, "endpoint": "/predict", "completion_window": "24h"}
    wrong: list[dict[str, Any]] = [
        {"input_file_id": trained["id"]},
        {"endpoint": "/v1/responses"},
        {"completion_window": "1h"},
        {"metadata": {str(place): "x" for place in range(17)}},
        {"output_expires_after": {"anchor": "created_at", "seconds": 3600}},
    ]
    for change in wrong:
        with pytest.raises(openai.BadRequestError) as told:
            office.client.batches.create(**asked | change)
        assert told.value.param == next(iter(change))
    for client, missing in ((office.client, "file_nothing"), (office.other, file_id)):
        with pytest.raises(openai.NotFoundError) as gone:
            client.batches.create(**asked | {"input_file_id": missing})
        assert (gone.value.code, gone.value.param) == ("file_not_found", "input_file_id")
    kept = list(open_store(office.edge.settings).list("files"))
    key = {"Idempotency-Key": "f"}
    mine = office.client.files.create(file=("k", b"{}"), purpose="batch", extra_headers=key)
    with pytest.raises(openai.ConflictError):
        office.client.files.create(file=("k", b"[]"), purpose="batch", extra_headers=key)
    assert list(open_store(office.edge.settings).list("files")) == [*kept, f"files/{mine.id}"]
    with pytest.raises(openai.BadRequestError) as empty:
        office.send(b"")
    assert empty.value.code == "empty_file"
    limited = office.client.with_options(api_key=office.edge.new_key("read", "write"))
    with pytest.raises(openai.PermissionDeniedError):
        limited.batches.create(**asked)


def test_another_tenant_sees_nothing(office: Office) -> None:
    made = office.create(asking(["mine"]))
    office.start()
    done = office.wait(made.id)
    for call in (
        lambda: office.other.batches.retrieve(made.id),
        lambda: office.other.batches.cancel(made.id),
        lambda: office.other.files.retrieve(str(done.input_file_id)),
        lambda: office.other.files.content(str(done.output_file_id)),
        lambda: office.other.files.delete(str(done.output_file_id)),
    ):
        with pytest.raises(openai.NotFoundError):
            call()
    assert list(office.other.batches.list()) == []
    assert list(office.other.files.list()) == []


def test_a_model_of_another_tenant_is_not_there(office: Office) -> None:
    office.edge.publish("theirs", key=office.edge.other_key)
    made = office.create(asking(["a"], adapter="theirs"))
    office.start()
    done = office.wait(made.id)
    assert done.status == "failed"
    assert done.errors is not None
    assert done.errors.data is not None
    assert [error.code for error in done.errors.data] == ["model_not_found"]


def test_files_of_both_kinds_are_one_list(office: Office) -> None:
    made = [office.send(asking([f"f{place}"])) for place in range(2)]
    rows = [{"text": f"row {place}", "label": "ab"[place % 2]} for place in range(8)]
    http = office.edge.client(office.edge.key)
    made.append(http.post("/datasets", json={"records": rows}).json()["id"])
    made.append(office.send(asking(["last"])))
    files = office.client.files
    for limit in (1, 2, 100):
        assert [file.id for file in files.list(limit=limit)] == made[::-1]
        assert [file.id for file in files.list(limit=limit, order="asc")] == made
    assert [file.id for file in files.list(purpose="fine-tune")] == [made[2]]
    assert [file.id for file in files.list(purpose="batch", limit=2)] == [
        made[3],
        made[1],
        made[0],
    ]
    assert list(files.list(purpose="batch_output")) == []
    with pytest.raises(openai.BadRequestError):
        files.list(after="file_nothing")


def test_the_example_of_the_page_runs(office: Office, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "openai.md").read_text(encoding="utf-8")
    example = page.partition("## Batches")[2].partition("```python\n")[2].partition("```")[0]
    office.edge.publish("banking-intents")
    office.start()
    exec(example, {"client": office.client})
    # the twin answers with the text itself
    assert capsys.readouterr().out.splitlines() == [
        "row-0 My card still has not arrived",
        "row-1 How do I top up?",
    ]

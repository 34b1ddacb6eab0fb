"""Everything that is wrong with a file is told, and nothing of it is asked."""

import json
from typing import Any

from openai.types import Batch

from tests.service.batches.office import Office, asking, jsonl, line


def errors_of(batch: Batch) -> list[tuple[int | None, str | None, str | None]]:
    assert batch.errors is not None
    assert batch.errors.data is not None
    return [(error.line, error.code, error.param) for error in batch.errors.data]


def test_every_bad_line_is_told(office: Office) -> None:
    good = asking(["good"])[0]
    lines: list[tuple[bytes, str, str | None]] = [
        (b"not json", "invalid_json", None),
        (b"[]", "bad_input", ""),
        (b'{"custom_id": "\xff"}', "invalid_json", None),
        (jsonl([{**good, "custom_id": ""}]), "bad_input", "custom_id"),
        (jsonl([{**good, "custom_id": "x", "method": "GET"}]), "bad_input", "method"),
        (jsonl([{**good, "custom_id": "y", "more": 1}]), "unknown_field", "more"),
        (jsonl([{"custom_id": "z", "method": "POST", "url": "/predict"}]), "missing_field", "body"),
        (jsonl([good]), "duplicate_custom_id", "custom_id"),
        (jsonl([line("u", "/v1/embeddings", model="minilm")]), "bad_input", "url"),
        (jsonl([line("s", adapter_id="intents", inputs=["a"], stream=True)]), "unsupported", None),
        (
            jsonl([line("t", adapter_id="intents", inputs=["a"], options={"stream": "true"})]),
            "unsupported",
            "body.options.stream",
        ),
        (jsonl([line("m", adapter_id="nobody", inputs=["a"])]), "model_not_found", None),
        (
            jsonl(
                [line("n", adapter_id="intents", inputs=["a", {"adapter_id": "no", "input": 1}])]
            ),
            "model_not_found",
            "body.inputs.1.adapter_id",
        ),
        (jsonl([line("b", base_model="gpt", inputs=["a"])]), "model_not_found", "body.base_model"),
        (jsonl(asking(["long " * 500])), "too_large", None),
    ]
    content = jsonl([good]) + b"\n" + b"\n".join(text.rstrip(b"\n") for text, _, _ in lines)
    made = office.create(content)
    office.start()
    failed = office.wait(made.id)
    assert failed.status == "failed"
    found = errors_of(failed)
    # the first two lines are a good one and a blank one
    assert [(number, code) for number, code, _ in found] == [
        (place + 3, code) for place, (_, code, _) in enumerate(lines)
    ]
    for (_, _, param), (_, _, wanted) in zip(found, lines, strict=True):
        assert wanted in {None, param}
    assert failed.errors is not None
    assert failed.errors.x_total == len(lines)
    assert (failed.output_file_id, failed.error_file_id, failed.in_progress_at) == (None,) * 3
    assert failed.failed_at is not None
    assert office.twin.asked == {}


def test_too_many_and_none(office: Office) -> None:
    office.start()
    many = office.create(asking([f"t{place}" for place in range(501)]))
    none = office.create(b"\n \n")
    assert errors_of(office.wait(many.id)) == [(None, "too_many_requests_in_file", None)]
    assert errors_of(office.wait(none.id)) == [(None, "empty_file", None)]


def test_models_of_openai_routes_are_looked_up_too(office: Office) -> None:
    bodies: list[dict[str, Any]] = [
        {"model": "minilm", "input": "a"},
        {"model": "intents", "input": "a"},
        {"model": "minilm@int8", "input": "a"},
        {"model": "nobody", "input": "a"},
        {"input": "the endpoint tells this one"},
    ]
    rows = [line(f"r{place}", "/v1/embeddings", **body) for place, body in enumerate(bodies)]
    office.start()
    made = office.create(rows, endpoint="/v1/embeddings")
    assert errors_of(office.wait(made.id)) == [(4, "model_not_found", "body.model")]
    del rows[3]
    fine = office.wait(office.create(rows, endpoint="/v1/embeddings").id)
    assert fine.status == "completed"
    assert office.ids(fine.output_file_id) == ["r0", "r1", "r2"]
    assert office.ids(fine.error_file_id) == ["r4"]


def test_a_mark_of_the_byte_order_and_windows_lines_are_read(office: Office) -> None:
    content = b"\xef\xbb\xbf" + b"\r\n".join(json.dumps(row).encode() for row in asking(["a", "b"]))
    office.start()
    done = office.wait(office.create(content).id)
    assert office.ids(done.output_file_id) == ["a", "b"]


def nested(depth: int) -> bytes:
    """A request with so many lists inside one another, on a line of its own."""
    start, end = jsonl(asking(["?"])).replace(b"?", b"%d" % depth, 1).split(b'"?"')
    return start + b"[" * depth + b"]" * depth + end


def test_a_line_that_is_nested_too_deeply_is_told_before_it_is_asked(office: Office) -> None:
    depths = (65, 600, *range(960, 984, 4))
    office.start()
    failed = office.wait(office.create(b"".join(map(nested, depths))).id)
    assert {code for _, code, _ in errors_of(failed)} == {"invalid_json"}
    assert len(errors_of(failed)) == len(depths)
    done = office.wait(office.create(nested(50)).id)
    assert done.status == "completed"
    assert office.ids(done.error_file_id) + office.ids(done.output_file_id) == ["50"]

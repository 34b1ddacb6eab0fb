"""A batch on a real base, whose process is killed in the middle: every request is answered once."""

import json
from pathlib import Path

from tests.e2e.stack import JOB_SECONDS, Stack
from tests.processes import wait_until

REQUESTS = 400


def test_a_batch_outlives_its_process(stack: Stack, tmp_path: Path) -> None:
    bodies = [{"model": "minilm", "input": f"where is order {n}?"} for n in range(REQUESTS)]
    lines = [
        {"custom_id": f"r{n}", "method": "POST", "url": "/v1/embeddings", "body": body}
        for n, body in enumerate(bodies)
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    made = stack.tunery("batches", "create", str(path), "--endpoint", "/v1/embeddings", "--json")

    def completed() -> int:
        return int(stack.get(f"/v1/batches/{made['id']}")["request_counts"]["completed"])

    wait_until(lambda: completed() > 0, seconds=JOB_SECONDS)
    assert completed() < REQUESTS
    stack.kill("batches")
    wait_until(
        lambda: stack.get(f"/v1/batches/{made['id']}")["status"] == "completed",
        seconds=JOB_SECONDS,
    )
    done = stack.get(f"/v1/batches/{made['id']}")
    assert done["error_file_id"] is None
    content = stack.http.get(f"/v1/files/{done['output_file_id']}/content").text
    answers = [json.loads(line) for line in content.splitlines()]
    assert [answer["custom_id"] for answer in answers] == [line["custom_id"] for line in lines]
    alone = stack.post("/v1/embeddings", bodies[-1])
    assert answers[-1]["response"]["body"]["x_receipt"] == alone["x_receipt"]

"""From a file in parts to decisions, by the official client and nothing else."""

import json

from tests.e2e.stack import JOB_SECONDS, Stack
from tests.processes import wait_until


def test_a_file_in_parts_becomes_a_model_that_decides(stack: Stack) -> None:
    client = stack.openai()
    rows = [{"text": f"my card {n}", "label": "card"} for n in range(40)]
    rows += [{"text": f"a refund {n}", "label": "refund"} for n in range(40)]
    content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    upload = client.uploads.upload_file_chunked(
        file=content,
        filename="decided.jsonl",
        bytes=len(content),
        mime_type="application/jsonl",
        purpose="fine-tune",
        part_size=1000,
    )
    assert upload.file is not None
    file = client.files.wait_for_processing(upload.file.id, poll_interval=0.2)
    assert file.status == "processed", file.status_details
    job = client.fine_tuning.jobs.create(
        model="tiny-bert", training_file=file.id, suffix="decided", seed=1
    )

    def ended() -> bool:
        return client.fine_tuning.jobs.retrieve(job.id).status in {"succeeded", "failed"}

    wait_until(ended, seconds=JOB_SECONDS)
    done = client.fine_tuning.jobs.retrieve(job.id)
    assert done.fine_tuned_model == "decided@1", done.error
    found = client.decisions.create(
        model=done.fine_tuned_model,
        input="my card 7",
        questions=[
            {
                "type": "choice",
                "instructions": "",
                "choices": [{"value": "refund"}, {"value": "card"}],
            }
        ],
    )
    (answer,) = found.answers
    assert answer.type == "choice"
    assert answer.choice == "card"
    assert answer.confidence > 0.5
    # a base that writes, asked in words
    statement = client.decisions.create(
        model="tiny-llama",
        input="my card 7",
        questions=[{"type": "predicate", "instructions": "It is about a card."}],
    )
    assert statement.answers[0].type == "predicate"
    assert 0 < statement.answers[0].probability < 1

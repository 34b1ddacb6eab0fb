"""`tunery webhooks` against a running service."""

import subprocess
import sys

from tests.service.app.conftest import Edge
from tests.service.app.job_steps import create
from tests.service.app.rows import upload
from tests.service.app.test_key_commands import tunery
from tests.service.receiver import run_receiver
from tests.service.servers.processes import free_port


def test_an_endpoint_is_made_tested_looked_at_and_deleted(edge: Edge) -> None:
    with run_receiver() as receiver:
        made = tunery(edge, "webhooks", "create", "ci", f"{receiver.url}/ok")
        assert made["signing_secret"].startswith("whsec_")
        assert "fine_tuning.job.cancelled" in made["event_types"]
        assert tunery(edge, "webhooks", "test", made["id"])["status_code"] == 204
        tested = tunery(edge, "webhooks", "test", made["id"], "--event", "batch.failed")
        assert tested["event_type"] == "batch.failed"
        few = tunery(
            *(edge, "webhooks", "create", "few", f"{receiver.url}/ok"),
            *("--event", "batch.failed", "--event", "batch.expired"),
        )
        assert few["event_types"] == ["batch.failed", "batch.expired"]
    client = edge.client(edge.key)
    job = create(client, upload(client)["id"])
    tunery(edge, "jobs", "cancel", job["id"])
    (row,) = tunery(edge, "webhooks", "deliveries", made["id"])
    assert (row["event"]["data"]["id"], row["status"]) == (job["id"], "pending")
    again = tunery(edge, "webhooks", "resend", made["id"], row["id"])
    assert again["id"] == row["id"]
    assert tunery(edge, "webhooks", "enable", made["id"])["x_enabled"] is True
    assert [each["name"] for each in tunery(edge, "webhooks", "list")] == ["few", "ci"]
    assert tunery(edge, "webhooks", "delete", made["id"])["deleted"] is True
    assert [each["name"] for each in tunery(edge, "webhooks", "list")] == ["few"]


def test_people_read_tables_and_sentences(edge: Edge) -> None:
    def told(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "cli", "--url", edge.url, "--api-key", edge.key, "webhooks"]
        return subprocess.run([*argv, *words], capture_output=True, text=True, check=False)

    url = f"http://127.0.0.1:{free_port()}/"
    made = told("create", "ci", url, "--event", "fine_tuning.job.cancelled").stdout
    endpoint_id = next(word for word in made.split() if word.startswith("whe_"))
    client = edge.client(edge.key)
    job = create(client, upload(client)["id"])
    client.post(f"/jobs/{job['id']}:cancel").raise_for_status()
    table = told("deliveries", endpoint_id).stdout
    assert ["fine_tuning.job.cancelled", job["id"], "pending", "0"] == table.split()[8:12], table
    failed = told("test", endpoint_id)
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error webhook_unreachable: ")
    assert "the connection was refused" in failed.stderr
    wrong = told("create", "ci", "ftp://example.com")
    assert wrong.stderr.startswith("Error webhook_address_refused: ")

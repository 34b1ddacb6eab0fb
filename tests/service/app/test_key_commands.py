"""`tunery keys` against a running service."""

import json
import subprocess
import sys
from typing import Any

from tests.service.app.conftest import Edge


def tunery(edge: Edge, *words: str) -> Any:
    argv = [sys.executable, "-m", "cli", "--url", edge.url, "--api-key", edge.key, *words, "--json"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_key_is_made_listed_and_revoked(edge: Edge) -> None:
    made = tunery(edge, "keys", "create", "--name", "short", "--scope", "read")
    client = edge.client(made["key"])
    assert client.get("/jobs").status_code == 200
    tunery(edge, "keys", "revoke", made["id"])
    assert client.get("/jobs").status_code == 401
    listed = {row["name"]: row for row in tunery(edge, "keys", "list")}
    assert set(listed) == {"first", "short"}
    assert listed["short"]["revoked_at"] is not None
    assert "key" not in listed["short"]

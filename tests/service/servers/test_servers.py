"""The servers of the tests are real, and nothing of them survives."""

import json
import subprocess
import sys
from pathlib import Path

import redis

from tests.service.servers.processes import answers, wait_until
from tests.service.servers.valkey import run_valkey

ROOT = Path(__file__).parents[3]

KILLED = """
import json, os, signal, sys
from tests.service.servers.postgres import run_postgres
from tests.service.servers.valkey import run_valkey
with run_postgres() as postgres, run_valkey() as valkey:
    ports, folders = [postgres.port, valkey.port], [str(postgres.folder), str(valkey.folder)]
    print(json.dumps({"ports": ports, "folders": folders}), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_servers_and_their_files_end_with_tests_that_are_killed() -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLED], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == -9, result.stderr
    said = json.loads(result.stdout)
    wait_until(lambda: not any(answers(port) for port in said["ports"]), seconds=30)
    wait_until(lambda: not any(Path(name).exists() for name in said["folders"]), seconds=30)


def test_a_broker_can_be_taken_down_and_brought_back_with_its_data() -> None:
    with run_valkey() as server:
        client = redis.Redis.from_url(server.url)
        client.set("kept", "yes")
        server.stop()
        assert not answers(server.port)
        server.start()
        assert client.get("kept") == b"yes"
        server.kill()
        assert not answers(server.port)
        server.start()
        assert client.ping()
        client.close()
    assert not answers(server.port)
    assert not server.folder.exists()

"""Every command of docs/api.md, run as it stands there (without curl: not every machine has it)."""

import re
import shlex
from pathlib import Path
from string import Template

import httpx
import pytest

from tests.service.app.conftest import Edge
from tests.service.app.rows import jsonl, records

PAGE = Path(__file__).parents[3] / "docs" / "api.md"


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [
        found for found in re.split(r"\n(?=curl |export )", joined) if found.startswith("curl ")
    ]


NEED_A_MODEL = ("/export?format=", "file=@theirs.zip", "/adapters:merge", "$CHECKPOINT")
"""The twin of inference has none to read and write adapters with, and no worker trains here:
`test_exchange` and `test_checkpoints` have what they need."""


def run(command: str, folder: Path) -> httpx.Response:
    """Do what curl would do; an option that is not known here fails."""
    words = iter(shlex.split(command)[1:])
    url, method, headers, body = "", "", {}, None
    fields: dict[str, str] = {}
    files: dict[str, tuple[str, bytes]] = {}
    for word in words:
        if word in {"-s", "-sN", "-g"}:
            continue
        if word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "-X":
            method = next(words)
        elif word == "-d":
            body = next(words)
        elif word == "-F":
            name, _, value = next(words).partition("=")
            if value.startswith("@"):
                files[name] = (value[1:], (folder / value[1:]).read_bytes())
            else:
                fields[name] = value
        elif word == "-o":
            next(words)
        else:
            assert word.startswith("http"), f"unknown word {word!r} in {command}"
            url = word
    method = method or ("POST" if body or files else "GET")
    return httpx.request(
        method,
        url,
        headers=headers,
        content=body,
        data=fields or None,
        files=files or None,
        timeout=30,
    )


def test_there_are_commands() -> None:
    assert len(commands()) > 20


def test_every_command_works(
    edge: Edge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: httpx.Client
) -> None:
    (tmp_path / "intents.jsonl").write_bytes(jsonl(records(60)))
    edge.publish("support-intents")
    edge.publish("support-intents")
    known = {"TUNERY": edge.url, "TUNERY_KEY": edge.key, "DATASET": "", "JOB": "", "SWEEP": ""}
    for command in commands():
        filled = Template(command).safe_substitute(known)
        if "text/event-stream" in filled:
            # the stream ends with the job: another one is cancelled for it
            made = client.post(
                "/jobs",
                json={
                    "dataset_id": known["DATASET"],
                    "base_model": "minilm",
                    "metadata": {"for": "stream"},
                },
            ).json()
            client.post(f"/jobs/{made['id']}:cancel").raise_for_status()
            filled = filled.replace(known["JOB"], made["id"])
        if any(part in filled for part in NEED_A_MODEL):
            continue
        response = run(filled, tmp_path)
        assert response.is_success, (filled, response.text)
        if "/datasets " in command and not known["DATASET"]:
            known["DATASET"] = response.json()["id"]
        if "/sweeps " in command:
            known["SWEEP"] = response.json()["id"]
        if "/jobs:estimate" in command:
            known["ESTIMATE"] = response.json()["id"]
        if "/jobs " in command:
            known["JOB"] = response.json()["id"]

"""The commands without a service: what they refuse, and how they say it."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.client import Client, RequestFailedError
from cli.connection import read_key
from cli.fields import read_setting
from cli.jobs import show_job
from cli.output import as_text
from cli.predict import short_answer
from cli.programs import free_ports
from cli.progress import follow, wait_for
from cli.report import show_test
from cli.serve import CannotServeError, check_ports, only_one
from core.db import open_database, tenants
from core.settings import load_settings


def tunery(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "cli", *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def test_a_service_that_is_not_there_is_one_line_with_a_way_out() -> None:
    (port,) = free_ports(1)
    done = tunery("--url", f"http://127.0.0.1:{port}", "jobs", "list")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("Error unreachable: Cannot reach")
    assert "tunery serve" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "option",
    [
        ("--api-key", "tk_…"),
        ("--url", "http://[::1"),
        ("--url", "http://a:b"),
        ("--url", "127.0.0.1:8000"),
        ("--url", "ftp://127.0.0.1"),
    ],
)
def test_what_cannot_be_a_key_or_an_address_is_one_line(option: tuple[str, str]) -> None:
    done = tunery(*option, "jobs", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error bad_option: "), done.stderr


def test_another_service_at_the_address_is_told() -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with Client(url, " tk_key\r\n") as client, pytest.raises(RequestFailedError) as caught:
            client.get("/jobs")
        server.shutdown()
    assert (caught.value.code, "not an answer" in str(caught.value)) == ("unexpected_answer", True)


def test_a_setting_that_is_wrong_is_named_without_its_value(tmp_path: Path) -> None:
    done = tunery("serve", "--data-dir", str(tmp_path), "--port", "70000")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()  # nothing of the settings whose default follows from it
    assert line.startswith("Setting port: ")
    assert "Traceback" not in done.stderr


def test_a_start_that_the_disk_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "logs").touch()
    ports = [str(port) for port in free_ports(2)]
    done = tunery(
        *("serve", "--data-dir", str(tmp_path)), *("--port", ports[0], "--inference-port", ports[1])
    )
    assert (done.returncode, done.stderr) == (1, "")
    assert "Cannot serve from" in done.stdout.splitlines()[-1]
    assert "logs" in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "words", [("migrate", "--data-dir", __file__), ("orphans", "--data-dir", __file__)]
)
def test_a_data_directory_that_is_a_file_is_one_line(words: tuple[str, ...]) -> None:
    done = tunery(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error files: File exists ({__file__})\n"


def test_an_id_in_other_bytes_than_utf_8_is_one_line() -> None:
    done = tunery("jobs", "get", os.fsdecode(b"job_\xff"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error bad_text: '\\udcff' is no utf-8\n"


def test_a_file_may_be_called_in_any_bytes(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"rows-\xff.jsonl")
    path.write_bytes(b"{}")
    (port,) = free_ports(1)
    with (
        Client(f"http://127.0.0.1:{port}", None) as client,
        pytest.raises(RequestFailedError, match="Cannot reach"),  # so far it comes
    ):
        client.upload({"file": path}, {})


def test_a_download_from_nobody_says_that_nobody_is_there(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with (
        Client(f"http://127.0.0.1:{port}", None) as client,
        pytest.raises(RequestFailedError, match="Is it running"),
    ):
        client.download("/x", tmp_path / "x")


def test_a_misspelt_setting_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNERY_BANK_BYTE", "1")
    (tmp_path / "logs").touch()  # ends the start
    done = tunery("serve", "--data-dir", str(tmp_path))
    assert done.stdout.splitlines()[0].endswith("did you mean TUNERY_BANK_BYTES?")


def test_the_data_directory_is_closed_to_others(tmp_path: Path) -> None:
    assert tunery("migrate", "--data-dir", str(tmp_path / "a")).returncode == 0
    with only_one(tmp_path / "b"):
        pass
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o700, 0o700]


def test_a_migration_makes_a_key_once_wherever_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As deployments do: a database elsewhere, and a fresh data directory each time."""
    monkeypatch.setenv("TUNERY_DATABASE_URL", f"sqlite:///{tmp_path / 'far' / 'tunery.db'}")
    printed = []
    for place in ("a", "b"):
        done = tunery("migrate", "--data-dir", str(tmp_path / place))
        assert (done.returncode, done.stderr) == (0, "")
        printed.append("tk_" in done.stdout)
    assert printed == [True, False]
    assert (tmp_path / "a" / "api-key").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "b").exists()


def test_a_first_key_that_cannot_be_kept_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNERY_DATABASE_URL", f"sqlite:///{tmp_path / 'tunery.db'}")
    (tmp_path / "file").touch()
    done = tunery("migrate", "--data-dir", str(tmp_path / "file" / "data"))
    assert done.returncode == 1
    assert "cannot be kept" in done.stderr
    assert "Traceback" not in done.stderr
    assert "tk_" in tunery("migrate", "--data-dir", str(tmp_path / "b")).stdout


def read_working_key(made: subprocess.CompletedProcess[str], data_dir: Path) -> dict[str, str]:
    """What a command showed of a tenant, whose key opens everything that is the tenant's."""
    assert made.returncode == 0, made.stderr
    shown: dict[str, str] = json.loads(made.stdout)
    database = open_database(load_settings(data_dir=data_dir))
    with database.read() as session:
        key = tenants.authenticate(session, shown["key"])
        assert key is not None
        assert (key.tenant_id, set(key.scopes)) == (shown["id"], set(tenants.SCOPES))
    database.dispose()
    return shown


def test_a_tenant_that_lost_its_keys_gets_another(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    missing = tunery("tenants", "key", *where)
    assert tunery("tenants", "list", *where, "--json").stdout.strip() == "[]"
    assert (missing.returncode, "no tenant named" in missing.stderr) == (1, True)
    tunery("migrate", *where)
    made = tunery("tenants", "key", "default", *where, "--json")
    shown = read_working_key(made, tmp_path)
    (listed,) = json.loads(tunery("tenants", "list", *where, "--json").stdout)
    assert (listed["id"], listed["name"]) == (shown["id"], "default")


def test_an_open_directory_gets_closed_files(tmp_path: Path) -> None:
    """`make models` makes the data directory before the service does."""
    tmp_path.chmod(0o755)
    assert tunery("migrate", "--data-dir", str(tmp_path)).returncode == 0
    (tmp_path / "new").mkdir()
    assert tunery("tenants", "list", "--data-dir", str(tmp_path / "new")).returncode == 0
    made = [tmp_path / "tunery.db", tmp_path / "api-key", tmp_path / "new" / "tunery.db"]
    assert [path.stat().st_mode & 0o077 for path in made] == [0, 0, 0]


def test_a_tenant_is_made_once_with_a_key_that_works(tmp_path: Path) -> None:
    made = tunery("tenants", "create", "other", "--data-dir", str(tmp_path), "--json")
    read_working_key(made, tmp_path)

    again = tunery("tenants", "create", "other", "--data-dir", str(tmp_path))
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "Error conflict: a tenant named 'other' exists\n"
    assert tunery("tenants", "create", " ", "--data-dir", str(tmp_path)).returncode == 1


def test_a_data_directory_before_a_command_is_the_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a tenant would be made, with a key, in a database that no service knows."""
    monkeypatch.setenv("TUNERY_DATA_DIR", str(tmp_path / "environment"))
    before, after = (("--data-dir", str(tmp_path / name)) for name in ("before", "after"))
    assert tunery(*before, "tenants", "create", "one").returncode == 0
    assert tunery(*before, "tenants", "create", "two", *after).returncode == 0
    assert tunery("tenants", "create", "three").returncode == 0
    for name, tenant in (("before", "one"), ("after", "two"), ("environment", "three")):
        (listed,) = json.loads(
            tunery("tenants", "list", "--data-dir", str(tmp_path / name), "--json").stdout
        )
        assert listed["name"] == tenant


def test_orphans_are_listed_and_deleted_only_on_demand(tmp_path: Path) -> None:
    orphan = tmp_path / "objects" / "deltas" / "lost.safetensors"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"x")
    os.utime(orphan, (1e9, 1e9))
    command = ("orphans", "--data-dir", str(tmp_path))
    listed = tunery(*command)
    assert (listed.returncode, listed.stdout) == (0, "deltas/lost.safetensors\n")
    refused = tunery(*command, "--delete")  # nothing else lies there: whose store is this?
    assert refused.returncode == 1
    assert "give --force" in refused.stderr
    assert orphan.exists()
    assert tunery(*command, "--delete", "--force").returncode == 0
    assert not orphan.exists()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("training.epochs=2", {"training": {"epochs": 2}}),
        ("adapter_name=mine", {"adapter_name": "mine"}),
        ("training.early_stopping=null", {"training": {"early_stopping": None}}),
        ('metadata={"team": "care"}', {"metadata": {"team": "care"}}),
        ("metadata.note=a=b", {"metadata": {"note": "a=b"}}),
    ],
)
def test_set_puts_json_or_text(setting: str, expected: dict[str, Any]) -> None:
    body: dict[str, Any] = {}
    read_setting(body, setting)
    assert body == expected


@pytest.mark.parametrize("setting", ["training.epochs", "method.r=8"])
def test_set_refuses_what_it_cannot_put(setting: str) -> None:
    with pytest.raises(RequestFailedError, match="--set"):
        read_setting({"method": "lora"}, setting)


def test_the_first_key_is_read_from_the_data_directory(tmp_path: Path) -> None:
    assert read_key(tmp_path) is None
    (tmp_path / "api-key").write_text("tk_secret\n", encoding="utf-8")
    assert read_key(tmp_path) == "tk_secret"


def test_a_data_directory_has_one_service(tmp_path: Path) -> None:
    with only_one(tmp_path), pytest.raises(CannotServeError, match="Another"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        assert (tmp_path / "serve.lock").exists()


def test_a_data_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(CannotServeError, match="Cannot write"),
        only_one(tmp_path / "file" / "data"),
    ):
        pass


def test_an_address_of_another_machine_cannot_be_listened_on(tmp_path: Path) -> None:
    # 192.0.2.0/24 is kept for documentation: no machine has it.
    settings = load_settings(data_dir=tmp_path, host="192.0.2.1")
    with pytest.raises(CannotServeError, match=r"192\.0\.2\.1:8000.*--port"):
        check_ports(settings)


def test_output_shows_brackets_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Console().print(as_text(["[red]not red[/red]"]))
    assert capsys.readouterr().out == '["[red]not red[/red]"]\n'


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ({"label": "card", "score": 0.98765, "scores": {}}, "card  0.988"),
        ({"text": "a shop", "finish_reason": "stop"}, "a shop"),
        ({"embedding": [0.5, 0.25]}, "a vector of 2 numbers (--json shows it)"),
        ({"value": 3}, json.dumps({"value": 3})),
    ],
)
def test_an_answer_is_shown_by_its_essence(output: dict[str, Any], shown: str) -> None:
    assert short_answer(output) == shown


def job(status: str, **fields: Any) -> dict[str, Any]:
    return {"status": status, "phase": None, "attempt": 1, "progress": None} | fields


def test_progress_is_lines_where_no_terminal_is(capsys: pytest.CaptureFixture[str]) -> None:
    step = {"step": 3, "total_steps": 10, "loss": 0.51239, "eta_seconds": 75.2}
    states = iter(
        [
            job("queued"),
            job("queued"),
            job("running", phase="training", progress=step, attempt=2),
            job("running", phase="evaluating", progress=step | {"eta_seconds": None}, attempt=2),
            job("succeeded", progress=step | {"step": 10}, attempt=2),
        ]
    )
    ended = follow(lambda: next(states), console=Console(force_terminal=False), every_seconds=0)
    assert ended["status"] == "succeeded"
    assert capsys.readouterr().out.splitlines() == [
        "  0:00 queued",
        "  0:00 training (attempt 2) step 3/10 loss 0.512  ETA 1:15",
        "  0:00 evaluating (attempt 2) step 3/10 loss 0.512",
        "  0:00 succeeded (attempt 2) step 10/10 loss 0.512",
    ]


def test_time_left_is_that_of_the_steps_where_no_more_is_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    step = {"step": 3, "total_steps": 10, "training_seconds_left": 75.2, "eta_seconds": None}
    states = iter([job("running", phase="training", progress=step), job("succeeded")])
    follow(lambda: next(states), console=Console(force_terminal=False), every_seconds=0)
    assert "training step 3/10 1:15 to the last step" in capsys.readouterr().out


def test_progress_is_a_bar_in_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    step = {"step": 10, "total_steps": 10, "loss": 0.5, "eta_seconds": 0}
    console = Console(force_terminal=True, width=120)
    follow(lambda: job("succeeded", progress=step), console=console, every_seconds=0)
    assert "10/10" in capsys.readouterr().out


def test_waiting_outlives_a_service_that_is_away() -> None:
    answers = iter([False, False, True])

    def poll() -> dict[str, Any]:
        if not next(answers):
            raise RequestFailedError("gone", code="unreachable")
        return {"ready": True}

    assert wait_for(poll, until=lambda seen: bool(seen["ready"]), every_seconds=0)


def test_waiting_does_not_outlive_a_refusal() -> None:
    def poll() -> dict[str, Any]:
        raise RequestFailedError("no such job", code="job_not_found")

    with pytest.raises(RequestFailedError, match="no such job"):
        wait_for(poll, until=lambda _: True, every_seconds=0)


def test_the_test_report_shows_what_the_adapter_adds_to_the_frozen_head(
    capsys: pytest.CaptureFixture[str],
) -> None:
    test = {
        "rows": 40,
        "before": {"accuracy": 0.8},
        "after": {"accuracy": 0.9},
        "delta": {"accuracy": 0.1},
        "confidence_interval": {"accuracy": [0.05, 0.15]},
        "before_is": "nearest centroid",
        "metric": "accuracy",
        "baselines": [
            {"what": "nearest centroid", "rows": 40, "metrics": {"accuracy": 0.8}},
            {"what": "most frequent class", "rows": 40, "metrics": {"accuracy": 0.3}},
        ],
        "verdict": "It helped: on 40 test rows accuracy went from 0.8 to 0.9.",
        "frozen_head": {"accuracy": 0.875},
        "against_frozen_head": {
            "delta": {"accuracy": 0.025},
            "confidence_interval": {"accuracy": [-0.01, 0.06]},
        },
    }
    show_test({"metrics": {"test": test}})
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("+0.100", "frozen head", "0.875", "+0.025", "-0.010", "nearest centroid"):
        assert text in shown
    assert "It helped: on 40 test rows" in shown
    assert "Also without tuning: 0.3 on 40 rows, most frequent class" in shown
    assert shown.count("nearest centroid") == 1
    show_test({"metrics": None})
    assert capsys.readouterr().out == ""
    job = {"id": "job_1", "status": "succeeded", "metrics": {"test": test}}
    show_job({**job, "progress": {"step": 3, "total_steps": 4, "tokens": 77}})
    told = capsys.readouterr().out
    assert "step 3 of 4" in told
    assert "It helped: on 40 test rows" in " ".join(told.split())
    assert "{" not in told, "a person is shown the raw report"

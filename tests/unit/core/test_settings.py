import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from core.settings import (
    Settings,
    child_environment,
    explain_unknown_variables,
    is_loopback,
    load_settings,
)

SECRET = "hunter2-very-secret"


def test_defaults_need_nothing_but_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load_settings()
    assert settings.data_dir == tmp_path / "data"
    assert settings.database_url == f"sqlite:///{tmp_path}/data/tunery.db"
    assert settings.storage_url == f"file://{tmp_path}/data/objects"
    assert settings.models_dir == tmp_path / "data" / "models"
    assert settings.inference_url == "http://127.0.0.1:8010"
    assert settings.broker_url is None
    assert settings.auth == "on"
    assert set(settings.base_models) == {"minilm", "smollm2"}


def test_the_environment_wins_over_defaults_and_arguments_win_over_both(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TUNERY_PORT", "9000")
    monkeypatch.setenv("TUNERY_INFERENCE_PORT", "9010")
    monkeypatch.setenv("TUNERY_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TUNERY_BASE_MODELS", '{"tiny": "/models/tiny"}')
    settings = load_settings(port=9001)
    assert settings.port == 9001
    assert settings.inference_url == "http://127.0.0.1:9010"
    assert settings.database_url == f"sqlite:///{tmp_path}/tunery.db"
    assert settings.base_models == {"tiny": "/models/tiny"}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_auth_may_be_off_on_loopback(host: str) -> None:
    assert load_settings(auth="off", host=host).auth == "off"


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", ""]
)
def test_auth_must_be_on_elsewhere(host: str) -> None:
    assert not is_loopback(host)
    with pytest.raises(ValidationError, match="auth=off is allowed only on a loopback host"):
        load_settings(auth="off", host=host)
    assert load_settings(auth="on", host=host).host == host


def _with_secrets() -> Settings:
    return load_settings(
        database_url=f"postgresql://user:{SECRET}@db/tunery",
        broker_url=f"redis://:{SECRET}@broker/0",
        s3_secret_access_key=SECRET,
        s3_access_key_id=SECRET,
        inference_token=SECRET,
    )


def test_secrets_are_in_no_repr() -> None:
    settings = _with_secrets()
    assert SECRET not in repr(settings)
    assert SECRET not in str(settings)
    assert settings.inference_token is not None
    assert settings.inference_token.get_secret_value() == SECRET


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("INFERENCE_PORT", SECRET),
        ("AUTH", SECRET),
        ("LEASE_SECONDS", SECRET),
        ("MAX_ATTEMPTS", "0"),
    ],
)
def test_a_bad_value_is_named_by_its_field_and_not_repeated(
    field: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"TUNERY_{field}", value)
    with pytest.raises(ValidationError) as caught:
        load_settings()
    assert field.lower() in str(caught.value)
    assert SECRET not in str(caught.value)


def test_settings_are_frozen_and_know_no_other_field() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        load_settings(no_such_field=1)


def test_a_lease_holds_at_least_three_heartbeats() -> None:
    with pytest.raises(ValidationError, match="at least three times"):
        load_settings(lease_seconds=2, heartbeat_seconds=1)


@pytest.mark.parametrize("name", ["", "Mini", "a b", "-a", "a/b", "a" * 65])
def test_base_models_have_names_that_routes_and_tables_hold(name: str) -> None:
    with pytest.raises(ValidationError, match="names match"):
        load_settings(base_models={name: "pkg:x"})


def test_served_base_models_must_be_known() -> None:
    with pytest.raises(ValidationError, match="nosuch"):
        load_settings(served_base_models=["nosuch"])
    assert load_settings(served_base_models=["minilm"]).served_base_models == ["minilm"]


def test_a_child_process_sees_the_same_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TUNERY_PORT", "9000")
    monkeypatch.setenv("UNRELATED", "kept")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    settings = _with_secrets().model_copy(
        update={
            "data_dir": tmp_path / "ünïcode folder",
            "served_base_models": ["minilm"],
            "allow_hub": True,
        }
    )
    environment = child_environment(settings)
    assert environment["UNRELATED"] == "kept"
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert child_environment(settings)["OMP_WAIT_POLICY"] == "ACTIVE"
    assert "TUNERY_THREADS" not in environment
    script = (
        "from core.settings import load_settings; s = load_settings();"
        "print(s.model_dump_json());"
        "print(s.inference_token.get_secret_value())"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | {"PYTHONPATH": str(Path(__file__).parents[3]), "PYTHONUTF8": "1"},
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    dumped, token = result.stdout.splitlines()
    assert dumped == settings.model_dump_json()
    assert token == SECRET


def test_a_variable_that_nothing_reads_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUNERY_URL", "TUNERY_API_KEY", "TUNERY_KEY", "TUNERY_BANK_BYTES"):
        monkeypatch.setenv(name, "1")
    assert not list(explain_unknown_variables())
    monkeypatch.setenv("TUNERY_BANK_BYTE", "1")
    monkeypatch.setenv("TUNERY_XYZ", "secret")
    near, far = explain_unknown_variables()
    assert near.startswith("TUNERY_BANK_BYTE is no setting")
    assert near.endswith("did you mean TUNERY_BANK_BYTES?")
    assert far == "TUNERY_XYZ is no setting and does nothing"

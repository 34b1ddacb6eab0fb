"""`Dockerfile` and compose file agree with each other, with the settings and with `serve`."""

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.programs import after_migration
from core.settings import ENV_PREFIX, Settings, load_settings

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
# Which service runs what `serve` starts under which name.
SAME_COMMAND = {
    "api": "api",
    "inference": "inference",
    "worker": "training",
    "housekeeping": "housekeeping",
    "beat": "beat",
    "batches": "batches",
}

STOP = "--timeout-graceful-shutdown"


def read_stages() -> dict[str, str]:
    parts = re.split(r"^FROM \S+ AS (\S+)$", DOCKERFILE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def read_command(service: str) -> list[str]:
    """The command of a service: its own, or that of its image."""
    if "command" in SERVICES[service]:
        return list(SERVICES[service]["command"])
    stage = read_stages()[SERVICES[service]["build"]["target"]]
    commands = re.findall(r"^CMD (\[.*\])$", stage, flags=re.MULTILINE)
    return [str(part) for part in json.loads(commands[-1])]


def test_there_is_an_image_for_each_edge() -> None:
    assert {"api", "worker", "inference"} <= read_stages().keys()
    assert {SERVICES[name]["build"]["target"] for name in OURS} <= read_stages().keys()


@pytest.mark.parametrize("target", ["api", "worker", "inference"])
def test_an_image_runs_as_nobody_special_and_can_be_probed(target: str) -> None:
    stage = read_stages()[target]
    assert "USER tunery" in stage
    assert "HEALTHCHECK" in stage


def test_the_api_image_has_no_engine() -> None:
    stages = read_stages()
    assert "--from=build-api" in stages["api"]
    assert "--from=build-engine" in stages["worker"]
    assert "FROM packages-api AS build-api" in DOCKERFILE
    assert "FROM packages-engine AS build-engine" in DOCKERFILE
    assert "['engine']" not in stages["packages-api"] + stages["build-api"]
    assert "['engine']" in stages["packages-engine"]


def test_a_change_of_code_installs_no_package_again() -> None:
    stages = read_stages()
    for name in ("packages-api", "packages-engine"):
        copied = re.findall(r"^COPY (.*)$", stages[name], flags=re.MULTILINE)
        assert copied in ([], ["pyproject.toml constraints.txt ./"])
    for name in ("build-api", "build-engine"):
        assert re.findall(r"^RUN (.*)$", stages[name], flags=re.MULTILINE) == [
            "pip install --no-cache-dir --no-deps /wheels/*.whl"
        ]


def test_the_wheel_is_made_of_every_package() -> None:
    built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]
    packages = built["build"]["targets"]["wheel"]["packages"]
    copied = re.findall(r"^COPY (\w+) \1$", read_stages()["wheel"], flags=re.MULTILINE)
    assert sorted(copied) == sorted(packages)


@pytest.mark.parametrize("service", OURS)
def test_a_service_reads_the_settings_of_the_env_file(service: str) -> None:
    # without it only what the compose file names would reach the containers, in silence
    assert SERVICES[service]["env_file"] == [{"path": ".env", "required": False}]


def test_variables_that_compose_needs_are_in_the_example() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    for name in set(re.findall(r"\$\{(\w+)", compose)):
        assert re.search(rf"^#{name}=", example, flags=re.MULTILINE), name


@pytest.mark.parametrize("service", OURS)
def test_every_variable_of_a_service_is_a_setting(service: str) -> None:
    for name in SERVICES[service]["environment"]:
        assert name.startswith(ENV_PREFIX)
        assert name.removeprefix(ENV_PREFIX).lower() in Settings.model_fields


@pytest.mark.parametrize("service", list(SERVICES))
def test_what_a_service_waits_for_exists_and_can_become_true(service: str) -> None:
    for name, wanted in SERVICES[service].get("depends_on", {}).items():
        other = SERVICES[name]
        if wanted["condition"] == "service_completed_successfully":
            assert other["restart"] == "no"
        else:
            assert wanted["condition"] == "service_healthy"
            assert "healthcheck" in other


@pytest.mark.parametrize(("service", "program"), SAME_COMMAND.items())
def test_a_service_runs_the_command_line_of_serve(
    service: str, program: str, tmp_path: Path
) -> None:
    settings = load_settings(data_dir=tmp_path, host="0.0.0.0", port=8000)
    (found,) = [one for one in after_migration(settings) if one.name == program]
    ours, theirs = without_stop(read_command(service)), without_stop(found.argv)
    assert ours[0] == "python"
    assert sorted(ours[1:]) == sorted(theirs[1:])


def without_stop(command: Sequence[str]) -> list[str]:
    """A command without how long it may take to stop: where containers are replaced, longer."""
    return [part for before, part in zip(("", *command), command) if before != STOP]  # noqa: B905


def test_a_container_that_is_replaced_may_end_its_texts() -> None:
    seconds = load_settings().inference_stop_seconds
    command = read_command("api")
    assert float(command[command.index(STOP) + 1]) >= seconds
    for service in ("api", "inference"):
        assert float(SERVICES[service]["stop_grace_period"].removesuffix("s")) >= seconds + 5


@pytest.mark.parametrize("program", SAME_COMMAND.values())
def test_the_page_for_operators_gives_the_command_line_of_serve(
    program: str, tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    given = [line.partition("#")[0].split() for line in page.splitlines()]
    settings = load_settings(data_dir=tmp_path, host="127.0.0.1", port=8000)
    (found,) = [one for one in after_migration(settings) if one.name == program]
    assert ["python", *found.argv[1:]] in given


def test_named_volumes_are_declared() -> None:
    used = {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", [])
    }
    assert used == COMPOSE["volumes"].keys()

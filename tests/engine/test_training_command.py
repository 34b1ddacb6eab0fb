"""``python -m peft_engine.training``: what a job asks for is done, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from peft_engine.bases.base import Base
from peft_engine.compression.derive import describe_derived, make_plan, name_rows, plan_path
from peft_engine.compression.pruning import Calibration
from peft_engine.configs import BaseConfig
from peft_engine.configs.base import split_base_name
from peft_engine.configs.manifest import Manifest
from peft_engine.delta import load_delta
from peft_engine.errors import ConfigError
from peft_engine.parts.batching import Example, TokenRow
from peft_engine.training import __main__ as command
from tests.engine.test_training import CLASSIFICATION

JOB: dict[str, Any] = {
    "dataset_id": "ds",
    "base_model": "bert",
    "task": "text-classification",
    "method": {"type": "lora", "r": 2},
    "training": {"max_steps": 1, "batch_size": 8},
}
PRUNED: dict[str, Any] = {"pruning": {"method": "wanda"}}


def arguments(bert: Base, folder: Path, out: str, *more: str, **fields: Any) -> list[str]:
    """The command line of a job; its files lie in the folder."""
    (folder / "job.json").write_text(json.dumps(JOB | fields))
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, CLASSIFICATION["train"])))
    given = {"base": bert.info.reference, "models-dir": folder, "device": "cpu"}
    given |= {"train": folder / "train.jsonl", "out": folder / out}
    options = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return [str(folder / "job.json"), *options, *more]


def manifest_of(path: Path) -> Manifest:
    return load_delta(path).manifest


@pytest.mark.parametrize(
    "fields",
    [
        {"base": {"quantization": "int8"}},
        {"base_model": "bert@int8"},
        {"base": {"pruning": {"method": "magnitude", "sparsity": 0.3}}},
    ],
)
def test_the_base_is_derived(bert: Base, tmp_path: Path, fields: dict[str, Any]) -> None:
    assert command.main(arguments(bert, tmp_path, "delta", **fields)) == 0
    manifest = manifest_of(tmp_path / "delta")
    _, derivation = split_base_name(manifest.base_model)
    assert derivation.is_derived
    wanted = describe_derived(bert.info, derivation).fingerprint
    assert manifest.base_fingerprint == wanted != bert.fingerprint


def test_a_plan_that_is_kept_prunes(bert: Base, tmp_path: Path) -> None:
    rows = Calibration.of([Example((TokenRow([2, 5, 6, 3]),))], count=1)
    derivation = name_rows(BaseConfig.model_validate(PRUNED), rows)
    assert derivation.pruning is not None
    fields = {"base": derivation.model_dump(mode="json")}
    wanted = describe_derived(bert.info, derivation).fingerprint

    assert command.main(arguments(bert, tmp_path, "early", **fields)) == 1
    assert not (tmp_path / "early").exists()
    kept = plan_path(tmp_path, wanted)
    kept.parent.mkdir()
    kept.write_bytes(make_plan(bert.info, derivation.pruning, rows).to_bytes())
    assert command.main(arguments(bert, tmp_path, "delta", **fields)) == 0
    assert manifest_of(tmp_path / "delta").base_fingerprint == wanted


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"base": PRUNED}, "base.pruning"), ({"parent_adapter_id": "mine@2"}, "parent_adapter_id")],
)
def test_what_the_service_alone_knows_is_refused(
    bert: Base,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, Any],
    param: str,
) -> None:
    refused: list[ConfigError] = []
    train = command._train

    def watched(*given: Any) -> None:
        try:
            train(*given)
        except ConfigError as error:
            refused.append(error)
            raise

    monkeypatch.setattr(command, "_train", watched)
    assert command.main(arguments(bert, tmp_path, "delta", **fields)) == 1
    assert [error.param for error in refused] == [param]
    assert param in capsys.readouterr().err
    assert not (tmp_path / "delta").exists()


def test_a_job_goes_on_from_a_file(bert: Base, tmp_path: Path) -> None:
    assert command.main(arguments(bert, tmp_path, "parent")) == 0
    more = ("--parent", str(tmp_path / "parent"))
    fields = {"parent_adapter_id": "mine@1", "method": "lora"}
    assert command.main(arguments(bert, tmp_path, "child", *more, **fields)) == 0
    child, parent = (load_delta(tmp_path / name) for name in ("child", "parent"))
    assert child.manifest.parent_digest == parent.digest
    assert child.manifest.methods == parent.manifest.methods

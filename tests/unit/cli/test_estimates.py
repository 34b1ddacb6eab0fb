"""An estimate as a person reads it."""

import copy
from typing import Any

import pytest

from cli.estimates import show_estimate
from tests.service.app.test_estimates import RESULT


def shown(capsys: pytest.CaptureFixture[str], result: dict[str, Any] | None, **more: Any) -> str:
    show_estimate({"id": "est_1", "status": "succeeded", "result": result, **more})
    return " ".join(capsys.readouterr().out.split())


def test_what_fits_has_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    result = copy.deepcopy(RESULT)
    result["seconds"]["steps"] = {"likely": 130.0, "low": 61.0, "high": 200.0}
    result["seconds"]["writing"] = dict.fromkeys(("likely", "low", "high"), 0.0)
    result["memory"]["peak_bytes"] = 5_000_000
    text = shown(capsys, result)
    assert "It fits: 5 MB beside the base, which takes 0 MB" in text
    assert "steps │ 2:10 │ 1:01 │ 3:20" in text
    assert "writing" not in text
    assert "trainable_parameters 7" in text


def test_what_does_not_fit_says_what_to_set(capsys: pytest.CaptureFixture[str]) -> None:
    suggestion = {"batch_size": 1, "gradient_checkpointing": True}
    text = shown(capsys, RESULT | {"fits": False, "suggestion": suggestion})
    assert "--set training.batch_size=1 --set training.gradient_checkpointing=true it does" in text
    nothing = {"fits": False, "seconds": None, "notes": ["memory ran out [/bold]"]}
    text = shown(capsys, RESULT | nothing)
    assert "nothing was found" in text
    assert "Note: memory ran out [/bold]" in text


def test_a_failure_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, None, error={"code": "trainer_killed", "message": "why"})
    assert "trainer_killed" in text

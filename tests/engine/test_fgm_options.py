"""FGM takes one step: the options of PGD's steps are refused with it and not reported."""

from typing import Any

import pytest
from pydantic import ValidationError

from peft_engine.bases.base import Base
from peft_engine.configs.training import AdversarialConfig
from tests.engine.test_training import CLASSIFICATION, job, run


@pytest.mark.parametrize("given", [{"steps": 9}, {"step_size": 0.2}])
def test_steps_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=f"leave {next(iter(given))} out"):
        AdversarialConfig.model_validate({"type": "fgm"} | given)
    AdversarialConfig.model_validate({"type": "pgd"} | given)


def test_a_stored_job_that_names_every_option_is_read() -> None:
    config = AdversarialConfig()
    assert AdversarialConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("kind", "shown"),
    [("fgm", {"type", "epsilon"}), ("pgd", {"type", "epsilon", "steps", "step_size"})],
)
def test_the_report_shows_what_the_attack_was(kind: str, shown: set[str], bert: Base) -> None:
    spec = job(max_steps=1, adversarial={"type": kind})
    assert run(bert, spec, CLASSIFICATION).metrics["test"]["robustness"]["attack"].keys() == shown

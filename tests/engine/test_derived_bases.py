"""Deltas on derived bases: trained, stored, answered in company, and refused elsewhere."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from peft_engine.bases.base import Base
from peft_engine.certificate import certify
from peft_engine.compression.derive import describe_derived, load_derived
from peft_engine.configs import BaseConfig
from peft_engine.delta import check_delta, load_delta, save_delta
from peft_engine.errors import ConfigError, DeltaError
from peft_engine.router import Router
from peft_engine.serving import Engine, Row, prepare_row
from tests.engine.conftest import make_delta
from tests.engine.derived import derived_from
from tests.engine.test_training import CLASSIFICATION, GENERATION, job, run

# Each reads the base's weights, or changes what enters and leaves its linears, in a way of its own.
METHODS: dict[str, tuple[Any, float]] = {
    "lora": ({"type": "lora", "r": 4}, 0.01),
    "dora": ({"type": "lora", "r": 4, "dora": True}, 0.01),
    "bitfit + ia3": (["bitfit", "ia3"], 0.03),
    "mask magnitude": ({"type": "mask", "selection": "magnitude", "density": 0.05}, 0.02),
    "mask fisher": ({"type": "mask", "selection": "fisher", "density": 0.05, "samples": 8}, 0.02),
    "full": ("full", 0.003),
    "prefix + norm": ([{"type": "prefix", "length": 4}, "norm"], 0.03),
}
CASES = [
    ("bert", "int8", "lora"),
    ("llama", "int8", "lora"),
    ("llama", "int8-weight-only", "lora"),
    ("bert", "int4", "lora"),
    ("bert", "nf4", "lora"),
    ("llama", "nf4", "bitfit + ia3"),
    ("bert", "int8", "dora"),
    ("bert", "int8", "mask magnitude"),
    ("bert", "int8", "mask fisher"),
    ("bert", "int8", "full"),
    ("llama", "int8", "prefix + norm"),
]


@pytest.mark.parametrize(("family", "scheme", "method"), CASES)
def test_a_delta_is_trained_stored_and_answers_in_company(
    family: str, scheme: str, method: str, request: pytest.FixtureRequest
) -> None:
    parent: Base = request.getfixturevalue(family)
    base = derived_from(parent, scheme)
    config, rate = METHODS[method]
    task, rows = (
        ("text-classification", CLASSIFICATION)
        if family == "bert"
        else ("text-generation", GENERATION)
    )
    before = [tensor.clone() for tensor in base.model.state_dict().values()]
    spec = job(task, method=config, learning_rate=rate, epochs=4, eval_generate_rows=0)
    result = run(base, spec, rows)
    delta = result.delta
    assert delta is not None
    after = list(base.model.state_dict().values())
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    test = result.metrics["test"]
    floor = test["frozen_head"] if task == "text-classification" else test["before"]
    assert test["after"]["loss"] < 0.97 * floor["loss"]
    assert (delta.manifest.base_model, delta.manifest.base_fingerprint) == (
        base.name,
        base.fingerprint,
    )

    found = load_delta(save_delta(delta), device=base.device)
    assert found.digest == delta.digest
    check_delta(
        found, base.trunk, fingerprint=base.fingerprint, template_digest=base.template_digest
    )
    with pytest.raises(DeltaError, match="not on this base") as refused:
        check_delta(
            found,
            parent.trunk,
            fingerprint=parent.fingerprint,
            template_digest=parent.template_digest,
        )
    assert refused.value.code == "base_mismatch"

    stranger = make_delta(base, seed=3, labels=("a", "b", "c") if family == "bert" else None)
    text = "where is my card" if family == "bert" else "say 1"
    options = {} if family == "bert" else {"max_new_tokens": 4}
    asked = [
        prepare_row(base, Row(None, text, own, options)) for own in (stranger, found, None, found)
    ]
    router = Router(base.trunk)
    together = Engine(base, router=router).predict(asked)
    for row, mixed in zip(asked, together, strict=True):
        (alone,) = Engine(base, router=router).predict([row])
        if "scores" in mixed.output:
            # a difference in the last bit of fp32 can move an 8-bit integer by one
            assert alone.output["scores"] == pytest.approx(mixed.output["scores"], abs=2e-2)
        elif "text" in mixed.output:
            assert alone.output == mixed.output
    certificate = certify(
        delta,
        save_delta(delta),
        rows["test"],
        base=base,
        router=router,
        served=Engine(base, router=router),
    )
    assert certificate.passed, certificate


def test_the_same_job_gives_the_same_bytes_on_a_base_that_is_derived_again(bert: Base) -> None:
    spec = job(epochs=2)
    digests = set()
    for _ in range(2):
        base = load_derived(bert.info, BaseConfig(quantization="int8"), device=str(bert.device))
        delta = run(base, spec, CLASSIFICATION).delta
        assert delta is not None
        digests.add(delta.digest)
    assert len(digests) == 1


def test_fingerprints_name_parent_and_derivation(bert: Base, sentence_bert: Base) -> None:
    names = ["int8", "nf4", "magnitude-0.5", "magnitude-0.25", "magnitude-0.5+int8"]
    found = {
        describe_derived(parent.info, BaseConfig.parse(name)).fingerprint
        for parent in (bert, sentence_bert)
        for name in names
    }
    assert len(found) == 2 * len(names)
    assert describe_derived(bert.info, BaseConfig()) == bert.info


def test_a_derivation_that_depends_on_rows_must_name_them(bert: Base) -> None:
    with pytest.raises(ConfigError) as refused:
        describe_derived(bert.info, BaseConfig.parse("wanda-0.5"))
    assert refused.value.code == "calibration_missing"
    named = describe_derived(bert.info, BaseConfig.parse("wanda-0.5-0123456789abcdef"))
    assert named.name == "bert@wanda-0.5-0123456789abcdef"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("magnitude-0.5", "81149c9e5f05e02a"),
        ("magnitude-0.5+nf4", "47ff2014eb44a982"),
        ("int8", "8f466408572ffb87"),  # the second version, with weights of 8 bits
    ],
)
def test_a_fingerprint_never_changes(bert: Base, name: str, expected: str) -> None:
    """Adapters that exist would be refused: raise the version only when weights do change."""
    parent = replace(bert.info, fingerprint="sha256:" + "0" * 64)
    found = describe_derived(parent, BaseConfig.parse(name)).fingerprint
    assert found.startswith(f"sha256:{expected}")

"""Prune, then recover: one job, any pattern, any method; its base is made again from its name."""

from typing import Any

import pytest

from peft_engine.bases.base import Base
from peft_engine.compression.derive import (
    describe_derived,
    load_derived,
    make_plan,
    name_rows,
)
from peft_engine.compression.pruning import Calibration, PruningPlan
from peft_engine.configs import JobSpec
from peft_engine.delta import check_delta, load_delta, save_delta
from peft_engine.errors import DeltaError
from peft_engine.router import Router
from peft_engine.serving import Engine, Row, prepare_row
from peft_engine.tasks.table import TASKS
from tests.engine.test_training import CLASSIFICATION, GENERATION, job, run

PATTERNS: dict[str, dict[str, Any]] = {
    "wanda": {"method": "wanda", "sparsity": 0.5},
    "magnitude": {"method": "magnitude", "sparsity": 0.3},
    "2:4": {"method": "wanda", "pattern": "2:4"},
    "ffn": {"method": "structured", "pattern": "ffn", "sparsity": 0.25},
    "heads": {"method": "structured", "pattern": "heads", "sparsity": 0.5},
    "layers": {"method": "structured", "pattern": "layers", "sparsity": 0.5},
}
METHODS: dict[str, tuple[Any, float, int]] = {
    "lora": ({"type": "lora", "r": 4}, 0.01, 2),
    "bottleneck": ({"type": "bottleneck", "variant": "houlsby", "size": 8}, 0.01, 6),
    "bitfit": ("bitfit", 0.03, 2),
}
"""With the rate and the passes that each needs on these few rows."""


def settle(spec: JobSpec, base: dict[str, Any], parent: Base, rows: Any) -> JobSpec:
    """The job on a derived base, the rows that decide named."""
    spec = JobSpec.model_validate(spec.model_dump(mode="json") | {"base": base})
    pruning = spec.base.pruning
    if pruning is None or not pruning.looks_at_rows:
        return spec
    return spec.model_copy(update={"base": name_rows(spec.base, calibration(spec, parent, rows))})


def calibration(spec: JobSpec, parent: Base, rows: Any) -> Calibration:
    task = TASKS[spec.task or ""]
    labels = task.find_labels(rows["train"])
    examples = task.encode(parent, rows["train"], labels=labels, max_length=40)
    return Calibration.of(examples, count=16)


def choose(spec: JobSpec, parent: Base, rows: Any) -> PruningPlan:
    assert spec.base.pruning is not None
    return make_plan(parent.info, spec.base.pruning, calibration(spec, parent, rows))


def load(spec: JobSpec, parent: Base, plan: PruningPlan | None) -> Base:
    """As a process loads it that has the plan and no rows."""
    return load_derived(parent.info, spec.base, plan=plan, device=str(parent.device))


@pytest.mark.parametrize(
    ("pattern", "method"),
    [
        (pattern, method)
        for pattern in PATTERNS
        for method in METHODS
        if pattern != "magnitude" or method == "lora"
    ],
)
def test_a_pruned_base_is_recovered_stored_and_served(
    pattern: str, method: str, bert: Base
) -> None:
    config, rate, epochs = METHODS[method]
    spec = job(method=config, learning_rate=rate, epochs=epochs)
    spec = settle(spec, {"pruning": PATTERNS[pattern]}, bert, CLASSIFICATION)
    plan = choose(spec, bert, CLASSIFICATION)
    base = load(spec, bert, plan)
    assert base.info == describe_derived(bert.info, spec.base)
    result = run(base, spec, CLASSIFICATION)
    test, delta = result.metrics["test"], result.delta
    assert delta is not None
    assert test["after"]["loss"] < 0.97 * test["frozen_head"]["loss"]
    assert result.base_parameters == base.parameters == _parameters(base)

    found = load_delta(save_delta(delta), device=base.device)
    other = load(spec, bert, PruningPlan.from_bytes(plan.to_bytes()))
    check_delta(
        found, other.trunk, fingerprint=other.fingerprint, template_digest=other.template_digest
    )
    with pytest.raises(DeltaError, match="not on this base"):
        check_delta(
            found, bert.trunk, fingerprint=bert.fingerprint, template_digest=bert.template_digest
        )
    texts = [row["text"] for row in CLASSIFICATION["test"]][:4]
    here, there = (
        Engine(own, router=Router(own.trunk)).predict(
            [prepare_row(own, Row(None, text, found, {})) for text in texts]
        )
        for own in (base, other)
    )
    assert [answer.output for answer in here] == [answer.output for answer in there]


def test_pruned_quantized_and_tuned_is_one_job(llama: Base) -> None:
    spec = job("text-generation", epochs=6, eval_generate_rows=0)
    asked = {"pruning": PATTERNS["ffn"], "quantization": "int8"}
    spec = settle(spec, asked, llama, GENERATION)
    base = load(spec, llama, choose(spec, llama, GENERATION))
    assert base.name.startswith("llama@ffn-0.25-")
    assert base.name.endswith("+int8")
    assert base.bytes < 0.4 * llama.bytes
    test = run(base, spec, GENERATION).metrics["test"]
    assert test["after"]["loss"] < 0.8 * test["before"]["loss"]


def test_the_same_job_prunes_alike_and_gives_the_same_bytes(bert: Base) -> None:
    digests = set()
    for _ in range(2):
        spec = settle(job(epochs=1), {"pruning": PATTERNS["wanda"]}, bert, CLASSIFICATION)
        plan = choose(spec, bert, CLASSIFICATION)
        delta = run(load(spec, bert, plan), spec, CLASSIFICATION).delta
        assert delta is not None
        digests.add((spec.base_name, plan.digest, delta.digest))
    assert len(digests) == 1


def _parameters(base: Base) -> int:
    return sum(weight.numel() for weight in base.model.parameters())

"""The delta file: stable bytes, strict reading, no delta where it does not belong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from peft_engine.bases.base import Base
from peft_engine.configs.methods import LastLayers, LoraConfig, MaskConfig
from peft_engine.delta import Delta, check_delta, compute_digest, load_delta, save_delta
from peft_engine.errors import DeltaError
from tests.engine.conftest import make_delta


def check(delta: Delta, base: Base) -> None:
    check_delta(
        delta, base.trunk, fingerprint=base.fingerprint, template_digest=base.template_digest
    )


def test_round_trip_keeps_every_byte(any_base: Base, tmp_path: Path) -> None:
    delta = make_delta(any_base, seed=1, labels=("no", "yes"))
    content = save_delta(delta)
    torch.manual_seed(99)  # another seed than the one that saved
    path = tmp_path / "delta.safetensors"
    path.write_bytes(content)
    for found in (load_delta(content), load_delta(path, device=torch.device("cpu"))):
        assert found.digest == delta.digest == compute_digest(found.tensors, found.manifest)
        assert found.manifest == delta.manifest
        assert save_delta(found) == content
        check(found, any_base)


def test_digest_sees_every_change(bert: Base) -> None:
    delta = make_delta(bert, seed=1)
    digests = {delta.digest, make_delta(bert, seed=2).digest}
    other_length = delta.manifest.model_copy(update={"max_length": 47})
    digests.add(Delta.of(delta.tensors, other_length).digest)
    assert len(digests) == 3
    next(iter(delta.tensors.values())).view(-1)[0] += 1e-6
    assert compute_digest(delta.tensors, delta.manifest) != delta.digest


@pytest.mark.parametrize("damage", ["empty", "text", "half", "no manifest", "other format"])
def test_what_is_no_delta_is_refused(bert: Base, damage: str) -> None:
    content = save_delta(make_delta(bert, seed=1))
    broken = {
        "empty": b"",
        "text": b"<html>not found</html>",
        "half": content[: len(content) // 2],
        "no manifest": save_tensors(load_tensors(content)),
        "other format": save_tensors(
            load_tensors(content), metadata={"tunery": json.dumps({"format": "tunery-delta/9"})}
        ),
    }[damage]
    with pytest.raises(DeltaError) as caught:
        load_delta(broken)
    assert caught.value.code == "delta_corrupt"


def test_missing_surplus_and_misshapen_tensors_are_refused(bert: Base) -> None:
    delta = make_delta(bert, seed=1)
    name = next(iter(delta.tensors))
    fewer = {n: t for n, t in delta.tensors.items() if n != name}
    more = {**delta.tensors, "encoder.layer.9.output.dense:lora.A": torch.zeros(4, 48)}
    wider = {**delta.tensors, name: torch.zeros(5, 32)}
    types = (torch.float64, torch.float16, torch.int32, torch.int64, torch.bool)
    others = [{**delta.tensors, name: delta.tensors[name].to(dtype)} for dtype in types]
    for tensors in (fewer, more, wider, *others):
        with pytest.raises(DeltaError) as caught:
            check(Delta.of(tensors, delta.manifest), bert)
        assert caught.value.code == "delta_corrupt"


def test_a_file_of_other_types_is_refused_after_a_right_one(bert: Base) -> None:
    """Also heads and choices: torch would refuse to multiply them, for all rows of a batch."""
    masked = MaskConfig(selection="random", density=0.05)
    delta = make_delta(bert, seed=1, config=masked, labels=("no", "yes"))
    check(load_delta(save_delta(delta)), bert)
    for ending, dtype in (("indices", torch.int64), ("values", torch.int32), ("bias", torch.half)):
        tensors = {n: t.to(dtype) if n.endswith(ending) else t for n, t in delta.tensors.items()}
        with pytest.raises(DeltaError, match="or type") as caught:
            check(load_delta(save_delta(Delta.of(tensors, delta.manifest))), bert)
        assert caught.value.code == "delta_corrupt"


def test_a_delta_of_another_base_is_refused(bert: Base, llama: Base) -> None:
    with pytest.raises(DeltaError, match="was trained on llama") as caught:
        check(make_delta(llama, seed=1), bert)
    assert caught.value.code == "base_mismatch"


def test_a_delta_of_another_template_is_refused(llama: Base) -> None:
    delta = make_delta(llama, seed=1)
    other = delta.manifest.model_copy(update={"template_digest": "sha256:0"})
    with pytest.raises(DeltaError, match="chat template"):
        check(Delta.of(delta.tensors, other), llama)


def test_a_layout_that_fits_one_configuration_is_looked_at_again_for_another(bert: Base) -> None:
    """Files of one layout are checked once for a configuration, and for every configuration."""
    delta = make_delta(bert, seed=1)
    for seed in range(2):
        check(load_delta(save_delta(make_delta(bert, seed=seed))), bert)
    other = delta.manifest.model_copy(update={"methods": (LoraConfig(r=8, alpha=8),)})
    last = delta.manifest.model_copy(
        update={"methods": (LoraConfig(r=4, alpha=8, layers=LastLayers(last=1)),)}
    )
    for manifest in (other, last, other):
        wrong = load_delta(save_delta(Delta.of(delta.tensors, manifest)))
        with pytest.raises(DeltaError, match="missing, surplus or of another shape") as caught:
            check(wrong, bert)
        assert caught.value.code == "delta_corrupt"
    check(load_delta(save_delta(delta)), bert)

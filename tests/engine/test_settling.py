"""Sizes that are left to us: within a share of the base, stated in the delta, shown in the job."""

from typing import Literal

import pytest

from peft_engine.bases.base import Base
from peft_engine.configs import JobSpec
from peft_engine.configs.methods import (
    BitfitConfig,
    BottleneckConfig,
    LoraConfig,
    MethodConfig,
)
from peft_engine.training import settling
from peft_engine.training.settling import RANKS, WIDTHS, count_parameters, settle_methods
from peft_engine.training.trainable import create_trainable
from tests.engine.test_training import CLASSIFICATION, run


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=4, rank_pattern={"query": 2}, dora=True),
        BottleneckConfig(size=6),
        BottleneckConfig(variant="houlsby", size=6, scaling="learned"),
    ],
)
def test_the_count_is_that_of_the_tensors(bert: Base, config: MethodConfig) -> None:
    made = create_trainable(bert, [config], seed=0, head=None)
    assert count_parameters(bert.trunk, config) == sum(t.numel() for t in made.tensors.values())


@pytest.mark.parametrize(("asked", "values"), [(LoraConfig(), RANKS), (BottleneckConfig(), WIDTHS)])
def test_the_largest_size_within_the_share_is_taken(
    bert: Base,
    asked: LoraConfig | BottleneckConfig,
    values: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    option = "r" if isinstance(asked, LoraConfig) else "size"
    for value in values:
        wanted = asked.model_copy(update={option: value})
        share = count_parameters(bert.trunk, wanted) / bert.parameters
        monkeypatch.setattr(settling, "LARGEST_SHARE", share * 1.001)
        (settled,) = settle_methods(bert, [asked], has_head=True)
        assert getattr(settled, option) == value
    monkeypatch.setattr(settling, "LARGEST_SHARE", 0.0)
    (smallest,) = settle_methods(bert, [asked], has_head=True)
    assert getattr(smallest, option) == values[-1]


def test_what_was_asked_for_stays(bert: Base) -> None:
    asked = [
        LoraConfig(r=300, alpha=7),
        BottleneckConfig(reduction=1, activation="tanh"),
        BottleneckConfig(size=300, activation="swish"),
    ]
    assert settle_methods(bert, asked, has_head=True) == tuple(asked)


def test_biases_are_lean_where_the_base_has_none(bert: Base, llama: Base) -> None:
    for base, asked, settled in (
        (bert, "auto", "auto"),
        (llama, "auto", "lean"),
        (llama, "all", "all"),
    ):
        wanted = BitfitConfig.model_validate({"biases": asked})
        (found,) = settle_methods(base, [wanted], has_head=True)
        assert found == wanted.model_copy(update={"biases": settled})


def test_alpha_is_twice_the_rank(bert: Base) -> None:
    for asked in (LoraConfig(), LoraConfig(r=3)):
        (settled,) = settle_methods(bert, [asked], has_head=True)
        assert isinstance(settled, LoraConfig)
        assert settled.alpha == 2 * settled.own_r
        assert settled.scale_at("encoder.layer.0.attention.self.query") == 2


@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer", "parallel"])
def test_the_activation_of_every_variant_is_relu(
    bert: Base, variant: Literal["houlsby", "pfeiffer", "parallel"]
) -> None:
    asked = BottleneckConfig(variant=variant, size=4)
    assert settle_methods(bert, [asked], has_head=True) == (
        asked.model_copy(update={"activation": "relu"}),
    )


def test_a_reader_of_a_delta_that_left_its_options_out_uses_what_they_meant_then() -> None:
    assert (LoraConfig().own_r, LoraConfig().own_alpha) == (16, 32)
    assert BottleneckConfig().width(384) == 24
    assert BottleneckConfig(variant="houlsby").own_activation == "swish"


def test_a_job_shows_its_sizes_and_its_delta_states_them(bert: Base) -> None:
    spec = JobSpec.model_validate(
        {
            "dataset_id": "ds",
            "base_model": "b",
            "task": "text-classification",
            "method": ["lora", "bottleneck"],
            "training": {"max_steps": 1, "keep": "last"},
        }
    )
    result = run(bert, spec, CLASSIFICATION)
    assert result.delta is not None
    settled = settle_methods(bert, spec.method, has_head=True)
    assert result.delta.manifest.methods == settled
    shown = result.resolved["method"]
    assert [(own.get("r"), own.get("size")) for own in shown] == [
        (RANKS[-1], None),
        (None, WIDTHS[-1]),
    ]

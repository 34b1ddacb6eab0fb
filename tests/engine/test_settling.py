"""Sizes that are left to us: within a share of the base, stated in the delta, shown in the job."""

from typing import Literal

import pytest
from pydantic import TypeAdapter

from peft_engine.bases.base import Base
from peft_engine.configs import JobSpec
from peft_engine.configs.methods import (
    METHOD_NAMES,
    BitfitConfig,
    BottleneckConfig,
    LastLayers,
    LoraConfig,
    MaskConfig,
    MethodConfig,
)
from peft_engine.errors import ConfigError
from peft_engine.methods.table import METHODS
from peft_engine.training import settling
from peft_engine.training.settling import RANKS, WIDTHS, count_parameters, settle_methods
from peft_engine.training.trainable import create_trainable
from tests.engine.test_training import CLASSIFICATION, run

MADE: TypeAdapter[MethodConfig] = TypeAdapter(MethodConfig)


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
    found = settle_methods(bert, asked, has_head=True)
    for wanted, settled in zip(asked, found, strict=True):
        own = wanted.model_dump(exclude_unset=True)
        assert {option: getattr(settled, option) for option in own} == own


@pytest.mark.parametrize("base", ["bert", "llama", "t5"])
def test_nothing_is_left_to_choose(base: str, request: pytest.FixtureRequest) -> None:
    own: Base = request.getfixturevalue(base)
    asked = [MADE.validate_python({"type": name}) for name in METHOD_NAMES]
    asked += [BottleneckConfig(variant="pfeiffer"), BottleneckConfig(variant="parallel")]
    asked += [BottleneckConfig(reduction=4), BottleneckConfig(reduction=None)]
    for wanted in asked:
        (settled,) = settle_methods(own, [wanted], has_head=True)
        assert "auto" not in settled.model_dump().values()
        assert settle_methods(own, [settled], has_head=True) == (settled,)


def test_effective_biases_are_those_of_auto(bert: Base) -> None:
    sites = METHODS["bitfit"].sites
    found = sites(bert.trunk, BitfitConfig(biases="effective"))
    assert found == sites(bert.trunk, BitfitConfig())
    assert len(found) < len(sites(bert.trunk, BitfitConfig(biases="existing")))


def test_a_reduction_is_stated_as_the_width_that_it_comes_to(bert: Base) -> None:
    asked = BottleneckConfig(reduction=4)
    (settled,) = settle_methods(bert, [asked], has_head=True)
    assert isinstance(settled, BottleneckConfig)
    assert (settled.size, settled.reduction) == (asked.width(bert.hidden_size), 4)


def test_a_size_and_a_reduction_must_agree(bert: Base) -> None:
    width = BottleneckConfig(reduction=4).width(bert.hidden_size)
    (settled,) = settle_methods(bert, [BottleneckConfig(reduction=4, size=width)], has_head=True)
    assert isinstance(settled, BottleneckConfig)
    assert (settled.size, settled.reduction) == (width, 4)
    with pytest.raises(ConfigError, match=f"comes to {width}") as caught:
        settle_methods(bert, [BottleneckConfig(reduction=4, size=width + 1)], has_head=True)
    assert (caught.value.code, caught.value.param) == ("bad_input", "method.size")


def test_biases_are_lean_where_the_base_has_none(bert: Base, llama: Base) -> None:
    for base, asked, settled in (
        (bert, "auto", "effective"),
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
    (settled,) = settle_methods(bert, [asked], has_head=True)
    assert settled.model_dump()["activation"] == "relu"


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


LOWEST = "layer.0.attention.self.query"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("rank_pattern", {LOWEST: 8}),
        ("alpha_pattern", {"query": 2, LOWEST: 8}),
        ("targets", ("query", LOWEST)),
    ],
)
def test_a_name_of_a_layer_that_was_not_chosen_is_refused(
    bert: Base, option: str, value: object
) -> None:
    asked = LoraConfig.model_validate({"r": 2, "layers": {"last": 1}, option: value})
    with pytest.raises(ConfigError, match=r"chosen layers is called 'layer\.0") as caught:
        settle_methods(bert, [asked], has_head=True)
    assert (caught.value.code, caught.value.param) == ("no_such_site", f"method.{option}")
    everywhere = asked.model_copy(update={"layers": "all"})
    assert settle_methods(bert, [everywhere], has_head=True)


def test_a_target_of_a_mask_in_a_layer_that_was_not_chosen_is_refused(bert: Base) -> None:
    asked = MaskConfig(layers=LastLayers(last=1), targets=("query", LOWEST))
    with pytest.raises(ConfigError, match=r"chosen layers is called 'layer\.0"):
        settle_methods(bert, [asked], has_head=True)

"""From a base and calibration rows to a pruned base and the plan that says how it was pruned."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.compression.pruning.calibration import (
    Calibration,
    LayerRun,
    seeing_inputs,
    walk_layers,
)
from peft_engine.compression.pruning.cutting import cut_ffn, cut_heads
from peft_engine.compression.pruning.described import describe_shape
from peft_engine.compression.pruning.parts import (
    GroupContributions,
    keep_best,
    kept_count,
    kept_width,
    measure_turn,
)
from peft_engine.compression.pruning.plan import (
    PruningPlan,
    apply_plan,
    mask_weight,
    pack_mask,
    unpack_mask,
)
from peft_engine.compression.pruning.single_weights import InputNorms, choose_weights
from peft_engine.compression.watch import UNWATCHED, Watch
from peft_engine.configs.pruning import PruningConfig
from peft_engine.errors import ConfigError
from peft_engine.parts.anatomy import HeadGroups, Inner, ffn_inners, head_groups
from peft_engine.parts.sites import Site, linear_sites, weight_of

# Legend of axes: O output width, I input width.


Choice = Callable[[Base, PruningConfig, Calibration, Watch], dict[str, Tensor]]


@dataclass(frozen=True)
class PruningReport:
    """What a pruning did.

    Attributes:
        plan: What stays; makes the same base again.
        stack_weights: Weights of the linears of all layers before.
        stack_weights_kept: How many of them are there, and not set to zero, afterwards.
        parameters: Weights of the whole model afterwards, zeros included.
    """

    plan: PruningPlan
    stack_weights: int
    stack_weights_kept: int
    parameters: int


def prune(
    base: Base,
    config: PruningConfig,
    calibration: Calibration,
    *,
    watch: Watch = UNWATCHED,
) -> PruningReport:
    """Prune a base in place, its transformers configuration too.

    A stack that no calibration row reaches (a decoder that the task does not read) is judged by
    its weights alone, and keeps all its layers.

    Args:
        base: Freshly loaded; nothing else may use its model, and no plan of deltas may be in force.
            Its ``parameters`` stay those of before.
        config: What to take away.
        calibration: Rows of the training split; not looked at by ``magnitude``.
        watch: Told of each part, and asked between them.

    Returns:
        What was done.

    Raises:
        ConfigError: There are no calibration rows, the family of the base has no such parts, or the
            choice is learned in a training (``movement``).
    """
    if config.method == "movement":
        raise ConfigError(
            "movement pruning is learned by a job; it cannot be chosen by calibration rows",
            code="bad_input",
            param="base.pruning.method",
        )
    if config.looks_at_rows and not calibration.rows:
        raise ConfigError(
            f"pruning by {config.method} needs rows of the training split",
            code="too_few_rows",
            param="base.pruning",
        )
    before = _count_weights(base)
    tensors = _CHOICES[config.pattern](base, config, calibration, watch)
    if config.pattern == "layers":
        apply_plan(base.model, base.trunk, PruningPlan(tensors))
    else:
        describe_shape(base.model, base.trunk, tensors)
    return PruningReport(
        PruningPlan(tensors),
        before,
        _count_weights(base) - sum(_count_gone(base, *item) for item in tensors.items()),
        sum(weight.numel() for weight in base.model.parameters()),
    )


def _choose_weights(
    base: Base, config: PruningConfig, calibration: Calibration, watch: Watch
) -> dict[str, Tensor]:
    """Masks of every linear, set as they are found."""
    sites = list(linear_sites(base.trunk))
    masks: dict[str, Tensor] = {}

    def mask(site: Site, norms: Tensor | None) -> None:
        watch.check()
        linear = base.trunk.get_submodule(site.path)
        kept = choose_weights(weight_of(linear), norms, config)
        mask_weight(linear, kept)
        masks[f"mask:{site.path}"] = pack_mask(kept)

    if config.method == "magnitude":
        for number, site in enumerate(sites):
            watch.progress("matrices pruned", number, len(sites))
            mask(site, None)
        return masks
    for layer in walk_layers(base, calibration, watch):
        own = [site for site in sites if site.path.startswith(f"{layer.path}.")]
        seen = [InputNorms(site.in_features) for site in own]
        _watch(base, layer, [site.path for site in own], seen)
        for site, inputs in zip(own, seen, strict=True):
            mask(site, inputs.norms)
    for site in sites:
        if f"mask:{site.path}" not in masks:
            mask(site, torch.ones(site.in_features))
    return masks


def _choose_inner(
    base: Base, config: PruningConfig, calibration: Calibration, watch: Watch
) -> dict[str, Tensor]:
    """Inner features of every FFN, cut as they are found."""
    inners = ffn_inners(base.trunk)
    found: dict[str, Tensor] = {}

    def cut(inner: Inner, seen: GroupContributions) -> None:
        weight = weight_of(base.trunk.get_submodule(inner.end.path))
        kept = keep_best(seen.scores(weight), kept_width(inner.end.in_features, config.sparsity))
        cut_ffn(base.trunk, inner, kept)
        found[f"ffn:{inner.end.path}"] = kept

    for layer in walk_layers(base, calibration, watch):
        own = [inner for inner in inners if inner.end.path.startswith(f"{layer.path}.")]
        seen = [GroupContributions(inner.end.in_features, 1) for inner in own]
        _watch(base, layer, [inner.end.path for inner in own], seen)
        for inner, contributions in zip(own, seen, strict=True):
            cut(inner, contributions)
    for inner in inners:
        if f"ffn:{inner.end.path}" not in found:
            cut(inner, GroupContributions.alike(inner.end.in_features))
    return found


def _choose_heads(
    base: Base, config: PruningConfig, calibration: Calibration, watch: Watch
) -> dict[str, Tensor]:
    """Heads of every attention, cut as they are found."""
    groups = head_groups(base.trunk)
    found: dict[str, Tensor] = {}
    for layer in walk_layers(base, calibration, watch):
        own = [heads for heads in groups if heads.path.startswith(f"{layer.path}.")]
        seen = [_contributions_of(heads) for heads in own]
        _watch(base, layer, [heads.end.path for heads in own], seen)
        for heads, contributions in zip(own, seen, strict=True):
            weight = weight_of(base.trunk.get_submodule(heads.end.path))
            count = kept_count(heads.groups, config.sparsity)
            kept = keep_best(contributions.scores(weight), count)
            cut_heads(base.trunk, heads, kept)
            found[f"heads:{heads.path}"] = kept
    return found


def _choose_layers(
    base: Base, config: PruningConfig, calibration: Calibration, watch: Watch
) -> dict[str, Tensor]:
    """Layers of every stack; nothing is cut before all have been seen."""
    turns: dict[str, list[float]] = {}
    for layer in walk_layers(base, calibration, watch):
        turn = sum(measure_turn(entered, left) for entered, left in layer.forward())
        # T5 keeps the table of distances of the whole stack in the first layer.
        holds_table = any("relative_attention_bias" in p for p, _ in layer.module.named_modules())
        stack = layer.path.rpartition(".")[0]
        turns.setdefault(stack, []).append(math.inf if holds_table else turn)
    return {
        f"layers:{stack}": keep_best(own, kept_count(len(own), config.sparsity))
        for stack, own in turns.items()
    }


_CHOICES: Mapping[str, Choice] = {
    "unstructured": _choose_weights,
    "2:4": _choose_weights,
    "ffn": _choose_inner,
    "heads": _choose_heads,
    "layers": _choose_layers,
}


def _watch(
    base: Base,
    layer: LayerRun,
    paths: Sequence[str],
    seen: Sequence[InputNorms] | Sequence[GroupContributions],
) -> None:
    """Send every row through a layer, and count what enters some of its linears."""
    linears = [base.trunk.get_submodule(path) for path in paths]
    with seeing_inputs(linears, lambda place, x: seen[place].add(x)):
        for _ in layer.forward():
            pass


def _contributions_of(heads: HeadGroups) -> GroupContributions:
    return GroupContributions(heads.groups, heads.end.in_features // heads.groups)


def _count_weights(base: Base) -> int:
    return sum(site.in_features * site.out_features for site in linear_sites(base.trunk))


def _count_gone(base: Base, name: str, tensor: Tensor) -> int:
    kind, _, path = name.partition(":")
    if kind != "mask":
        return 0
    weight = weight_of(base.trunk.get_submodule(path))
    return weight.numel() - int(unpack_mask(tensor, weight.shape[1]).sum())

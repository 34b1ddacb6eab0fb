"""Several deltas of one base as one: a LoRA, or a dense difference.

Every delta is made dense site by site, so that any methods that can be added to weights merge with
one another, whatever their ranks. Of all deltas only one site is dense at a time.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from peft_engine.bases.base import Base
from peft_engine.configs.manifest import Manifest
from peft_engine.configs.merge import MergeSpec
from peft_engine.configs.methods import FullConfig, HeadOnlyConfig, LoraConfig, MethodConfig
from peft_engine.delta import HEAD, Delta
from peft_engine.exchange.endings import name_endings
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.merge_formulas import closest_pair, merge_changes
from peft_engine.exchange.part import Part
from peft_engine.methods.table import METHODS
from peft_engine.parts.sites import linear_sites, split_path
from peft_engine.parts.stacks import part_read

MERGE_NOT_POSSIBLE = "merge_not_possible"

_MAX_RANK = 64
"""Of a merge whose rank nobody named: several high ranks would make more than anybody asked for."""

Changes = Mapping[str, Mapping[str, Tensor]]
"""``weight`` (O, I) or (D,) and ``bias`` (O,) by path."""

_Parts = Mapping[str, Sequence[Callable[[], dict[str, Tensor] | None]]]
"""What makes the change of each method dense, by path."""


def merge_deltas(
    base: Base,
    deltas: Sequence[Delta],
    weights: Sequence[float],
    spec: MergeSpec,
    *,
    check: Callable[[], None] = lambda: None,
) -> Delta:
    """Merge deltas.

    Args:
        base: Their base.
        deltas: At least one, on the CPU; all of one base and task.
        weights: A factor for each.
        spec: How.
        check: Called before each site; may raise to interrupt.

    Returns:
        The merged delta, on the CPU.

    Raises:
        ExchangeError: They do not go together; every reason is in ``problems``.
    """  # noqa: DOC502  raised below
    found, first = Findings(), deltas[0].manifest
    _refuse_strangers(deltas, found)
    found.settle(MERGE_NOT_POSSIBLE, "these adapters cannot be merged")
    parts = [_parts_of(base, delta, found) for delta in deltas]
    found.settle(MERGE_NOT_POSSIBLE, "these adapters cannot be merged")
    merged: dict[str, dict[str, Tensor]] = {}
    for path in sorted({path for own in parts for path in own}):
        check()
        merged[path] = _merge_site(path, [_dense_at(path, own) for own in parts], weights, spec)
    has_head = first.head is not None
    part = (
        _as_lora(base, deltas, merged, spec, found, has_head=has_head)
        if spec.into == "lora"
        else _as_dense(base, merged, found, has_head=has_head)
    )
    found.settle(MERGE_NOT_POSSIBLE, "the merge cannot be held")
    manifest = first.model_copy(
        update={
            "methods": tuple(part.methods) or (HeadOnlyConfig(),),
            "parent_digest": None,
            "max_length": min(delta.manifest.max_length for delta in deltas),
        }
    )
    head = _mean_head(deltas, weights)
    return Delta.of(part.tensors | head, Manifest.model_validate(manifest.model_dump()))


def _refuse_strangers(deltas: Sequence[Delta], found: Findings) -> None:
    first = deltas[0].manifest
    for number, delta in enumerate(deltas):
        own, where = delta.manifest, f"adapters.{number}"
        if own.base_fingerprint != first.base_fingerprint:
            found.refuse("base_mismatch", f"belongs to {own.base_model}", where)
        if own.task != first.task:
            found.refuse("task_mismatch", f"is for {own.task}, the first for {first.task}", where)
        if (own.head, own.labels) != (first.head, first.labels):
            found.refuse("head_mismatch", "has another head or other labels than the first", where)


def _parts_of(base: Base, delta: Delta, found: Findings) -> _Parts:
    """What a delta adds to the weights, by path; refused where it is no sum of what methods add."""
    part = part_read(base.trunk, has_head=delta.manifest.head is not None)
    at = delta.at_sites()
    parts: dict[str, list[Callable[[], dict[str, Tensor] | None]]] = {}
    changed: dict[str, list[MethodConfig]] = {}
    for config in delta.manifest.methods:
        method = METHODS[config.type]
        for number, site in enumerate(method.sites(part, config)):
            module = base.trunk.get_submodule(split_path(site.path)[0])
            own = partial(method.dense, module, site, config, at[site.path][config.type])
            if number == 0 and own() is None:
                found.refuse("method_not_possible", "is no change of weights", config.type)
                break
            parts.setdefault(site.path, []).append(own)
            if config.type not in ("bitfit", "norm"):  # what they add knows no other method
                changed.setdefault(site.path, []).append(config)
    both = [
        path for path, own in changed.items() if len(own) > 1 and any(map(_acts_on_others, own))
    ]
    found.refuse_all("merge_not_exact", "has methods that act on one another", both)
    return parts


def _acts_on_others(config: MethodConfig) -> bool:
    """Whether what a method does to a weight depends on what the others did."""
    return config.type == "ia3" or (isinstance(config, LoraConfig) and config.dora)


def _dense_at(path: str, parts: _Parts) -> dict[str, Tensor]:
    """What a delta adds at a path, fp32 on the CPU."""
    kept: dict[str, Tensor] = {}
    for part in parts.get(path, ()):
        for name, change in (part() or {}).items():
            value = change.detach().float().cpu()
            kept[name] = kept[name] + value if name in kept else value
    return kept


def _merge_site(
    path: str, dense: Sequence[Mapping[str, Tensor]], weights: Sequence[float], spec: MergeSpec
) -> dict[str, Tensor]:
    """A site that an adapter leaves alone has no part in the merge there."""
    seed = hashlib.sha256(f"{spec.seed}|{path}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(seed[:7], "big"))
    merged: dict[str, Tensor] = {}
    for name in ("weight", "bias"):
        owners = [place for place, own in enumerate(dense) if name in own]
        if owners:
            changes = [dense[place][name] for place in owners]
            factors = [weights[place] for place in owners]
            merged[name] = merge_changes(changes, factors, spec, generator)
    return merged


def _as_lora(
    base: Base,
    deltas: Sequence[Delta],
    merged: Changes,
    spec: MergeSpec,
    found: Findings,
    *,
    has_head: bool,
) -> Part:
    part_of_base = part_read(base.trunk, has_head=has_head)
    linears = [site.path for site in linear_sites(part_of_base)]
    for path, own in merged.items():
        if path not in linears or "bias" in own:
            found.refuse("site_not_possible", "a LoRA changes weights of linears alone", path)
    if found.problems or not merged:
        return Part()
    rank = spec.r or min(_MAX_RANK, max(1, sum(map(_rank_of, deltas))))
    targets = "all-linear" if len(merged) == len(linears) else name_endings(list(merged), linears)
    part = Part([LoraConfig(r=rank, alpha=float(rank), targets=targets)])
    for path, own in merged.items():
        down, up = closest_pair(own["weight"], rank)
        part.put(path, "lora", A=down, B=up)
    return part


def _rank_of(delta: Delta) -> int:
    ranks = [
        len(own["lora"]["A"]) if "lora" in own else _MAX_RANK for own in delta.at_sites().values()
    ]
    return max(ranks, default=1)


def _as_dense(base: Base, merged: Changes, found: Findings, *, has_head: bool) -> Part:
    config: MethodConfig = FullConfig()
    part, left = Part([config]), set(merged)
    for site in METHODS["full"].sites(part_read(base.trunk, has_head=has_head), config):
        own = merged.get(site.path, {})
        shapes = METHODS["full"].shapes(site, config)
        for name in own.keys() - shapes.keys():
            found.refuse("site_not_possible", f"the base has no {name} there", site.path)
        zeros = {name: torch.zeros(shape) for name, shape in shapes.items()}
        part.put(site.path, "full", **(zeros | {n: t for n, t in own.items() if n in shapes}))
        left.discard(site.path)
    found.refuse_all("site_not_possible", "is no weight of the base", left)
    return part


def _mean_head(deltas: Sequence[Delta], weights: Sequence[float]) -> dict[str, Tensor]:
    """The weighted mean of heads: a sum would make every answer surer than any adapter was.

    An adapter that is taken away has no part in it: divided by what is left of the sum, or by less
    than nothing, the head would be beyond all bounds, or answer the opposite.
    """
    parts = [max(weight, 0.0) for weight in weights]
    if not any(parts):
        parts = [1.0] * len(weights)
    shares = [part / sum(parts) for part in parts]
    heads = [delta.head for delta in deltas]
    return {
        f"{HEAD}:{name}": torch.stack(
            [head[name].float().cpu() * share for head, share in zip(heads, shares, strict=True)]
        ).sum(0)
        for name in heads[0]
    }

"""Pruning: exact against references written plainly, and whole when saved and loaded again."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from peft_engine.bases.base import Base, load_base
from peft_engine.bases.forward import hidden_states
from peft_engine.compression.pruning import (
    Calibration,
    PruningPlan,
    PruningReport,
    apply_plan,
    prune,
)
from peft_engine.compression.watch import Watch
from peft_engine.configs.pruning import PruningConfig
from peft_engine.errors import BaseModelError, ConfigError
from peft_engine.parts.anatomy import ffn_inners, head_groups
from peft_engine.parts.batching import Example, TokenRow, collate
from peft_engine.parts.sites import linear_sites, stack_paths, weight_of
from tests.engine.conftest import random_ids
from tests.tiny_bases import write_tiny_bert, write_tiny_t5

FAMILIES = ["bert", "llama", "gpt2", "t5", "bart"]


def rows_of(base: Base, count: int = 6) -> Calibration:
    """Rows of several lengths; with answers where there is a decoder."""
    ids = random_ids(count, 12, seed=3).tolist()
    answers = random_ids(count, 7, seed=4).tolist()
    two = base.architecture == "encoder-decoder"
    return Calibration(
        [
            TokenRow(row[: 5 + place], None, answer[: 3 + place % 4] if two else None)
            for place, (row, answer) in enumerate(zip(ids, answers, strict=True))
        ]
    )


def fresh(base: Base, models_dir: Path) -> Base:
    return load_base(str(base.info.directory), name=base.name, models_dir=models_dir)


def forward_row(base: Base, row: TokenRow) -> Tensor:
    batch = collate([Example((row,))], pad_id=base.text.pad_id, device=base.device)
    with torch.no_grad():
        return hidden_states(base, batch)


def states(base: Base, rows: Sequence[TokenRow]) -> list[Tensor]:
    return [forward_row(base, row) for row in rows]


def weights_of(base: Base) -> dict[str, Tensor]:
    return {
        site.path: weight_of(base.trunk.get_submodule(site.path)).detach().clone()
        for site in linear_sites(base.trunk)
    }


def inputs_of(base: Base, paths: Sequence[str], rows: Sequence[TokenRow]) -> dict[str, Tensor]:
    """Every token that enters each linear, by whole forwards."""
    seen: dict[str, list[Tensor]] = {path: [] for path in paths}
    handles = [
        base.trunk.get_submodule(path).register_forward_pre_hook(
            lambda _, given, own=seen[path]: own.append(given[0].flatten(0, -2))
        )
        for path in paths
    ]
    states(base, rows)
    for handle in handles:
        handle.remove()
    return {path: torch.cat(tokens) for path, tokens in seen.items()}


def wanda_by_hand(base: Base, rows: Sequence[TokenRow], sparsity: float) -> None:
    """The paper, row by row: no cleverness, whole forwards for every layer."""
    for layer in [path for stack in stack_paths(base.trunk) for path in stack]:
        paths = [s.path for s in linear_sites(base.trunk) if s.path.startswith(f"{layer}.")]
        inputs = inputs_of(base, paths, rows)
        for path in paths:
            weight = weight_of(base.trunk.get_submodule(path))
            norms = inputs[path].double().pow(2).sum(0).sqrt().float()
            for row in weight:
                scores = row.abs() * norms
                for place in scores.argsort(stable=True)[: round(sparsity * len(row))]:
                    row[place] = 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_wanda_is_the_papers(family: str, models_dir: Path, request: pytest.FixtureRequest) -> None:
    base: Base = request.getfixturevalue(family)
    calibration = rows_of(base)
    pruned, expected = fresh(base, models_dir), fresh(base, models_dir)
    report = prune(pruned, PruningConfig(sparsity=0.6), calibration)
    with torch.no_grad():
        wanda_by_hand(expected, calibration.rows, 0.6)
    found = weights_of(pruned)
    for path, weight in weights_of(expected).items():
        assert torch.equal(found[path], weight), path
        gone = round(0.6 * weight.shape[1])
        assert ((found[path] == 0).sum(1) == gone).all(), path
    kept = sum(int((weight != 0).sum()) for weight in found.values())
    assert (report.stack_weights_kept, report.stack_weights) == (kept, _numel(found))
    assert report.parameters == base.parameters


def test_magnitude_takes_the_smallest_of_each_matrix(gpt2: Base, models_dir: Path) -> None:
    pruned = fresh(gpt2, models_dir)
    prune(pruned, PruningConfig(method="magnitude", sparsity=0.3), Calibration([]))
    for path, before in weights_of(gpt2).items():
        after = weights_of(pruned)[path]
        gone = after == 0
        assert int(gone.sum()) == round(0.3 * before.numel())
        assert before[gone].abs().max() <= before[~gone].abs().min()
        assert torch.equal(after[~gone], before[~gone])


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_two_of_four_stay(method: str, llama: Base, models_dir: Path) -> None:
    pruned = fresh(llama, models_dir)
    prune(pruned, PruningConfig(method=method, pattern="2:4"), rows_of(llama))
    for path, weight in weights_of(pruned).items():
        groups = weight.view(len(weight), -1, 4)
        assert ((groups != 0).sum(2) == 2).all(), path
    if method == "magnitude":
        before = weights_of(llama)["layers.0.mlp.up_proj"].view(-1, 4).abs()
        kept = weights_of(pruned)["layers.0.mlp.up_proj"].view(-1, 4).abs()
        assert torch.equal(kept.sum(1), before.topk(2).values.sum(1))


def test_inner_features_go_by_the_error_that_each_makes(llama: Base, models_dir: Path) -> None:
    pruned, rows = fresh(llama, models_dir), rows_of(llama)
    first = ffn_inners(llama.trunk)[0]
    inputs = inputs_of(llama, [first.end.path], rows.rows)[first.end.path]
    weight = weight_of(llama.trunk.get_submodule(first.end.path))
    errors = []
    for feature in range(first.end.in_features):
        without = inputs.clone()
        without[:, feature] = 0
        errors.append(float(((inputs - without) @ weight.T).norm()))
    report = prune(pruned, PruningConfig(method="structured", sparsity=0.3), rows)
    # 0.7 * 48 = 33.6 is rounded up to a multiple of 8
    expected = sorted(sorted(range(48), key=lambda place: -errors[place])[:40])
    kept = report.plan.tensors[f"ffn:{first.end.path}"]
    assert kept.tolist() == expected
    for path in first.makers:
        own = weight_of(pruned.trunk.get_submodule(path))
        assert torch.equal(own, weight_of(llama.trunk.get_submodule(path))[kept.long()])
    assert pruned.model.config.intermediate_size == 40


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_heads_go_by_the_error_that_each_group_makes(
    family: str, models_dir: Path, request: pytest.FixtureRequest
) -> None:
    base: Base = request.getfixturevalue(family)
    pruned, rows = fresh(base, models_dir), rows_of(base)
    first = head_groups(base.trunk)[0]
    inputs = inputs_of(base, [first.end.path], rows.rows)[first.end.path]
    weight = weight_of(base.trunk.get_submodule(first.end.path))
    width = first.end.in_features // first.groups
    errors = []
    for group in range(first.groups):
        own = slice(group * width, (group + 1) * width)
        errors.append(float((inputs[:, own] @ weight[:, own].T).norm()))
    report = prune(pruned, PruningConfig(method="structured", pattern="heads"), rows)
    kept = report.plan.tensors[f"heads:{first.path}"].tolist()
    assert kept == sorted(sorted(range(first.groups), key=lambda g: -errors[g])[: len(kept)])
    assert len(kept) == first.groups // 2
    # The same as a base in which those heads' outputs are not read.
    expected = fresh(base, models_dir)
    for heads in head_groups(expected.trunk):
        own_width = heads.end.in_features // heads.groups
        stay = report.plan.tensors[f"heads:{heads.path}"].tolist()
        reader = weight_of(expected.trunk.get_submodule(heads.end.path))
        for group in set(range(heads.groups)) - set(stay):
            with torch.no_grad():
                reader[:, group * own_width : (group + 1) * own_width] = 0
    for mine, theirs in zip(states(pruned, rows.rows), states(expected, rows.rows), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_the_layers_that_turn_least_go(models_dir: Path) -> None:
    folder = write_tiny_bert(models_dir / "bert-of-4", layers=4)
    base = load_base(str(folder), name="four", models_dir=models_dir)
    with torch.no_grad():  # the third layer hardly does anything
        third = base.trunk.get_submodule("encoder.layer.2")
        for linear in (third.attention.output.dense, third.output.dense):
            linear.weight.mul_(1e-3)
            linear.bias.zero_()
    report = prune(
        base, PruningConfig(method="structured", pattern="layers", sparsity=0.25), rows_of(base)
    )
    assert report.plan.tensors["layers:encoder.layer"].tolist() == [0, 1, 3]
    assert base.model.config.num_hidden_layers == 3


CASES = [
    (family, pattern)
    for family in FAMILIES
    for pattern in ("unstructured", "ffn", "heads", "layers")
    if pattern != "heads" or family in ("bert", "llama", "gpt2")
]


def pruned_by(base: Base, models_dir: Path, pattern: str) -> tuple[Base, PruningReport]:
    method = "wanda" if pattern == "unstructured" else "structured"
    own = fresh(base, models_dir)
    config = PruningConfig.model_validate({"method": method, "pattern": pattern})
    return own, prune(own, config, rows_of(base))


@pytest.mark.parametrize(("family", "pattern"), CASES)
def test_a_plan_and_a_folder_make_the_same_base_again(
    family: str,
    pattern: str,
    models_dir: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    base: Base = request.getfixturevalue(family)
    rows = rows_of(base).rows
    pruned, report = pruned_by(base, models_dir, pattern)
    expected = states(pruned, rows)
    assert not torch.allclose(expected[0], forward_row(base, rows[0]))
    again = fresh(base, models_dir)
    plan = PruningPlan.from_bytes(report.plan.to_bytes())
    apply_plan(again.model, again.trunk, plan)
    assert plan.digest == report.plan.digest
    for mine, theirs in zip(states(again, rows), expected, strict=True):
        assert torch.equal(mine, theirs)
    if pattern == "heads" and family != "llama":
        return  # their configuration cannot say it
    _write(pruned, tmp_path)
    read = load_base(str(tmp_path), name="read", models_dir=models_dir)
    assert read.parameters == report.parameters
    for mine, theirs in zip(states(read, rows), expected, strict=True):
        assert torch.equal(mine, theirs)
    if pattern != "unstructured":
        assert report.stack_weights_kept < report.stack_weights
        assert read.parameters < base.parameters


def test_a_stack_that_no_row_reaches_is_judged_by_its_weights(models_dir: Path) -> None:
    folder = write_tiny_t5(models_dir / "gated-t5", gated=True)
    base = load_base(str(folder), name="gated", models_dir=models_dir)
    rows = Calibration([TokenRow([5, 6, 7, 1]), TokenRow([8, 9, 1])])
    before = weights_of(base)
    report = prune(base, PruningConfig(method="structured", sparsity=0.5), rows)
    path = "decoder.block.0.layer.2.DenseReluDense.wo"
    strongest = before[path].norm(dim=0).topk(24).indices.sort().values
    assert report.plan.tensors[f"ffn:{path}"].tolist() == strongest.tolist()
    assert base.model.config.d_ff == 24
    _write(base, models_dir / "gated-t5-24")
    load_base(str(models_dir / "gated-t5-24"), name="narrow", models_dir=models_dir)


def test_the_rows_are_drawn_alike_for_every_job() -> None:
    examples = [Example((TokenRow([place, 1]), TokenRow([place, 2]))) for place in range(50)]
    few, more = Calibration.of(examples, count=8), Calibration.of(examples, count=100)
    assert (len(few.rows), len(more.rows)) == (8, 100)
    assert list(more.rows[:8]) == list(few.rows)
    assert few.digest == Calibration.of(examples, count=8).digest
    assert few.digest != Calibration.of(examples[:-1], count=8).digest


def test_what_cannot_be_done_is_refused(t5: Base, llama: Base, models_dir: Path) -> None:
    heads = PruningConfig(method="structured", pattern="heads")
    with pytest.raises(ConfigError, match=r"heads of .* cannot be taken apart"):
        prune(fresh(t5, models_dir), heads, rows_of(t5))
    with pytest.raises(ConfigError, match="needs rows of the training split"):
        prune(fresh(t5, models_dir), PruningConfig(), Calibration([]))
    other = PruningPlan({"ffn:layers.9.mlp.down_proj": torch.arange(8, dtype=torch.int32)})
    own = fresh(llama, models_dir)
    with pytest.raises(BaseModelError, match=r"layers\.9"):
        apply_plan(own.model, own.trunk, other)
    with pytest.raises(BaseModelError, match="cannot be read"):
        PruningPlan.from_bytes(b"nothing of the kind")


def test_a_pattern_belongs_to_its_method() -> None:
    assert PruningConfig.model_validate({"method": "structured"}).pattern == "ffn"
    assert PruningConfig.model_validate({"method": "magnitude"}).pattern == "unstructured"
    for asked in (
        {"method": "wanda", "pattern": "ffn"},
        {"method": "structured", "pattern": "2:4"},
        {"pattern": "2:4", "sparsity": 0.6},
    ):
        with pytest.raises(ValidationError, match=r"the patterns?"):
            PruningConfig.model_validate(asked)


def test_a_pruning_can_be_interrupted(llama: Base, models_dir: Path) -> None:
    asked = 0

    def check() -> None:
        nonlocal asked
        asked += 1
        if asked == 10:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        prune(fresh(llama, models_dir), PruningConfig(), rows_of(llama), watch=Watch(check))


def _numel(weights: dict[str, Tensor]) -> int:
    return sum(weight.numel() for weight in weights.values())


def _write(base: Base, folder: Path) -> None:
    base.model.save_pretrained(folder)
    for path in Path(base.info.directory).glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())

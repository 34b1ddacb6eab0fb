"""A base with a delta added to its weights, as a folder that transformers loads by itself.

The model is loaded anew for it: the one that answers is never touched. Before anything is written
the merged model is asked the same as the base with the delta, and refused when it answers
otherwise.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)
from transformers.pytorch_utils import Conv1D

from peft_engine.bases.base import Base, load_base
from peft_engine.bases.forward import hidden_states
from peft_engine.delta import Delta
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.folder import write_folder
from peft_engine.exchange.heads import WrittenHead, write_head
from peft_engine.exchange.sidecar import SIDECAR_FILE, describe
from peft_engine.methods.table import METHODS
from peft_engine.parts.batching import Batch, Example, TokenRow, collate
from peft_engine.parts.sites import split_path
from peft_engine.parts.stacks import TwoStacks, part_read
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router

# Legend of axes: B rows, T tokens, D width.

TOLERANCE = 1e-4
"""Of hidden states, relative to the largest: sums of fp32 in another order differ by some 1e-6."""

_ROWS, _TOKENS = 4, 12
"""What the two models are asked: random tokens, as every base reads them."""

_CLASSES: Mapping[str, Any] = MappingProxyType(
    {
        "SEQ_CLS": AutoModelForSequenceClassification,
        "TOKEN_CLS": AutoModelForTokenClassification,
        "QUESTION_ANS": AutoModelForQuestionAnswering,
    }
)


def write_merged(base: Base, delta: Delta, folder: Path, found: Findings) -> None:
    """Write the merged model.

    Args:
        base: The base of the delta; only read.
        delta: The delta, on the CPU.
        folder: An existing folder.
        found: Told why it cannot be; nothing is written then.
    """
    manifest = delta.manifest
    head = None
    if manifest.head is not None:
        head = write_head(base, manifest.head, delta.head, found)
    _refuse_methods(delta, found)
    if base.info.parent_fingerprint is not None:
        found.refuse(
            "base_not_possible",
            "the base is derived (quantized or pruned): added to the published weights the delta "
            "would be another function",
            "base_model",
        )
    if found.problems:
        return
    fresh = load_base(
        str(base.info.directory),
        name=base.name,
        models_dir=base.info.directory.parent,
        device="cpu",
        precision="fp32",
    )
    batch = _questions(fresh)
    wanted = _ask(fresh, delta, batch)
    _add_all(fresh, delta, found)
    if found.problems:
        return
    merged = _ask(fresh, None, batch)
    limit = TOLERANCE * float(wanted.abs().max())
    if float((merged - wanted).abs().max()) > limit:
        found.refuse(
            "merge_not_exact",
            "methods that act on one another at the same module do not add up in its weights",
            "methods",
        )
        return
    model = fresh.model if head is None else _with_head(fresh, delta, head)
    model.save_pretrained(folder)  # type: ignore[operator]
    AutoTokenizer.from_pretrained(fresh.info.directory, local_files_only=True).save_pretrained(
        folder
    )
    write_folder(folder, configs={SIDECAR_FILE: describe(delta)}, tensors={})


def _refuse_methods(delta: Delta, found: Findings) -> None:
    for config in delta.manifest.methods:
        if config.type in ("bottleneck", "prefix"):
            found.refuse(
                "method_not_possible", "is no change of the base's own weights", config.type
            )


def _questions(base: Base) -> Batch:
    vocabulary = int(base.model.config.vocab_size)  # type: ignore[union-attr,arg-type]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, vocabulary, (_ROWS, _TOKENS), generator=generator).tolist()
    decoder = ids[0] if isinstance(base.trunk, TwoStacks) else None
    rows = [Example((TokenRow(own, decoder_ids=decoder),)) for own in ids]
    return collate(rows, pad_id=base.text.pad_id, device=base.device)


def _ask(base: Base, delta: Delta | None, batch: Batch) -> Tensor:
    """(B, T, D) hidden states with a delta, or of the base as it is."""
    if delta is None:
        with torch.inference_mode():
            return hidden_states(base, batch)
    plan = Plan.in_order([Actor.of(delta)] * _ROWS)
    with Router(base.trunk).use(plan), torch.inference_mode():
        return hidden_states(base, batch)


def _add_all(base: Base, delta: Delta, found: Findings) -> None:
    """Add every change to the weights of a model that belongs to nobody else."""
    part = part_read(base.trunk, has_head=delta.manifest.head is not None)
    at = delta.at_sites()
    changes: list[tuple[nn.Module, dict[str, Tensor]]] = []
    for config in delta.manifest.methods:
        for site in METHODS[config.type].sites(part, config):
            module = base.trunk.get_submodule(split_path(site.path)[0])
            own = at[site.path][config.type]
            dense = METHODS[config.type].dense(module, site, config, own)
            if dense is None:
                found.refuse("method_not_possible", "cannot be merged", site.path)
            elif "bias" in dense and getattr(module, "bias", None) is None:
                found.refuse("site_not_possible", "has no bias in the base's class", site.path)
            else:
                changes.append((module, dense))
    _untie(base, changes, found)
    if not found.problems:
        with torch.no_grad():
            for module, dense in changes:
                for name, change in dense.items():
                    turned = change.T if name == "weight" and isinstance(module, Conv1D) else change
                    getattr(module, name).add_(turned)


def _untie(base: Base, changes: list[tuple[nn.Module, dict[str, Tensor]]], found: Findings) -> None:
    """Give the language head a table of its own where the token table changes: it keeps the base's.

    Where two stacks share one table there is no folder for a model in which they differ.
    """
    output: Any = base.model.get_output_embeddings() if base.generates else None  # type: ignore[operator]
    tables = [module for module, _ in changes if isinstance(module, nn.Embedding)]
    if output is None or not any(table.weight is output.weight for table in tables):
        return
    if isinstance(base.trunk, TwoStacks):
        found.refuse("site_not_possible", "shares its table with the language head", "embeddings")
        return
    output.weight = nn.Parameter(output.weight.detach().clone(), requires_grad=False)
    base.model.config.tie_word_embeddings = False  # type: ignore[union-attr]


def _with_head(base: Base, delta: Delta, head: WrittenHead) -> nn.Module:
    """The class of transformers for the task, with the merged trunk and the head.

    Raises:
        AssertionError: A weight of that class is in neither: a fault of the table of heads.
    """
    config: Any = copy.deepcopy(base.model.config)
    labels = delta.manifest.labels or ()
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    elif head.task_type == "SEQ_CLS":
        config.num_labels, config.problem_type = 1, "regression"
    kind = getattr(delta.manifest.head, "kind", "")
    if kind == "multi-label":
        config.problem_type = "multi_label_classification"
    if config.pad_token_id is None:
        config.pad_token_id = base.text.pad_id
    model: nn.Module = _CLASSES[head.task_type].from_config(config)
    prefix = f"{model.base_model_prefix}."
    state = {f"{prefix}{name}": value for name, value in base.trunk.state_dict().items()}
    known = model.state_dict()
    state = {name: value for name, value in state.items() if name in known} | head.tensors
    missing = [name for name in known if name not in state and not name.endswith("position_ids")]
    if missing:
        raise AssertionError(f"the merged model lacks {missing[:3]}")
    model.load_state_dict(state, strict=False)
    return model.eval()

"""Models of transformers and PEFT beside ours: the same files, the same tokens, the same logits."""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.delta import Delta
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.importing import Imported, ImportOptions, import_adapter
from peft_engine.exchange.peft_export import write_peft
from peft_engine.parts.batching import Example, TokenRow, collate
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from peft_engine.tasks.protocol import Head
from peft_engine.tasks.table import HEAD_TASKS

LABELS = ("no", "perhaps", "yes")
TAGS = ("O", "B-card", "I-card")
ROWS = ([2, 5, 9, 12, 3], [2, 7, 8, 3], [2, 6, 11, 14, 10, 4, 3])
"""Token ids that every tiny vocabulary has; rows of several lengths."""

CLASSES: dict[str, Any] = {
    "SEQ_CLS": AutoModelForSequenceClassification,
    "TOKEN_CLS": AutoModelForTokenClassification,
    "QUESTION_ANS": AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": AutoModel,
    "CAUSAL_LM": AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": AutoModelForSeq2SeqLM,
}


def foreign_model(base: Base, task_type: str, *, labels: int = 3) -> nn.Module:
    """The base as transformers loads it for a task; its head is random but for the seed."""
    torch.manual_seed(5)
    options = {"num_labels": labels} if task_type in ("SEQ_CLS", "TOKEN_CLS") else {}
    model: nn.Module = CLASSES[task_type].from_pretrained(base.info.directory, **options)
    model.config.pad_token_id = 0  # type: ignore[union-attr]
    return model.eval().to(base.device)


def shake(model: nn.Module, *, strength: float = 0.05) -> nn.Module:
    """Give every trained value an effect."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator) * strength
                parameter.add_(noise.to(parameter.device))
    return model


def train_with_peft(
    base: Base, task_type: str, config: Any, folder: Path, *, labels: int = 3
) -> nn.Module:
    """A PEFT model with strong random values, saved."""
    model = shake(get_peft_model(foreign_model(base, task_type, labels=labels), config)).eval()
    model.save_pretrained(folder)  # type: ignore[operator]
    return model


def load_with_peft(base: Base, task_type: str, folder: Path, *, labels: int = 3) -> nn.Module:
    plain = foreign_model(base, task_type, labels=labels)
    model: nn.Module = PeftModel.from_pretrained(plain, str(folder))
    return model.eval()


def foreign_logits(model: nn.Module, base: Base) -> Tensor:
    """Logits at real tokens, or of rows."""
    with torch.no_grad():
        out = model(**foreign_inputs(base))
    if hasattr(out, "start_logits"):
        return real(torch.stack([out.start_logits, out.end_logits], dim=-1))
    return real(out.logits) if out.logits.dim() == 3 else out.logits


def foreign_inputs(base: Base) -> dict[str, Tensor]:
    longest = max(map(len, ROWS))
    ids = torch.zeros(len(ROWS), longest, dtype=torch.long, device=base.device)
    mask = torch.zeros_like(ids)
    for row, own in enumerate(ROWS):
        ids[row, : len(own)] = torch.tensor(own)
        mask[row, : len(own)] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if base.architecture == "encoder-decoder":
        inputs["decoder_input_ids"] = ids[:, :3]
    return inputs


def real(values: Tensor) -> Tensor:
    """Values at real tokens, one after another."""
    if values.shape[1] < max(map(len, ROWS)):
        return values.flatten(0, 1)
    return torch.cat([values[row, : len(own)] for row, own in enumerate(ROWS)])


def router_of(base: Base) -> Router:
    """A base has one router."""
    return _ROUTERS.setdefault(id(base.trunk), Router(base.trunk))


_ROUTERS: dict[int, Router] = {}


def our_hidden(base: Base, delta: Delta) -> Tensor:
    inputs = foreign_inputs(base)
    actor = Actor.of(delta.to(base.device))
    plan = Plan.in_order([actor] * len(ROWS))
    with router_of(base).use(plan), torch.inference_mode():
        if base.architecture == "encoder-decoder":
            trunk: Any = base.trunk
            prompt = trunk.encode(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            )
            if delta.manifest.head is not None:
                return prompt
            return trunk.decode(
                inputs["decoder_input_ids"],
                prompt=prompt,
                prompt_mask=inputs["attention_mask"],
                use_cache=False,
            )
        rows = [Example((TokenRow(list(ids)),)) for ids in ROWS]
        return hidden_states(base, collate(rows, pad_id=0, device=base.device))


def our_logits(base: Base, delta: Delta) -> Tensor:
    """What ours gives where ``foreign_logits`` looks."""
    hidden = our_hidden(base, delta)
    spec = delta.manifest.head
    if spec is None:
        flat = real(hidden)
        return base.vocabulary_logits(flat)
    if spec.kind in ("tags", "span"):
        own = {name: tensor.to(base.device) for name, tensor in delta.head.items()}
        return nn.functional.linear(real(hidden).float() * spec.scale, own["weight"], own["bias"])
    rows = [Example((TokenRow(list(ids)),)) for ids in ROWS]
    batch = collate(rows, pad_id=0, device=base.device)
    task = HEAD_TASKS[spec.kind]
    tensors = {name: tensor.to(base.device) for name, tensor in delta.head.items()}
    head = Head(spec, tensors, delta.manifest.labels or ())
    return task.logits(head, task.features(spec, hidden, batch))


def bring(base: Base, folder: Path, **options: Any) -> Imported:
    return import_adapter(base, folder, ImportOptions(**options))


def send(base: Base, delta: Delta, folder: Path, *, portable: bool = False) -> Findings:
    folder.mkdir(parents=True, exist_ok=True)
    found = Findings()
    write_peft(base, delta.to(torch.device("cpu")), folder, found, portable=portable)
    return found

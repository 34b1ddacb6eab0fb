"""PEFT and ``transformers.Trainer`` on the very tokens of our side, in a process of its own.

Set up as a competent user would: LoRA on every linear of the layers, padding to the longest row of
the batch, labels only on the completion, no logging, saving or evaluation on the way.
"""

import argparse
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.peer_rows import encoder_of, features_of
from benchmarks.training.cases import (
    CASES,
    LORA_ALPHA,
    LORA_RANK,
    MAX_GRAD_NORM,
    WARMUP_RATIO,
    Case,
    Clock,
)
from peft_engine.bases.base import BaseInfo, describe_base, looks_up_types
from peft_engine.parts.batching import Example, epoch_batches
from peft_engine.runtime import DTYPES, pick_device, pin_threads
from peft_engine.tasks.table import find_task

AUTOCAST = "random-autocast"
ORDERS = {
    "random": "random",
    "group_by_length": "group_by_length",
    "ours": "sequential",
    AUTOCAST: "random",
}
"""Which rows make a step; ``ours``: the very rows of our side's steps. On a base in bf16 PEFT
computes the products of its adapters in fp32, with autocast in bf16."""


class Tokens:
    """The part of our base that encoding needs, without its weights."""

    def __init__(self, info: BaseInfo, tokenizer: Any) -> None:
        self.info, self.text = info, encoder_of(tokenizer)
        self.architecture, self.max_length = info.architecture, info.max_length
        config = AutoConfig.from_pretrained(info.directory)
        self.tells_texts_apart = looks_up_types(config, self.text)


def encode(case: Case, tokens: Tokens, split: str) -> list[Example]:
    """Records as our side encodes them."""
    train = case.records("train")
    task = find_task(case.task, train)
    length = min(tokens.max_length, task.max_length_tokens)
    labels = task.find_labels(train)
    return task.encode(tokens, case.records(split), labels=labels, max_length=length)  # type: ignore[arg-type]


def build(case: Case, info: BaseInfo, classes: int, dtype: torch.dtype) -> Any:
    """The base with LoRA on every linear of its layers."""
    if case.task == "text-generation":
        model = AutoModelForCausalLM.from_pretrained(info.directory, dtype=dtype)
        config = LoraConfig(
            r=LORA_RANK,
            lora_alpha=LORA_ALPHA,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
    else:
        model = AutoModelForSequenceClassification.from_pretrained(
            info.directory, dtype=dtype, num_labels=classes
        )
        config = LoraConfig(
            r=LORA_RANK,
            lora_alpha=LORA_ALPHA,
            lora_dropout=0.0,
            # all-linear would take the pooler too, which our side's pooling does without.
            target_modules=r".*encoder\..*\.(query|key|value|dense)",
            task_type="SEQ_CLS",
        )
    return get_peft_model(model, config)


class Ticking(TrainerCallback):
    """Notes when each step ends."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """A step has ended."""
        self.clock.tick()


@torch.no_grad()
def judge(case: Case, model: Any, examples: Sequence[Example], collate: Any) -> float:
    """The case's metric on the test rows."""
    model.eval()
    total, count = 0.0, 0
    for start in range(0, len(examples), 32):
        batch = collate([features_of(one) for one in examples[start : start + 32]])
        batch = {name: values.to(model.device) for name, values in batch.items()}
        labels = batch.pop("labels")
        logits = model(**batch).logits
        if case.metric == "loss":
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            total += float(cross_entropy(logits, labels, reduction="sum"))
            count += int((labels != -100).sum())
        else:
            total += int((logits.argmax(-1) == labels).sum())
            count += len(labels)
    return total / count


def fit(
    case: Case,
    model: Any,
    dataset: Sequence[Any],
    collate: Any,
    asked: argparse.Namespace,
    clock: Clock,
) -> float:
    """Trainer's own loop.

    Returns:
        The mean training loss; the clock has ticked at every step.
    """
    on_cuda = clock.device.type == "cuda"
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=clock.steps,
            per_device_train_batch_size=case.batch_rows,
            learning_rate=case.learning_rate,
            weight_decay=case.weight_decay,
            warmup_steps=WARMUP_RATIO,
            lr_scheduler_type="linear",
            max_grad_norm=MAX_GRAD_NORM,
            train_sampling_strategy=ORDERS[asked.order],
            use_cpu=not on_cuda,
            bf16=asked.order == AUTOCAST,
            seed=asked.seed,
            save_strategy="no",
            eval_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_num_workers=0,
            dataloader_pin_memory=on_cuda,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            data_collator=collate,
            callbacks=[Ticking(clock)],
        )
        result = trainer.train()
    return float(result.training_loss)


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--order", choices=ORDERS, default="random")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--steps", type=int, default=None, help="None: the case's own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Train once."""
    asked = _read_arguments()
    warnings.simplefilter("ignore")
    pin_threads(asked.threads)
    case, device = CASES[asked.case], pick_device(asked.device)
    steps = asked.steps or (case.judged_steps if asked.evaluate else case.steps_on(device))
    precision = case.precision_on(device)
    info = describe_base(case.reference, name=case.base, models_dir=asked.models_dir)
    tokenizer = AutoTokenizer.from_pretrained(info.directory)
    tokens = Tokens(info, tokenizer)
    train = encode(case, tokens, "train")
    rows = list(range(len(train)))
    if asked.order == "ours":
        batches = epoch_batches(train, batch_size=case.batch_rows, seed=asked.seed, epoch=0)
        rows = [row for batch in batches for row in batch]
    classes = 0 if case.metric == "loss" else 1 + max(one.target for one in train)
    torch.manual_seed(asked.seed)
    model = build(case, info, classes, DTYPES[precision])
    if case.metric == "loss":
        pad: Any = DataCollatorForSeq2Seq(tokenizer)
    else:
        pad = DataCollatorWithPadding(tokenizer)
    counted: list[int] = []

    def collate(features: Any) -> Any:
        batch = pad(features)
        counted.append(int(batch["attention_mask"].sum()))
        return batch

    dataset = [features_of(train[row]) for row in rows]
    clock = Clock(device, steps)
    loss = fit(case, model, dataset, collate, asked, clock)
    found = clock.report(case, losses=[loss], tokens=counted) | {"precision": precision}
    if asked.evaluate:
        found["test"] = judge(case, model, encode(case, tokens, "test"), collate)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

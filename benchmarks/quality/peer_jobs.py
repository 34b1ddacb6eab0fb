"""One run of the peer: PEFT and ``transformers.Trainer`` on the same rows, by published recipes.

Recipes are those that papers and manuals give: nothing here is tuned to our sets, and nothing is
held back either. Metrics are the engine's own functions, so that both sides are scored alike.

Where PEFT refuses ``all-linear`` (heads other than sequence classification) its targets are the
attention's query and value, its own default.
"""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import torch

from benchmarks.quality.grid import BASES, SETS
from benchmarks.quality.journal import digest
from benchmarks.quality.peer_tasks import PEER_TASKS, PeerTask
from benchmarks.quality.peer_texts import PeerText
from benchmarks.quality.rows import Records, bound_rows, read_splits
from benchmarks.record import describe_run
from peft_engine.bases.base import describe_base

_TASKS = {**PEER_TASKS, "text-generation": PeerText}


@dataclass(frozen=True)
class PeerRecipe:
    """Settings as published.

    Attributes:
        learning_rate: Peak rate of everything that learns.
        epochs: Passes; validation decides which one is kept.
        weight_decay: Of everything but biases and norms.
        source: Where the settings stand.
    """

    learning_rate: float
    epochs: float
    weight_decay: float
    source: str


BATCH_ROWS = 16
WARMUP_SHARE = 0.06
EPOCHS = 10.0
"""Papers give 3 (BERT) to 30 (LoRA on GLUE); validation decides which epoch is kept."""
RECIPES: Mapping[str, PeerRecipe] = MappingProxyType(
    {
        "lora": PeerRecipe(
            5e-4, EPOCHS, 0.01, "LoRA on GLUE (Hu et al. 2021, appendix D); r 16, alpha 32"
        ),
        "full": PeerRecipe(2e-5, EPOCHS, 0.01, "BERT (Devlin et al. 2019), appendix A.3"),
        "ia3": PeerRecipe(3e-3, EPOCHS, 0.0, "(IA)3 (Liu et al. 2022), t-few"),
    }
)
TEXT_RECIPES: Mapping[str, PeerRecipe] = MappingProxyType(
    {
        "lora": PeerRecipe(
            2e-4,
            5.0,
            0.01,
            "LoRA on E2E (Hu et al. 2021, appendix D.3); r 16, alpha 32, all-linear",
        ),
        "full": PeerRecipe(2e-5, 3.0, 0.0, "Stanford Alpaca (Taori et al. 2023)"),
        "ia3": PeerRecipe(3e-3, 5.0, 0.0, "(IA)3 (Liu et al. 2022), t-few"),
    }
)
"""For text generation, on a causal base."""


@dataclass(frozen=True)
class PeerJob:
    """A set, a method and a seed."""

    set: str
    method: str
    seed: int

    @property
    def settings(self) -> PeerRecipe:
        """The recipe of the method for the set's task."""
        causal = SETS[self.set].task == "text-generation"
        return (TEXT_RECIPES if causal else RECIPES)[self.method]

    @property
    def recipe(self) -> str:
        """Digest of what decides the outcome but the seed."""
        own = SETS[self.set]
        return digest({**asdict(self.settings), "rows": own.train_rows, "batch": BATCH_ROWS})

    @property
    def key(self) -> str:
        """What the journal knows the run by."""
        return f"{self.set}|{self.method}|{self.seed}|{self.recipe}"


def run(job: PeerJob, splits: Records, directory: Path) -> dict[str, Any]:
    """Train and evaluate once.

    Args:
        job: The job.
        splits: Canonical records. Without rows of validation the last epoch is taken.
        directory: Folder of the base.

    Returns:
        A line for the journal.
    """
    from transformers import AutoTokenizer, Trainer, set_seed

    own, recipe = SETS[job.set], job.settings
    task = _TASKS[own.task](AutoTokenizer.from_pretrained(directory), splits)

    def make() -> Any:
        set_seed(job.seed)
        return task.model(directory)

    chosen_by = task.chooses_by or own.metric
    model, targets = _adapt(make, job.method, task)
    started, processor = time.monotonic(), time.process_time()
    with TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=_arguments(recipe, chosen_by, Path(scratch), job.seed, task),
            train_dataset=task.features["train"],
            eval_dataset=task.features["validation"] or None,
            data_collator=task.collate,
            compute_metrics=lambda found: dict(task.score("validation", found.predictions)),
            preprocess_logits_for_metrics=task.reduce_logits,
        )
        trainer.train()
        trainer.compute_metrics = None  # of validation; `predict` would hand it the test split
        predictions = trainer.predict(task.features["test"]).predictions  # type: ignore[arg-type]
        course = [
            [entry["step"], round(entry[f"eval_{chosen_by}"], 4)]
            for entry in trainer.state.log_history
            if f"eval_{chosen_by}" in entry
        ]
        after = task.score("test", predictions) | task.score_texts(model, own.generate_rows)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {
        "key": job.key,
        "set": job.set,
        "method": job.method,
        "seed": job.seed,
        "recipe": job.recipe,
        "settings": asdict(recipe) | {"targets": targets},
        "metric": own.metric,
        "course": course,
        "test": {"after": after},
        "trainable_parameters": learning,
        "seconds": round(time.monotonic() - started, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "load_average": round(os.getloadavg()[0], 2),
        **describe_run(),
    }


def _arguments(recipe: PeerRecipe, metric: str, scratch: Path, seed: int, task: PeerTask) -> Any:
    from transformers import TrainingArguments

    chooses = bool(task.features["validation"])
    return TrainingArguments(
        output_dir=str(scratch),
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        warmup_steps=WARMUP_SHARE,
        per_device_train_batch_size=BATCH_ROWS,
        per_device_eval_batch_size=32,
        eval_strategy="epoch" if chooses else "no",
        save_strategy="epoch" if chooses else "no",
        save_total_limit=1,
        load_best_model_at_end=chooses,
        metric_for_best_model=f"eval_{metric}",
        greater_is_better=metric != "loss",
        seed=seed,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        bf16=task.in_bf16,
        remove_unused_columns=False,
        label_names=list(task.label_names),
    )


def _adapt(make: Callable[[], Any], method: str, task: PeerTask) -> tuple[Any, str]:
    """A new model with an adapter, and the targets that PEFT took."""
    if method == "full":
        return make(), "every weight"
    from peft import get_peft_model

    if method == "lora":
        try:
            return get_peft_model(make(), _adapter(method, task, "all-linear")), "all-linear"
        except (TypeError, ValueError):
            pass  # it takes the head for a layer; what it has done to the model is thrown away
    return get_peft_model(make(), _adapter(method, task, None)), "PEFT's default"


def _adapter(method: str, task: PeerTask, targets: str | None) -> Any:
    from peft import IA3Config, LoraConfig

    head = {"task_type": task.peft_type} if task.peft_type else {"modules_to_save": ["classifier"]}
    if method == "ia3":
        return IA3Config(**head)
    return LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules=targets, **head)


class PeerBench:
    """What several runs of one process share.

    Args:
        data: Folder of the data sets.
        models_dir: Folder of the base models.
    """

    def __init__(self, data: Path, models_dir: Path) -> None:
        self._data, self._models_dir = data, models_dir

    def run(self, job: PeerJob) -> dict[str, Any]:
        """Run a job from its start to its end.

        Args:
            job: The job.

        Returns:
            Its line for the journal.
        """
        own = SETS[job.set]
        splits = read_splits(self._data / job.set, task=own.task)
        bounded = bound_rows(splits, train=own.train_rows, test=own.test_rows)
        base = describe_base(BASES[own.base], name=own.base, models_dir=self._models_dir)
        return run(job, bounded, base.directory)

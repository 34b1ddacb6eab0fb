"""Adapters of the real AdapterHub library, for an environment of its own; see README.md.

Imports nothing of this project: `adapters` pins another transformers than it.
"""

import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

warnings.filterwarnings("ignore")

import adapters  # noqa: E402
from adapters import AutoAdapterModel, LoRAConfig, SeqBnConfig  # noqa: E402

ROWS = ([2, 5, 9, 12, 3], [2, 7, 8, 3], [2, 6, 11, 14, 10, 4, 3])
ID2LABEL = {0: "no", 1: "perhaps", 2: "yes"}
TAGS = {0: "O", 1: "B-card", 2: "I-card"}

CASES = {
    "houlsby": ("bert", "double_seq_bn", "classification"),
    "pfeiffer": ("bert", "seq_bn", "one layer"),
    "parallel": ("bert", "par_bn", "classification"),
    "learned-scale": ("bert", SeqBnConfig(scaling="learned", leave_out=[0]), "multi-label"),
    "lora": ("bert", LoRAConfig(r=4, alpha=6), "tagging"),
    "lora-everywhere": (
        "bert",
        LoRAConfig(r=2, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True),
        "answering",
    ),
    "roberta-houlsby": ("roberta", "double_seq_bn", "classification"),
    "distilbert-pfeiffer": ("distilbert", "seq_bn", "classification"),
    "distilbert-parallel": ("distilbert", "par_bn", "one layer"),
    "distilbert-lora": ("distilbert", LoRAConfig(r=4), "classification"),
}
BINARY = {"pfeiffer"}
"""Saved as the library does without being asked for safetensors."""


def add_head(model: Any, kind: str) -> None:
    if kind == "tagging":
        model.add_tagging_head("golden", num_labels=3, id2label=TAGS)
    elif kind == "answering":
        model.add_qa_head("golden")
    else:
        layers = 1 if kind == "one layer" else 2
        many = kind == "multi-label"
        model.add_classification_head(
            "golden", num_labels=3, layers=layers, multilabel=many, id2label=ID2LABEL
        )


def shake(model: Any) -> None:
    """Whole fractions for everything that the adapter trains."""
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
            if "golden" in name:
                places = torch.arange(parameter.numel(), dtype=torch.int64)
                values = ((places * 6571 + number * 15485863) % 1009).float() / 1009 - 0.5
                parameter.copy_((0.4 * values).view_as(parameter))


def logits(model: Any) -> torch.Tensor:
    longest = max(map(len, ROWS))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in ROWS])
    mask = (ids != 0).long()
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask)
    if "start_logits" in out:
        out = torch.stack([out.start_logits, out.end_logits], dim=-1)
    else:
        out = out.logits
    if out.dim() == 3:
        out = torch.cat([out[row, : len(own)] for row, own in enumerate(ROWS)])
    return out


def make(bases: Path, target: Path) -> None:
    for case, (family, config, head) in CASES.items():
        model = AutoAdapterModel.from_pretrained(str(bases / family))
        model.add_adapter("golden", config=config)
        add_head(model, head)
        model.set_active_adapters("golden")
        shake(model.eval())
        folder = target / case
        shutil.rmtree(folder, ignore_errors=True)
        model.save_adapter(
            str(folder), "golden", with_head=True, use_safetensors=case not in BINARY
        )
        for path in folder.glob("*.json"):
            found = json.loads(path.read_text())
            found["model_name"] = family
            path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
        expected = {"base": family, "logits": logits(model).tolist()}
        (folder / "expected.json").write_text(json.dumps(expected, sort_keys=True) + "\n")
        sys.stdout.write(f"{case} {adapters.__version__}\n")


def check(bases: Path, exported: Path) -> None:
    """Load what `send.py` wrote and compare with its logits."""
    for folder in sorted(path for path in exported.iterdir() if path.is_dir()):
        expected = json.loads((folder / "expected.json").read_text())
        model = AutoAdapterModel.from_pretrained(str(bases / expected["base"]))
        name = model.load_adapter(str(folder), use_safetensors=True, set_active=True)
        model.active_head = name
        difference = (logits(model.eval()) - torch.tensor(expected["logits"])).abs().max()
        sys.stdout.write(f"{folder.name}: {float(difference):.1e}\n")


if __name__ == "__main__":
    {"make": make, "check": check}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))

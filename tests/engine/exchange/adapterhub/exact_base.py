"""A base of whole fractions: every version of every library builds the same one.

python -m tests.engine.exchange.adapterhub.exact_base FOLDER
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModel

from tests.tiny_bases import write_tiny_bert, write_tiny_distilbert, write_tiny_roberta

WRITERS = {
    "bert": write_tiny_bert,
    "roberta": write_tiny_roberta,
    "distilbert": write_tiny_distilbert,
}


def write_exact_base(family: str, folder: Path) -> Path:
    WRITERS[family](folder)
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(model.named_parameters())):
            places = torch.arange(parameter.numel(), dtype=torch.int64)
            values = ((places * 7919 + number * 104729) % 2003).float() / 2003 - 0.5
            values = 1 + 0.2 * values if "LayerNorm.weight" in name else 0.35 * values
            parameter.copy_(values.view_as(parameter))
    model.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    for family in WRITERS:
        write_exact_base(family, Path(sys.argv[1]) / family)

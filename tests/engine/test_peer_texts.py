"""Peers have our tokens and labels, and on text generation our loss."""

import pytest
import torch
from transformers import AutoTokenizer

from benchmarks.peer_rows import IGNORED
from benchmarks.quality.peer_texts import PeerText
from benchmarks.training.cases import CASES
from benchmarks.training.peer import Tokens, encode
from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.parts.batching import collate
from peft_engine.tasks.table import find_task
from peft_engine.tasks.text_generation import TextGeneration

RECORDS = [
    {"prompt": "where is my card", "completion": "tell me about a new card"},
    {"prompt": "money", "completion": "late", "references": ["late", "lost"]},
    {
        "messages": [
            {"role": "user", "content": "is my order late"},
            {"role": "assistant", "content": "please tell me"},
            {"role": "user", "content": "a refund"},
            {"role": "assistant", "content": "my money is lost"},
        ]
    },
]


def test_the_peer_learns_our_tokens_by_our_loss(llama: Base) -> None:
    splits = {"train": RECORDS, "validation": RECORDS, "test": RECORDS}
    peer = PeerText(AutoTokenizer.from_pretrained(llama.info.directory), splits)
    task = TextGeneration()
    examples = task.encode(llama, RECORDS, labels=None, max_length=peer.max_length)
    ours = [
        (list(e.rows[0].input_ids), [token if own else IGNORED for token, own in pairs])
        for e in examples
        for pairs in [zip(e.rows[0].input_ids, e.target, strict=True)]
    ]
    assert [(f["input_ids"], f["labels"]) for f in peer.features["train"]] == ours

    batch = collate(examples, pad_id=llama.text.pad_id, device=llama.device)
    model = peer.model(llama.info.directory).to(llama.device).eval()
    with torch.no_grad():
        wanted = task.loss(llama, None, hidden_states(llama, batch), batch, label_smoothing=0.0)
        rows = {
            name: own.to(llama.device) for name, own in peer.collate(peer.features["test"]).items()
        }
        labels = rows.pop("labels")
        sums = peer.reduce_logits(model(**rows).logits, labels).cpu().numpy()
    loss = peer.score("test", sums)["loss"]
    assert abs(loss - float(wanted.total) / wanted.count) < 1e-4

    found = peer.score_texts(model, 2)
    assert {"bleu", "rougeL"} <= set(found)
    assert peer.score_texts(model, 0) == {}


@pytest.mark.parametrize(("name", "base"), [("text", "llama"), ("encoder", "bert")])
def test_the_peer_of_throughput_reads_our_rows(
    name: str, base: str, request: pytest.FixtureRequest
) -> None:
    case, own = CASES[name], request.getfixturevalue(base)
    tokens = Tokens(own.info, AutoTokenizer.from_pretrained(own.info.directory))
    task, records = find_task(case.task, case.records("train")), case.records("test")
    labels = task.find_labels(case.records("train"))
    length = min(own.max_length, task.max_length_tokens)
    wanted = task.encode(own, records, labels=labels, max_length=length)
    assert encode(case, tokens, "test") == wanted

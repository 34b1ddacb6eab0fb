"""Where bases come from, what identifies them, and how text becomes tokens."""

import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers import AutoTokenizer

from peft_engine import runtime
from peft_engine.bases.base import Base, describe_base, load_base
from peft_engine.bases.forward import hidden_states
from peft_engine.bases.pooling import Pooling, pool, read_pooling
from peft_engine.bases.reference import resolve_reference
from peft_engine.bases.text import TextEncoder
from peft_engine.errors import BaseModelError
from peft_engine.parts.batching import collate
from peft_engine.runtime import explain_precision, pick_precision
from peft_engine.tasks.table import find_task
from tests.tiny_bases import write_tiny_bert, write_tiny_llama


def test_a_base_is_frozen_and_described(bert: Base) -> None:
    assert not [weight for weight in bert.model.parameters() if weight.requires_grad]
    assert not bert.model.training
    assert bert.parameters == sum(weight.numel() for weight in bert.model.parameters())
    assert (bert.architecture, bert.max_length, bert.precision) == ("encoder", 48, "fp32")


@pytest.mark.parametrize("reference", ["pkg:no-such-package", "/no/such/folder", "org/name"])
def test_what_is_not_there_is_said_so(reference: str, tmp_path: Path) -> None:
    with pytest.raises(BaseModelError) as caught:
        load_base(reference, name="x", models_dir=tmp_path)
    assert caught.value.code == "base_not_found"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"config\.json"):
        resolve_reference(str(tmp_path), models_dir=tmp_path)


def test_pickled_weights_are_not_taken(tmp_path: Path) -> None:
    folder = write_tiny_bert(tmp_path / "bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError):
        resolve_reference(str(folder), models_dir=tmp_path)


def test_a_wheel_below_the_models_folder_is_found(tmp_path: Path) -> None:
    package = tmp_path / "site" / "some_base"
    package.mkdir(parents=True)
    write_tiny_bert(package / "model")
    info = tmp_path / "site" / "some_base-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: some-base\nVersion: 1.0\nLicense: MIT\n"
    )
    files = [path for path in package.rglob("*") if path.is_file()]
    (info / "RECORD").write_text("".join(f"{p.relative_to(tmp_path / 'site')},,\n" for p in files))
    found = resolve_reference("pkg:some-base", models_dir=tmp_path)
    assert (found.directory, found.licence) == (package / "model", "MIT")
    with pytest.raises(BaseModelError):
        resolve_reference("pkg:some-base/../../etc", models_dir=tmp_path)


def test_the_fingerprint_follows_the_content_not_the_name(tmp_path: Path) -> None:
    def fingerprint(folder: Path) -> str:
        return describe_base(str(folder), name="x", models_dir=tmp_path / "models").fingerprint

    first = write_tiny_bert(tmp_path / "first")
    shutil.copytree(first, tmp_path / "copy")
    other = write_tiny_bert(tmp_path / "other", seed=1)
    assert fingerprint(first) == fingerprint(tmp_path / "copy") != fingerprint(other)
    before = fingerprint(first)
    config = json.loads((first / "config.json").read_text())
    (first / "config.json").write_text(json.dumps(config | {"layer_norm_eps": 1e-3}))
    assert fingerprint(first) != before


def test_fingerprints_may_be_taken_by_many_at_once(tmp_path: Path) -> None:
    folder = write_tiny_bert(tmp_path / "bert")
    found: list[str] = []

    def describe() -> None:
        info = describe_base(str(folder), name="x", models_dir=tmp_path / "models")
        found.append(info.fingerprint)

    threads = [threading.Thread(target=describe) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_pooling_is_read_from_the_base_or_follows_the_rule(tmp_path: Path) -> None:
    assert read_pooling(tmp_path, "encoder") == Pooling("mean", normalize=False)
    assert read_pooling(tmp_path, "causal") == Pooling("last", normalize=False)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert read_pooling(tmp_path, "encoder").mode == "cls"
    for asked, mode in (("lasttoken", "last"), ("mean_tokens", "mean")):
        text = f'{{"pooling_mode_cls_token": false, "pooling_mode_{asked}": true}}'
        (tmp_path / "1_Pooling" / "config.json").write_text(text)
        assert read_pooling(tmp_path, "causal") == Pooling(mode, normalize=False, declared=True)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_max_tokens": true}')
    assert read_pooling(tmp_path, "causal") == Pooling("last", normalize=False)


def test_pooling_sees_real_tokens_only() -> None:
    hidden = torch.arange(12.0).view(1, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0]])
    assert pool(hidden, mask, mode="mean", normalize=False).tolist() == [[3.0, 4.0, 5.0]]
    assert pool(hidden, mask, mode="cls", normalize=False).tolist() == [[0.0, 1.0, 2.0]]
    assert pool(hidden, mask, mode="last", normalize=False).tolist() == [[6.0, 7.0, 8.0]]
    assert pool(hidden, mask, mode="last", normalize=True).norm() == pytest.approx(1)


def test_precision_follows_the_size_of_the_base() -> None:
    cpu = torch.device("cpu")
    assert pick_precision("auto", device=cpu, parameters=1_000_000) == "fp32"
    assert pick_precision("bf16", device=cpu, parameters=1_000_000) == "bf16"


@pytest.mark.parametrize(
    ("wanted", "parameters", "native", "chosen", "reason"),
    [
        ("fp32", 10**9, True, "fp32", "fp32 as it was asked for"),
        ("auto", 10**9, True, "bf16", "auto: this cpu multiplies bf16 natively"),
        ("auto", 10**9, False, "fp32", "auto: this cpu has no native bf16 products"),
        ("auto", 10**6, True, "fp32", "auto: fewer than 50,000,000 parameters are quick enough"),
    ],
)
def test_a_precision_comes_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
    wanted: Literal["auto", "fp32"],
    parameters: int,
    native: bool,
    chosen: str,
    reason: str,
) -> None:
    monkeypatch.setattr(runtime, "_cpu_has_bf16", lambda: native)
    cpu = torch.device("cpu")
    found = pick_precision(wanted, device=cpu, parameters=parameters)
    assert found == chosen
    assert explain_precision(wanted, found, device=cpu).startswith(reason)


def test_control_tokens_in_user_text_stay_text(bert: Base, llama: Base) -> None:
    (encoded,) = bert.text.encode_inputs(["card [SEP] lost"], max_length=20)
    assert encoded.input_ids.count(3) == 1  # the real [SEP] at the end, and no other
    turns = llama.text.encode_conversation([{"role": "user", "content": "a<|assistant|>b"}])
    ids = [token for turn in turns for token in turn.input_ids]
    assert ids.count(2) == 1  # the template's own <|assistant|>
    assert llama.text.decode(llama.text.encode_plain("a<|assistant|>b")) == "a<|assistant|>b"


def test_a_base_with_one_token_type_reads_pairs_of_every_task(tmp_path: Path, bert: Base) -> None:
    """The tokenizer writes type 1 for the second text: of this base's table no row is that."""
    base = load_base(
        str(write_tiny_bert(tmp_path / "bert", types=1)), name="x", models_dir=tmp_path
    )
    assert (base.tells_texts_apart, bert.tells_texts_apart) == (False, True)
    tasks: Mapping[str, Mapping[str, Any]] = {
        "regression": {"text": "my card", "text_pair": "is lost", "value": 1.0},
        "question-answering": {
            "question": "where is my card",
            "context": "my card is lost",
            "answers": [{"text": "lost", "start": 11}],
        },
        "multiple-choice": {"question": "is", "choices": ["a card", "my order"], "answer": 0},
    }
    for name, record in tasks.items():
        examples = find_task(name, [record]).encode(base, [record], labels=None, max_length=32)
        batch = collate(examples, pad_id=base.text.pad_id, device=base.device)
        assert hidden_states(base, batch).isfinite().all()
        assert batch.type_ids is None
        known = find_task(name, [record]).encode(bert, [record], labels=None, max_length=32)
        types = collate(known, pad_id=bert.text.pad_id, device=bert.device).type_ids
        assert types is not None
        assert int(types.max()) == 1


def test_a_token_without_an_embedding_is_never_written(tmp_path: Path) -> None:
    """On a GPU its lookup would end the process. Some published bases have such tokens."""
    folder = write_tiny_llama(tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.add_tokens(["card"])
    tokenizer.chat_template += "<|pad|>"
    tokenizer.save_pretrained(folder)
    text = load_base(str(folder), name="llama", models_dir=tmp_path).text
    assert text.pad_id == 0
    (turn,) = text.encode_conversation([{"role": "user", "content": "my card"}])
    assert max(turn.input_ids) < known
    assert text.decode(text.encode_plain("my card")) == "my card"
    with pytest.raises(BaseModelError, match=r"writes token \d+ and the base has 50 embeddings"):
        TextEncoder(tokenizer, vocabulary=50)


def test_pairs_and_cuts(bert: Base) -> None:
    (pair,) = bert.text.encode_inputs([("my card", "lost")], max_length=20)
    assert pair.type_ids == [0, 0, 0, 0, 1, 1]
    (cut,) = bert.text.encode_inputs([("card " * 30, "lost " * 9)], max_length=20)
    assert (len(cut.input_ids), cut.cut_tokens) == (20, 30 + 9 + 3 - 20)
    (cut,) = bert.text.encode_inputs(["card " * 30], max_length=10)
    assert (len(cut.input_ids), cut.cut_tokens) == (10, 22)
    assert bert.text.count_input_tokens("card " * 30) == 32


def test_every_assistant_turn_is_learned_up_to_its_end(llama: Base) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "no"},
    ]
    turns = llama.text.encode_conversation(messages)
    learned = [turn.input_ids for turn in turns if turn.learned]
    assert learned == [[*llama.text.encode_plain(word), 0] for word in ("yo", "no")]
    prompt = llama.text.encode_conversation(messages[:3])
    whole = [token for turn in turns for token in turn.input_ids]
    start = [token for turn in prompt for token in turn.input_ids]
    assert whole[: len(start)] == start  # what is served is how training began


def test_a_template_that_rewrites_earlier_turns_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "llama")
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ messages|length }}{{ m['content'] }}{% endfor %}"
    )
    base = load_base(str(folder), name="x", models_dir=tmp_path)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(BaseModelError, match="rewrites earlier turns"):
        base.text.encode_conversation(messages)


def test_without_a_template_contents_stand_one_after_another(tmp_path: Path) -> None:
    folder = write_tiny_llama(tmp_path / "llama", chat=False)
    base = load_base(str(folder), name="x", models_dir=tmp_path)
    turns = base.text.encode_conversation(
        [{"role": "user", "content": "a "}, {"role": "assistant", "content": "b"}]
    )
    assert [(turn.learned, len(turn.input_ids)) for turn in turns] == [(False, 2), (True, 2)]
    with_template = load_base(
        str(write_tiny_llama(tmp_path / "chat")), name="x", models_dir=tmp_path
    )
    assert base.template_digest != with_template.template_digest

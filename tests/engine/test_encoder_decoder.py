"""Bases with two stacks: what they compute is what transformers computes, deltas or none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSeq2SeqLM, T5EncoderModel

from peft_engine.bases.base import Base, load_base
from peft_engine.bases.forward import hidden_states
from peft_engine.configs.methods import FullConfig, LastLayers, LoraConfig
from peft_engine.delta import Delta, check_delta
from peft_engine.errors import BaseModelError, DataError, DeltaError, RowError
from peft_engine.generation import Generated, Sampling, generate
from peft_engine.methods.table import METHODS
from peft_engine.parts.batching import collate
from peft_engine.parts.stacks import part_read
from peft_engine.plan import Actor, Plan
from peft_engine.router import Router
from peft_engine.serving import Engine, Row, prepare_row
from peft_engine.tasks.text_classification import TextClassification
from peft_engine.tasks.text_generation import TextGeneration
from tests.engine.conftest import make_delta
from tests.tiny_bases import write_tiny_bart, write_tiny_t5

FAMILIES: dict[str, Callable[[Path], Path]] = {
    "t5": write_tiny_t5,
    "flan-t5": lambda folder: write_tiny_t5(folder, gated=True, layers=1),
    "bart": lambda folder: write_tiny_bart(folder, family="bart"),
    "mbart": lambda folder: write_tiny_bart(folder, family="mbart"),
    "marian": lambda folder: write_tiny_bart(folder, family="marian"),
    "pegasus": lambda folder: write_tiny_bart(folder, family="pegasus"),
}
FORCED = {"mbart"}
"""Families whose forced token (a language) stands before the answer and is not learned."""
PROMPTS = [[10, 11, 12, 1], [20, 21, 22, 23, 24, 25, 1], [30, 1], [40, 41, 1]]
RECORDS = [
    {"prompt": "where is my card", "completion": "lost"},
    {"prompt": "refund", "completion": "a new card please"},
]


@pytest.fixture(scope="module", params=FAMILIES)
def seq2seq(request: pytest.FixtureRequest, models_dir: Path) -> Base:
    folder = FAMILIES[request.param](models_dir / f"seq2seq-{request.param}")
    return load_base(str(folder), name=request.param, models_dir=models_dir)


def test_it_is_described_and_frozen(seq2seq: Base) -> None:
    assert (seq2seq.architecture, seq2seq.max_length) == ("encoder-decoder", 64)
    assert (seq2seq.hidden_size, seq2seq.pooling.mode, seq2seq.generates) == (32, "mean", True)
    assert not [weight for weight in seq2seq.model.parameters() if weight.requires_grad]


def test_the_loss_is_that_of_transformers_on_the_answer_alone(seq2seq: Base) -> None:
    """Scales, biases and the shift of the decoder's input, all at once."""
    task = TextGeneration()
    examples = task.encode(seq2seq, RECORDS, labels=None, max_length=40)
    batch = collate(examples, pad_id=seq2seq.text.pad_id, device=seq2seq.device)
    assert batch.decoder_ids is not None
    forced = len(seq2seq.text.answer_start or ()) - 1
    labels = batch.decoder_ids[:, 1:].clone()  # (B, U - 1)
    for row, example in enumerate(examples):
        labels[row, len(example.target) - 1 :] = -100
        labels[row, :forced] = -100
    with torch.no_grad():
        ours = task.loss(seq2seq, None, hidden_states(seq2seq, batch), batch, label_smoothing=0.0)
        logits = seq2seq.model(
            input_ids=batch.input_ids,
            attention_mask=batch.mask,
            decoder_input_ids=batch.decoder_ids[:, :-1],
        ).logits
        theirs = cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert ours.count == int((labels >= 0).sum())
    assert torch.allclose(ours.total, theirs, rtol=1e-4)


@pytest.mark.parametrize("seq2seq", sorted(FAMILIES.keys() - FORCED), indirect=True)
def test_what_is_learned_is_what_transformers_makes_of_labels(seq2seq: Base) -> None:
    """Its own shift of ``labels = tokenizer(text)`` gives our decoder's input."""
    assert len(seq2seq.text.answer_start or ()) == 1
    (example,) = TextGeneration().encode(seq2seq, RECORDS[1:], labels=None, max_length=40)
    (label,) = seq2seq.text.encode_inputs([RECORDS[1]["completion"]], max_length=40)
    shifted = seq2seq.model.prepare_decoder_input_ids_from_labels(  # type: ignore[operator]
        labels=torch.tensor([label.input_ids])
    )
    assert list(example.rows[0].decoder_ids or ()) == [*shifted[0].tolist(), label.input_ids[-1]]


def test_greedy_text_is_what_transformers_writes(seq2seq: Base) -> None:
    start = len(seq2seq.text.answer_start or ())
    found = generate(seq2seq, PROMPTS, [Sampling(max_new_tokens=12)] * 4)
    for prompt, own in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt], device=seq2seq.device)
        expected = seq2seq.model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=start - 1 + 12,
            do_sample=False,
        )[0, start:]
        assert own.ids == expected.tolist()


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_rows_of_several_deltas_write_what_they_write_alone(
    seq2seq: Base, temperature: float
) -> None:
    router = Router(seq2seq.trunk)
    rows: list[Actor | None] = [
        Actor.of(make_delta(seq2seq, seed=seed, strength=0.1)) for seed in (1, 2, 3)
    ]
    rows.append(None)

    def write(which: list[int]) -> dict[int, Generated]:
        plan = Plan.build([rows[row] for row in which])
        own = [which[place] for place in plan.order]
        samplings = [Sampling(max_new_tokens=8, temperature=temperature, seed=row) for row in own]
        with router.use(plan):
            found = generate(seq2seq, [PROMPTS[row] for row in own], samplings)
        return dict(zip(own, found, strict=True))

    together = write([3, 0, 1, 2])
    alone = {row: write([row])[row] for row in range(4)}
    assert {row: text.ids for row, text in together.items()} == {
        row: text.ids for row, text in alone.items()
    }
    plain = generate(seq2seq, [PROMPTS[3]], [Sampling(8, temperature, seed=3)])[0]
    assert together[3].ids == plain.ids


def test_features_of_the_encoder_half_are_those_of_t5s_own(t5: Base) -> None:
    half = T5EncoderModel.from_pretrained(t5.info.directory).eval().to(t5.device)
    records = [{"text": "where is my card"}, {"text": "refund"}]
    examples = TextClassification().encode(t5, records, labels=None, max_length=40)
    batch = collate(examples, pad_id=t5.text.pad_id, device=t5.device)
    with torch.no_grad():
        theirs = half(input_ids=batch.input_ids, attention_mask=batch.mask).last_hidden_state
        ours = hidden_states(t5, batch)
    assert torch.allclose(ours * batch.mask[..., None], theirs * batch.mask[..., None], atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_a_task_with_a_head_changes_the_encoder_alone(name: str, t5: Base, bart: Base) -> None:
    from peft_engine.configs import JobSpec

    (config,) = JobSpec(dataset_id="d", base_model="b", method=name).method  # type: ignore[arg-type]
    for base in (t5, bart):
        both = {site.path for site in METHODS[name].sites(base.trunk, config)}
        half = {
            site.path for site in METHODS[name].sites(part_read(base.trunk, has_head=True), config)
        }
        assert half == {path for path in both if path.startswith("encoder.")}
        assert (half < both) or name == "head-only"


def test_layers_are_counted_in_each_stack(bart: Base) -> None:
    """Three layers read and two write: the last one is the last of each."""

    def chosen(layers: object) -> set[tuple[str, int | None]]:
        config = LoraConfig(layers=layers)  # type: ignore[arg-type]
        sites = METHODS["lora"].sites(bart.trunk, config)
        return {(site.path.partition(".")[0], site.layer) for site in sites}

    assert chosen(LastLayers(last=1)) == {("encoder", 2), ("decoder", 1)}
    assert chosen((0,)) == {("encoder", 0), ("decoder", 0)}
    assert chosen((2,)) == {("encoder", 2)}
    assert len(chosen(LastLayers(last=3))) == 5


def test_a_delta_of_the_wrong_half_is_refused(t5: Base) -> None:
    def check(delta: Delta) -> None:
        check_delta(delta, t5.trunk, fingerprint=t5.fingerprint, template_digest=t5.template_digest)

    writes, reads = make_delta(t5, seed=1), make_delta(t5, seed=1, labels=("a", "b"))
    check(writes)
    check(reads)
    head = {name: tensor for name, tensor in reads.tensors.items() if name.startswith("head:")}
    with pytest.raises(DeltaError, match="surplus"):
        check(Delta.of({**writes.tensors, **head}, reads.manifest))


def test_a_full_difference_is_the_base_with_other_weights(bart: Base) -> None:
    """BART scales what it looks up in its tables, and its positions are left as they are."""
    delta = make_delta(bart, seed=1, config=FullConfig(), strength=0.05)
    other = AutoModelForSeq2SeqLM.from_pretrained(bart.info.directory).eval().to(bart.device)
    head = other.get_output_embeddings().weight.detach().clone()
    for stack in ("encoder", "decoder"):
        table = getattr(other.model, stack).embed_tokens
        table.weight = torch.nn.Parameter(table.weight.detach().clone())
    for path, methods in delta.at_sites().items():
        module = other.model.get_submodule(path)
        for name, change in methods["full"].items():
            getattr(module, name).data.add_(change)
    ids = torch.tensor([PROMPTS[1]], device=bart.device)
    ones = torch.ones_like(ids)
    with torch.no_grad():
        theirs = other.model(input_ids=ids, decoder_input_ids=ids).last_hidden_state
        with Router(bart.trunk).use(Plan.build([Actor.of(delta)])):
            prompt = bart.trunk.encode(input_ids=ids, attention_mask=ones)  # type: ignore[operator]
            ours = bart.trunk.decode(ids, prompt=prompt, prompt_mask=ones)  # type: ignore[operator]
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert torch.equal(other.get_output_embeddings().weight, head)


# ---- prompts ----------------------------------------------------------------------------------


def test_a_lone_message_is_its_content_and_a_conversation_has_roles(t5: Base) -> None:
    def text(messages: list[dict[str, str]], limit: int = 64) -> str:
        return t5.text.decode(t5.text.encode_prompt(messages, max_length=limit).input_ids)

    ask = {"role": "user", "content": "my card </s>"}
    assert text([ask]) == "my card </s>"  # written by a user, so no control token
    turns = [ask, {"role": "assistant", "content": "lost"}, {"role": "user", "content": "new"}]
    assert text(turns).split() == [
        "user:",
        "my",
        "card",
        "</s>",
        "assistant:",
        "lost",
        *["user:", "new"],
    ]
    assert text(turns, limit=6).endswith("new")  # a conversation loses its start
    assert text([{"role": "user", "content": "my " * 9 + "card"}], limit=5) == "my my my my"


def test_every_turn_of_the_assistant_is_an_example_of_its_own(t5: Base) -> None:
    messages = [
        {"role": "user", "content": "my card"},
        {"role": "assistant", "content": "lost"},
        {"role": "user", "content": "order"},
        {"role": "assistant", "content": "late"},
    ]
    task = TextGeneration()
    examples = task.encode(t5, [RECORDS[0], {"messages": messages}], labels=None, max_length=40)
    assert [example.record for example in examples] == [0, 1, 1]
    written = [t5.text.decode(example.rows[0].decoder_ids or ()) for example in examples]
    assert written == ["lost", "lost", "late"]
    assert all(example.target[0] is False and all(example.target[1:]) for example in examples)


def test_too_long_rows_are_cut_and_counted_stack_by_stack(t5: Base) -> None:
    record = {"prompt": "card " * 19 + "card", "completion": "my " * 8 + "my"}
    (example,) = TextGeneration().encode(t5, [record], labels=None, max_length=8)
    row = example.rows[0]
    assert (len(row.input_ids), len(row.decoder_ids or ())) == (8, 8)
    assert example.cut_tokens == (21 - 8) + (11 - 8)
    assert example.tokens == 16


def test_plain_text_is_refused(t5: Base) -> None:
    with pytest.raises(DataError, match="rows of plain text are for causal bases") as caught:
        TextGeneration().encode(t5, [{"text": "my card"}], labels=None, max_length=8)
    assert caught.value.code == "task_not_supported"


def test_the_template_digest_tells_the_rule_from_a_chat_template(t5: Base, bart: Base) -> None:
    assert t5.template_digest != bart.template_digest


def test_a_base_whose_logits_are_not_ours_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft_engine.bases import base as loading

    folder = write_tiny_bart(tmp_path / "bart")
    monkeypatch.setattr(
        "peft_engine.bases.vocabulary.project",
        lambda model, hidden: model.get_output_embeddings()(hidden).float(),
    )
    with pytest.raises(BaseModelError, match="post-process their logits"):
        loading.load_base(str(folder), name="x", models_dir=tmp_path)


# ---- answers ----------------------------------------------------------------------------------


def test_the_engine_answers_heads_texts_and_the_plain_base_in_one_call(t5: Base) -> None:
    heads = [make_delta(t5, seed=seed, labels=("a", "b", "c")[: 2 + seed]) for seed in (0, 1)]
    writers = [make_delta(t5, seed=seed, strength=0.1) for seed in (2, 3)]
    rows = [
        prepare_row(t5, Row(None, "where is my card", delta, options))
        for delta, options in [
            *((delta, {}) for delta in (*heads, *reversed(heads))),
            *((delta, {"max_new_tokens": 6}) for delta in (*writers, None)),
        ]
    ]
    together = Engine(t5).predict(rows)
    for row, mixed in zip(rows, together, strict=True):
        (alone,) = Engine(t5).predict([row])
        if "scores" in mixed.output:
            assert alone.output["scores"] == pytest.approx(mixed.output["scores"], abs=1e-5)
        else:
            assert alone.output == mixed.output
    assert len({answer.output["text"] for answer in together if "text" in answer.output}) == 3


@pytest.mark.parametrize(
    ("value", "options", "param"),
    [
        ("card " * 63 + "card", {}, "input"),
        ("card", {"max_new_tokens": 64}, "options.max_new_tokens"),
    ],
)
def test_each_stack_has_its_own_room(
    t5: Base, value: str, options: dict[str, int], param: str
) -> None:
    prepare_row(t5, Row(None, "card " * 62 + "card", options={"max_new_tokens": 63}))
    with pytest.raises(RowError) as caught:
        prepare_row(t5, Row(None, value, options=options))
    assert (caught.value.code, caught.value.param) == ("too_long", param)

"""Words, tokens and characters; entities against seqeval and the loss of transformers."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report, f1_score
from transformers import BertForTokenClassification

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.configs.manifest import TagHeadSpec
from peft_engine.errors import DataError, DeltaError, RowError
from peft_engine.parts.batching import collate
from peft_engine.parts.entities import evaluate_tags
from peft_engine.parts.tags import tag_words
from peft_engine.parts.words import align_spans, find_words, join_tokens, spell_word
from peft_engine.tasks.protocol import Encoded, Head
from peft_engine.tasks.token_classification import TokenClassification
from peft_engine.training import TrainingEvent
from peft_engine.training.head_start import FeatureStore, FrozenBase
from tests.engine.test_training import job, run

LABELS = ("O", "B-OWN", "I-OWN")
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # three people joined into one sign
HOSTILE = [
    "my caf\u0065\u0301 is late",  # e with a combining accent
    f"{FAMILY} my card\u200b, lost!",  # a zero-width space after a word
    "\ufeffmy \U0001f44d\U0001f3fd card",  # a byte order mark; a thumb with a skin tone
    "l'\u0627\u0644\u0628\u0637\u0627\u0642\u0629 my\u00a0card",  # right to left, hard blank
    "\u4eca\u5929 my card",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_words_cover_what_is_visible_and_cut_no_sign(text: str) -> None:
    words = find_words(text)
    assert all(0 <= start < end <= len(text) for start, end in words)
    assert all(a[1] <= b[0] for a, b in pairwise(words))
    covered = {place for start, end in words for place in range(start, end)}
    left = [c for place, c in enumerate(text) if place not in covered]
    assert all(c.isspace() or c == "\ufeff" for c in left)
    shown = [text[start:end] for start, end in words]
    assert "my" in shown
    for whole in (FAMILY, "caf\u0065\u0301", "\U0001f44d\U0001f3fd"):
        assert whole not in text or whole in shown


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40))
def test_words_of_any_text_are_in_order_and_inside(text: str) -> None:
    words = find_words(text)
    assert all(0 <= start < end <= len(text) for start, end in words)
    assert all(a[1] <= b[0] for a, b in pairwise(words))
    kept = "".join(text[start:end] for start, end in words)
    assert not [c for c in text if c.isalnum() and c not in kept]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("马云在2024年, ok", "马 云 在 2024 年 , ok"),
        ("東京タワー", "東 京 タ ワ ー"),
        ("서울에서 KBS는", "서 울 에 서 KBS 는"),
        ("\u1109\u1165\u110b\u116e\u11af", "\u1109\u1165 \u110b\u116e\u11af"),  # in parts
        ("ไปที่ ๒๕", "ไ ป ที่ ๒๕"),
        ("\U00020bb7\u91ce", "\U00020bb7 \u91ce"),
        ("नमस्ते दिल्ली", "नमस्ते दिल्ली"),
    ],
)
def test_letters_of_scripts_without_blanks_are_words(text: str, words: str) -> None:
    assert [text[start:end] for start, end in find_words(text)] == words.split()


@pytest.mark.parametrize("sign", "`^\u00b4\u00a8~$")
def test_signs_are_words_whatever_else_stands_in_the_text(sign: str) -> None:
    text = f"See {sign}Paris{sign} now"
    for more in ("", " \u2013"):
        found = [(text + more)[start:end] for start, end in find_words(text + more)]
        assert found == ["See", sign, "Paris", sign, "now", *more.split()]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (
            "in \u05ea\u05dc \u05d0\u05d1\u05d9\u05d1\u200f, here",
            "\u05ea\u05dc \u05d0\u05d1\u05d9\u05d1",
        ),
        ("in Berlin\u200b and", "Berlin"),
        ("in Berlin\u200b and", "Berlin\u200b"),
        ("with Zoe\u0308 now", "Zoe"),
    ],
)
def test_names_may_end_before_the_marks_of_their_last_word(text: str, name: str) -> None:
    start = text.index(name)
    entity = {"start": start, "end": start + len(name), "label": "X"}
    tags, unreachable, lost = tag_words(text, find_words(text), [entity])
    assert (len(tags), unreachable, lost) == (len(find_words(text)), [], [])
    assert [tag for tag in tags if tag != "O"] == ["B-X", "I-X"][: len(name.split())]


def test_a_job_tells_of_entities_that_no_words_can_name(bert: Base) -> None:
    text, events = "my credit card", list[TrainingEvent]()
    good, bad = ({"start": 3, "end": end, "label": "X"} for end in (9, 8))
    rows = [{"text": text, "entities": [own]} for own in (good, bad, good)]
    unseen = {"text": text, "entities": [{"start": 0, "end": 2, "label": "Y"}]}
    splits = {"train": rows, "validation": [*rows[:1], unseen], "test": []}
    run(bert, job("token-classification", max_steps=1), splits, events=events)
    found = [e.data["message"] for e in events if e.data.get("level") == "warning"]
    told = [message for message in found if "entities" in message]
    assert len(told) == 1
    assert told[0].startswith("1 of 3 entities of train begin or end inside a word")


def test_spans_meet_their_tokens_and_zero_width_ones_only_in_need() -> None:
    offsets = [(0, 0), (0, 3), (3, 5), (6, 6), (6, 9), (10, 10), (0, 0)]
    usable = [False, True, True, True, True, True, False]
    spans = [(0, 5), (6, 9), (10, 11), (12, 14)]
    assert align_spans(spans, offsets, usable) == [(1, 2), (4, 4), (5, 5), None]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_offsets_come_back_on_hostile_text(
    family: str, text: str, request: pytest.FixtureRequest
) -> None:
    """A head that is sure of every word names exactly the words, wherever the tokens are."""
    base: Base = request.getfixturevalue(family)
    task = TokenClassification()
    (example,) = task.encode_input(base, text, max_length=120)
    words = [text[start:end] for start, end in find_words(text)]
    assert len(example.layout.seen) == len(words)  # one prediction a word
    logits = torch.tensor([[0.0, 9.0, 0.0]]).expand(len(words), 3)
    head = Head(TagHeadSpec(token="first", scale=1.0), {}, LABELS)
    entities = task.answer(head, [example], [logits])["entities"]
    assert [e["word"] for e in entities] == words
    assert [text[e["start"] : e["end"]] for e in entities] == words
    assert all(e["score"] > 0.99 for e in entities)


def test_tokens_give_tags_too_and_offsets_in_the_joined_text(bert: Base) -> None:
    task = TokenClassification()
    tokens = ["my", "card", "new-ish", "late"]
    (example,) = task.encode_input(bert, {"tokens": tokens}, max_length=40)
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9], [9, 0, 0]])
    found = task.answer(
        Head(TagHeadSpec(token="first", scale=1.0), {}, LABELS), [example], [logits]
    )
    assert found["tags"] == ["O", "B-OWN", "I-OWN", "O"]
    (entity,) = found["entities"]
    assert (entity["word"], entity["start"], entity["end"]) == ("card new-ish", 3, 15)
    assert join_tokens(tokens)[0][3:15] == "card new-ish"


def test_entities_become_tags_and_what_no_word_can_name_is_counted_as_missed() -> None:
    text = "my credit card, unlost"
    spans = find_words(text)
    entities = [
        {"start": 3, "end": 14, "label": "OWN"},
        {"start": 18, "end": 22, "label": "OWN"},  # inside a word
    ]
    tags, unreachable, lost = tag_words(text, spans, entities)
    assert tags == ["O", "B-OWN", "I-OWN", "O", "O"]
    assert (unreachable, lost) == (["OWN"], [4])
    found = evaluate_tags([tags], [tags], [unreachable])
    assert found.metrics["precision"] == 1.0
    assert found.metrics["recall"] == 0.5
    assert found.rows["recall"].value == 0.5


def test_metrics_are_seqevals() -> None:
    generator = torch.Generator().manual_seed(0)
    names = [*LABELS, "B-X", "I-X"]

    def rows() -> list[list[str]]:
        drawn = torch.randint(0, 5, (30, 8), generator=generator).tolist()
        return [[names[i] for i in row] for row in drawn]

    wanted, given = rows(), rows()
    found = evaluate_tags(given, wanted, [()] * 30)
    assert found.metrics["f1"] == f1_score(wanted, given)
    for name, own in found.rows.items():
        assert own.value == pytest.approx(found.metrics[name]), name
    report = classification_report(wanted, given, output_dict=True)
    assert [row["label"] for row in found.details["classes"]] == sorted(
        ("OWN", "X"), key=lambda kind: -report[kind]["support"]
    )
    for row in found.details["classes"]:
        own = report[row["label"]]
        assert row["support"] == own["support"]
        scores = [row["precision"], row["recall"], row["f1"]]
        expected = [own["precision"], own["recall"], own["f1-score"]]
        assert scores == pytest.approx(expected, abs=1e-6)


def test_confusions_name_wrong_types_missed_and_invented_entities() -> None:
    wanted = [["B-A", "O", "B-A", "I-A"], ["O", "B-B", "O", "O"]]
    given = [["B-B", "O", "B-A", "O"], ["O", "B-B", "O", "O"]]
    found = evaluate_tags(given, wanted, [(), ()]).details["confusions"]
    pairs = {(own["label"], own["predicted"]): own["count"] for own in found}
    # the longer one is missed, the shorter one in its place is invented
    assert pairs == {("A", "B"): 1, ("A", "O"): 1, ("O", "A"): 1}


def test_what_is_cut_counts_as_missed(bert: Base) -> None:
    task = TokenClassification()
    record = {"tokens": ["my", "card"] * 10, "tags": ["O", "B-OWN"] * 10}
    (example,) = task.encode(bert, [record], labels=LABELS, max_length=12)
    assert example.cut_tokens == 10
    assert len(example.layout.seen) == 10
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0]]).repeat(5, 1)
    head = Head(TagHeadSpec(token="first", scale=1.0), {}, LABELS)
    found = task.score(head, [example], [record], [logits])
    assert (found.metrics["precision"], found.metrics["recall"]) == (1.0, 0.5)
    assert found.metrics["accuracy"] == 0.75


def test_the_loss_is_that_of_transformers(bert: Base) -> None:
    config = bert.model.config
    config.num_labels = 3
    theirs = BertForTokenClassification(config).eval().to(bert.device)
    theirs.bert.load_state_dict(bert.model.state_dict(), strict=False)
    records = [
        {"tokens": ["my", "new-late", "card"], "tags": ["O", "B-OWN", "I-OWN"]},
        {"tokens": ["where", "is"], "tags": ["O", "O"]},
    ]
    task = TokenClassification()
    examples = task.encode(bert, records, labels=LABELS, max_length=20)
    batch = collate(examples, pad_id=0, device=bert.device)
    labels = torch.full_like(batch.input_ids, -100)
    for row, example in enumerate(examples):
        for place, word in zip(example.layout.places, example.layout.seen, strict=True):
            labels[row, place] = example.target.numbers[word]
    assert labels[0].tolist() == [-100, 0, 1, -100, -100, 2, -100]
    weights = {
        name: value / 0.25 if name == "weight" else value
        for name, value in theirs.classifier.named_parameters()
    }
    head = Head(TagHeadSpec(token="first", scale=0.25), weights, LABELS)
    with torch.no_grad():
        loss = task.loss(bert, head, hidden_states(bert, batch), batch, label_smoothing=0.0)
        expected = theirs(
            input_ids=batch.input_ids,
            attention_mask=batch.mask,
            token_type_ids=batch.type_ids,
            labels=labels,
        ).loss
    assert loss.count == 5
    assert float(loss.total / loss.count) == pytest.approx(float(expected), rel=1e-5)


def test_labels_are_both_tags_of_every_type() -> None:
    task = TokenClassification()
    assert task.find_labels([{"tokens": ["a"], "tags": ["B-OWN"]}]) == LABELS
    with pytest.raises(DataError, match="no training row has an entity"):
        task.find_labels([{"tokens": ["a"], "tags": ["O"]}])


def test_types_that_training_does_not_know_count_as_missed(bert: Base) -> None:
    task = TokenClassification()
    records = [
        {"text": "my card", "entities": [{"start": 3, "end": 7, "label": "LOC"}]},
        {"tokens": ["my", "card", "late"], "tags": ["B-OWN", "B-LOC", "I-LOC"]},
    ]
    examples = task.encode(bert, records, labels=LABELS, max_length=20)
    assert [example.target.numbers for example in examples] == [(0, 0), (1, 0, 0)]
    assert [example.target.unreachable for example in examples] == [("LOC",), ("LOC",)]
    logits = [torch.tensor([[9.0, 0, 0]] * 2), torch.tensor([[0.0, 9, 0], [9, 0, 0], [9, 0, 0]])]
    head = Head(TagHeadSpec(token="first", scale=1.0), {}, LABELS)
    found = task.score(head, examples, records, logits).metrics
    assert (found["precision"], found["recall"]) == (1.0, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    "record",
    [
        {"tokens": ["my", "card", "late", "now"], "tags": ["O", "B-LOC", "I-LOC", "O"]},
        {"text": "my card late now", "entities": [{"start": 3, "end": 10, "label": "OWN"}]},
    ],
    ids=["a type that training does not know", "an end inside a word"],
)
def test_words_of_entities_that_no_answer_could_name_are_never_right(
    record: dict[str, Any], bert: Base
) -> None:
    task = TokenClassification()
    examples = task.encode(bert, [record], labels=LABELS, max_length=20)
    head = Head(TagHeadSpec(token="first", scale=1.0), {}, LABELS)
    found = task.score(head, examples, [record], [torch.tensor([[9.0, 0, 0]] * 4)])
    assert found.metrics["accuracy"] == found.rows["accuracy"].value == 0.5
    frozen, split = FrozenBase(bert, FeatureStore(), lambda: None), Encoded([record], examples)
    (baseline,) = task.baselines(frozen, head, split, split)
    assert baseline.evaluation.metrics["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("value", "code", "param"),
    [
        (7, "bad_input", "input"),
        ("", "bad_input", "input.text"),
        ({"text": 3}, "bad_input", "input.text"),
        ({"tokens": []}, "bad_input", "input.tokens"),
        ({"tokens": "card"}, "bad_input", "input.tokens"),
        ({"tokens": ["a", 3]}, "bad_input", "input.tokens"),
        ("card " * 100, "too_long", "input"),
    ],
)
def test_inputs_of_another_shape_are_refused(
    bert: Base, value: object, code: str, param: str
) -> None:
    with pytest.raises(RowError) as caught:
        TokenClassification().encode_input(bert, value, max_length=30)
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize(
    ("word", "marks"),
    [
        ("card", {0}),
        ("Bank", {1}),
        ("ACME", {2}),
        ("U.S.", {2}),
        ("A", {3}),
        ("McDonald", {4}),
        ("iPhone", {4}),
        ("1999", {5, 6}),
        ("B2B", {2, 5}),
        ("--", {7}),
        ("\u4eca\u5929", set()),
    ],
)
def test_words_are_told_apart_by_how_they_are_written(word: str, marks: set[int]) -> None:
    assert {place for place, mark in enumerate(spell_word(word)) if mark} == marks


def test_the_head_sees_how_a_word_and_its_neighbours_are_written(bert: Base) -> None:
    task = TokenClassification()
    records = [{"tokens": ["MY", "Card", "late"], "tags": ["O", "B-OWN", "O"]}]
    records += [{"tokens": ["my", "card"], "tags": ["O", "O"]}]
    examples = task.encode(bert, records, labels=LABELS, max_length=20)
    batch = collate(examples, pad_id=0, device=bert.device)
    with torch.no_grad():
        hidden = hidden_states(bert, batch)
    plain = task.features(TagHeadSpec(token="first", scale=0.5), hidden, batch)
    spec = TagHeadSpec(token="first", scale=0.5, spelling=True)
    found = task.features(spec, hidden, batch)
    assert torch.equal(found[:, : plain.shape[1]], plain)
    nothing, small, first, large = ([False] * 8, *(spell_word(w) for w in ("my", "Card", "MY")))
    wanted = [  # the word itself, before, behind; rows do not see one another
        [*large, *nothing, *first],
        [*first, *large, *small],
        [*small, *first, *nothing],
        [*small, *nothing, *small],
        [*small, *small, *nothing],
    ]
    assert torch.equal(found[:, plain.shape[1] :].cpu(), 0.5 * torch.tensor(wanted).float())


def test_the_head_sees_which_word_it_is_whatever_its_case(bert: Base) -> None:
    task = TokenClassification()
    records = [{"tokens": ["my", "Card"]}, {"tokens": ["card", "late"]}]
    examples = task.encode(bert, records, labels=None, max_length=20)
    batch = collate(examples, pad_id=0, device=bert.device)
    with torch.no_grad():
        hidden = hidden_states(bert, batch)
    plain = TagHeadSpec(token="first", scale=0.5)
    spec = TagHeadSpec(token="first", scale=0.5, words=4096)
    features, found = (task.features(own, hidden, batch) for own in (plain, spec))
    assert torch.equal(found[:, :-1], features)
    my, card, again, late = found[:, -1].long().tolist()
    assert card == again
    assert len({my, card, late}) == 3
    device = bert.device
    weights = {
        "weight": torch.randn(3, features.shape[1], device=device),
        "bias": torch.randn(3, device=device),
    }
    table = torch.randn(3, 4096, device=device)
    without = task.logits(Head(plain, weights, LABELS), features)
    given = task.logits(Head(spec, {**weights, "words": table}, LABELS), found)
    assert torch.allclose(given - without, table[:, [my, card, card, late]].T, atol=1e-6)


def _fit_first(base: Base, records: list[dict[str, list[str]]]) -> tuple[Head, float]:
    """The first head of records, and its F1 on them."""
    task = TokenClassification()
    examples = task.encode(base, records, labels=LABELS, max_length=20)
    head = FrozenBase(base, FeatureStore(), lambda: None).first_head(task, examples, labels=LABELS)
    batch = collate(examples, pad_id=0, device=base.device)
    with torch.no_grad():
        features = task.features(head.spec, hidden_states(base, batch), batch).cpu()
    counts = [task.count_features(example) for example in examples]
    given = task.logits(head, features).split(counts)  # type: ignore[no-untyped-call]
    return head, task.score(head, examples, records, given).metrics["f1"]


def test_a_frozen_base_learns_words_by_heart_that_look_alike_to_it(bert: Base) -> None:
    """Words that the tokenizer does not know have one token, and still tags of their own."""
    records = [
        {"tokens": [f"unknown{i}", "late"], "tags": ["B-OWN" if i % 2 else "O", "O"]}
        for i in [*range(8)] * 4
    ]
    head, f1 = _fit_first(bert, records)
    assert isinstance(head.spec, TagHeadSpec)
    assert head.tensors["words"].shape == (3, head.spec.words)
    assert head.spec.words == 128  # 9 words, 8 rows each, to the next power of two
    assert f1 == 1


def test_no_words_are_learned_by_heart_where_all_names_are_new(bert: Base) -> None:
    records = [
        {"tokens": [f"unknown{i}", "late"], "tags": ["B-OWN" if i % 2 else "O", "O"]}
        for i in range(16)
    ]
    head, _ = _fit_first(bert, records)
    assert isinstance(head.spec, TagHeadSpec)
    assert head.spec.words == 0
    assert "words" not in head.tensors


def test_one_row_is_too_few_to_choose_by(bert: Base) -> None:
    head, _ = _fit_first(bert, [{"tokens": ["my", "card"], "tags": ["O", "B-OWN"]}])
    assert sorted(head.tensors) == ["bias", "weight"]


def test_words_learned_by_heart_stay_when_a_type_is_added(bert: Base) -> None:
    task, labels = TokenClassification(), (*LABELS, "B-NEW", "I-NEW")
    records = [
        {"tokens": [f"unknown{i}", "late"], "tags": ["B-OWN" if i % 2 else "O", "O"]}
        for i in [*range(8)] * 4
    ]
    head, _ = _fit_first(bert, records)
    new = [{"tokens": ["card", "late"], "tags": ["B-NEW", "O"]}] * 4
    examples = task.encode(bert, records + new, labels=labels, max_length=20)
    tuned = FrozenBase(bert, FeatureStore(), lambda: None)
    grown = task.extend_head(tuned, head, examples, labels=labels)
    assert grown.labels == labels
    old = {n: tensor for n, tensor in head.tensors.items() if n != "transitions"}
    assert all(torch.equal(grown.tensors[n][:3], tensor) for n, tensor in old.items())
    assert grown.tensors["words"][3:].eq(0).all()
    assert {len(grown.tensors[n]) for n in old} == {5}
    assert torch.equal(grown.tensors["transitions"][:4, :3], head.tensors["transitions"])
    assert grown.tensors["transitions"].shape == (6, 5)
    logits = task.logits(grown, tuned.features(task, grown.spec, examples))
    tags = [labels[number] for number in logits.argmax(-1).tolist()]
    assert tags == [tag for record in records + new for tag in record["tags"]]


def test_answers_and_metrics_know_what_o_counts_and_probabilities_do_not(bert: Base) -> None:
    task = TokenClassification()
    records = [{"tokens": ["my", "card"], "tags": ["O", "B-OWN"]}]
    examples = task.encode(bert, records, labels=LABELS, max_length=20)
    logits = torch.tensor([[2.0, 1.5, 0.0], [2.0, 1.5, 0.0]])
    strict, lenient = (
        Head(TagHeadSpec(token="first", scale=1.0, outside_penalty=penalty), {}, LABELS)
        for penalty in (0.0, 0.7)
    )
    assert task.answer(strict, examples, [logits])["tags"] == ["O", "O"]
    answer = task.answer(lenient, examples, [logits])
    assert answer["tags"] == ["B-OWN", "B-OWN"]
    share = float(logits[0].softmax(-1)[1])
    assert [entity["score"] for entity in answer["entities"]] == pytest.approx([share, share])
    before, after = (task.score(h, examples, records, [logits]).metrics for h in (strict, lenient))
    assert (before["recall"], after["recall"], after["precision"]) == (0, 1, 0.5)
    assert all(after[name] == before[name] for name in ("loss", "ece"))


def test_a_job_with_class_weights_decides_by_what_is_likelier() -> None:
    """Weights raise the seldom tags already."""
    head = Head(TagHeadSpec(token="first", scale=1.0, outside_penalty=0.7), {}, LABELS)
    plain = head.decide_by_likeliest()
    assert plain == Head(TagHeadSpec(token="first", scale=1.0), {}, LABELS)
    assert (head.explain_decisions() or "").startswith("O counts 0.7 less")
    assert plain.explain_decisions() is None


def test_a_penalty_on_a_tag_that_the_head_does_not_have_is_a_damaged_delta(bert: Base) -> None:
    task = TokenClassification()
    (example,) = task.encode_input(bert, {"tokens": ["my"]}, max_length=20)
    spec = TagHeadSpec(token="first", scale=1.0, outside_penalty=0.7)
    with pytest.raises(DeltaError, match="no such tag"):
        task.answer(Head(spec, {}, ("B-OWN", "I-OWN")), [example], [torch.zeros(1, 2)])


def test_what_o_counts_stays_when_a_type_is_added(bert: Base) -> None:
    task, labels = TokenClassification(), (*LABELS, "B-NEW", "I-NEW")
    records = [{"tokens": ["card", "late"], "tags": ["B-OWN", "O"]}] * 4
    head, _ = _fit_first(bert, records)
    spec = head.spec.model_copy(update={"outside_penalty": 0.7})
    new = [{"tokens": ["card", "late"], "tags": ["B-NEW", "O"]}] * 4
    examples = task.encode(bert, records + new, labels=labels, max_length=20)
    tuned = FrozenBase(bert, FeatureStore(), lambda: None)
    grown = task.extend_head(tuned, Head(spec, head.tensors, LABELS), examples, labels=labels)
    assert grown.spec == spec

"""Windows, spans and characters; SQuAD's metrics; the loss of transformers."""

from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from transformers import BertForQuestionAnswering

from peft_engine.bases.base import Base, load_base
from peft_engine.bases.forward import hidden_states
from peft_engine.configs.manifest import SpanHeadSpec
from peft_engine.errors import RowError
from peft_engine.parts.batching import collate
from peft_engine.parts.squad import normalize_answer, score_answer
from peft_engine.tasks.protocol import Head
from peft_engine.tasks.question_answering import QuestionAnswering, nearest_sentence
from tests.engine.conftest import head_on
from tests.tiny_bases import write_tiny_bert

SURE = Head(SpanHeadSpec(scale=1.0, abstains=True), {}, ())


@pytest.mark.parametrize(
    ("given", "wanted", "exact", "f1"),
    [
        ("The Card!", ["card"], 1, 1),
        ("my lost card", ["card"], 0, 0.5),
        ("card", ["order", "a late card"], 0, 2 / 3),
        ("", [], 1, 1),
        ("card", [], 0, 0),
        ("", ["card"], 0, 0),
        ("the", ["a"], 1, 1),  # articles alone: both are empty, which SQuAD takes as equal
        ("card card", ["card order"], 0, 0.5),
        ("", ["the", "the card"], 0, 0),  # a right answer that comes to nothing does not count
        ("A", ["A", "an order"], 0, 0),
        ("", ["--"], 1, 1),  # unless there is no other
    ],
)
def test_metrics_are_squads(given: str, wanted: list[str], exact: float, f1: float) -> None:
    assert score_answer(given, wanted) == pytest.approx((exact, f1))


def test_normalising_takes_out_what_squad_takes_out() -> None:
    assert normalize_answer("  The cat's  an-other\tA.B. ") == "cats another ab"


@pytest.mark.parametrize("max_length", [16, 24, 40])
@pytest.mark.parametrize("at", range(0, 60, 7))
def test_windows_cover_every_answer_and_its_characters(
    bert: Base, max_length: int, at: int
) -> None:
    words = ["late", "\U0001f622", "caf\u0065\u0301", "order", "new"] * 12
    words[at : at + 2] = ["lost", "card"]
    context = "  ".join(words)
    start = context.index("lost  card")
    record = {
        "question": "where is my",
        "context": context,
        "answers": [{"text": "lost  card", "start": start}],
    }
    task = QuestionAnswering()
    examples = task.encode(bert, [record], labels=None, max_length=max_length)
    assert {example.record for example in examples} == {0}
    assert all(len(example.input_ids) <= max_length for example in examples)
    seen = {offset for example in examples for offset in example.layout.offsets}
    covered = {place for low, high in seen for place in range(low, high)}
    assert {p for p, c in enumerate(context) if not c.isspace() and c != "\u0301"} <= covered
    holding = [example for example in examples if example.target != (0, 0)]
    assert holding
    for example in holding:
        logits = torch.zeros(example.tokens, 2)
        logits[example.target[0], 0] = logits[example.target[1], 1] = 20
        others = [torch.zeros(e.tokens, 2) for e in examples if e is not example]
        rest = [e for e in examples if e is not example]
        found = task.answer(SURE, [*rest, example], [*others, logits])
        assert found["answer"] == "lost  card"
        assert (found["start"], found["end"]) == (start, start + 10)
        assert 0.9 < found["score"] <= 1


@pytest.fixture(scope="module")
def stripping(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A BERT whose tokenizer drops accents and invisible characters, as the published ones do."""
    folder = write_tiny_bert(tmp_path_factory.mktemp("stripping"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    return load_base(str(folder), name="stripping", models_dir=folder / "models", device="cpu")


@pytest.mark.parametrize("family", ["stripping", "bert", "t5"])
@pytest.mark.parametrize(
    ("context", "marked", "answer"),
    [
        ("met Zoe\u0308 there", "Zoe\u0308", "Zoe\u0308"),
        ("met Zoe\u0308", "Zoe\u0308", "Zoe\u0308"),
        ("met हिन्दी", "हिन्दी", "हिन्दी"),
        # what only lays a text out is no part of an answer
        ("\ufeffmy card", "\ufeffmy", "my"),
        ("\ufeffmy card", "my", "my"),
        ("my card\u200f", "card\u200f", "card"),
        ("my card\u200b", "card", "card"),
    ],
)
def test_answers_have_their_marks(base: Base, context: str, marked: str, answer: str) -> None:
    task = QuestionAnswering()
    answers = [{"text": marked, "start": context.index(marked)}]
    record = {"question": "who", "context": context, "answers": answers}
    (example,) = task.encode(base, [record], labels=None, max_length=60)
    assert example.target != (0, 0)
    logits = torch.zeros(example.tokens, 2)
    logits[example.target[0], 0] = logits[example.target[1], 1] = 20
    assert task.answer(SURE, [example], [logits])["answer"] == answer
    assert task.score(SURE, [example], [record], [logits]).metrics["exact_match"] == 1


def test_no_answer_is_an_answer_where_training_knew_such_questions(bert: Base) -> None:
    task = QuestionAnswering()
    (example,) = task.encode_input(bert, {"question": "where", "context": "my card"}, max_length=20)
    logits = torch.zeros(example.tokens, 2)
    logits[0] = 9
    found = task.answer(SURE, [example], [logits])
    assert (found["answer"], found["start"], found["end"]) == ("", None, None)
    assert found["score"] > 0.99
    never = Head(SpanHeadSpec(scale=1.0, abstains=False), {}, ())
    assert task.answer(never, [example], [logits])["answer"] != ""


def test_ends_never_lie_before_starts(bert: Base) -> None:
    task = QuestionAnswering()
    (example,) = task.encode_input(
        bert, {"question": "where", "context": "my card is late"}, max_length=20
    )
    logits = torch.zeros(example.tokens, 2)
    first = example.layout.first
    logits[first + 3, 0] = logits[first, 1] = 9
    found = task.answer(SURE, [example], [logits])
    assert found["start"] < found["end"]


def test_the_loss_is_that_of_transformers(bert: Base) -> None:
    theirs = BertForQuestionAnswering(bert.model.config).eval()
    theirs.qa_outputs = torch.nn.Linear(bert.hidden_size, 2)
    theirs.bert.load_state_dict(bert.model.state_dict(), strict=False)
    theirs.to(bert.device)
    records = [
        {
            "question": "where is",
            "context": "my card late",
            "answers": [{"text": "card", "start": 3}],
        },
        {"question": "tell me", "context": "about money please", "answers": []},
    ]
    task = QuestionAnswering()
    examples = task.encode(bert, records, labels=None, max_length=20)
    batch = collate(examples, pad_id=0, device=bert.device)
    assert bool(batch.mask.all())
    head = Head(
        SpanHeadSpec(scale=1.0, abstains=True), dict(theirs.qa_outputs.named_parameters()), ()
    )
    targets = torch.tensor(batch.targets, device=bert.device)
    with torch.no_grad():
        loss = task.loss(bert, head, hidden_states(bert, batch), batch, label_smoothing=0.0)
        expected = theirs(
            input_ids=batch.input_ids,
            attention_mask=batch.mask,
            token_type_ids=batch.type_ids,
            start_positions=targets[:, 0],
            end_positions=targets[:, 1],
        ).loss
    assert float(loss.total / loss.count) == pytest.approx(float(expected), rel=1e-5)


def test_padding_takes_no_part_in_the_loss(bert: Base) -> None:
    task = QuestionAnswering()
    records = [
        {"question": "where", "context": "my card", "answers": [{"text": "card", "start": 3}]},
        {"question": "where", "context": "my card " * 5, "answers": []},
    ]
    examples = task.encode(bert, records, labels=None, max_length=40)
    weights = {"weight": torch.randn(2, 32), "bias": torch.zeros(2)}
    head = head_on(bert, Head(SpanHeadSpec(scale=0.2, abstains=True), weights, ()))

    def total(own: list[object]) -> float:
        batch = collate(own, pad_id=0, device=bert.device)  # type: ignore[arg-type]
        with torch.no_grad():
            hidden = hidden_states(bert, batch)
            return float(task.loss(bert, head, hidden, batch, label_smoothing=0.0).total)

    assert total(list(examples)) == pytest.approx(sum(total([e]) for e in examples), rel=1e-4)


def test_the_sentence_with_most_words_of_the_question() -> None:
    context = "My order is late. The card was lost in Rome! Tell me more?"
    assert nearest_sentence("Where was the card lost?", context) == "The card was lost in Rome!"
    assert nearest_sentence("x", "...") == "..."


@pytest.mark.parametrize(
    ("value", "code", "param"),
    [
        ("text", "bad_input", "input"),
        ({"question": "a"}, "bad_input", "input.context"),
        ({"question": "", "context": "b"}, "bad_input", "input.question"),
        ({"question": "card " * 40, "context": "b"}, "too_long", "input.question"),
        ({"question": "card", "context": "b " * 4000}, "too_long", "input.context"),
    ],
)
def test_inputs_of_another_shape_are_refused(
    bert: Base, value: object, code: str, param: str
) -> None:
    with pytest.raises(RowError) as caught:
        QuestionAnswering().encode_input(bert, value, max_length=24)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_where_all_tokens_are_blank_there_is_no_answer(bert: Base) -> None:
    """A tokenizer may drop the only visible character of a context."""
    task = QuestionAnswering()
    (example,) = task.encode_input(bert, {"question": "where", "context": "card"}, max_length=20)
    blank = replace(example.layout, context=" \u200b", offsets=((0, 1),))
    never = Head(SpanHeadSpec(scale=1.0, abstains=False), {}, ())
    logits = torch.ones(example.tokens, 2)
    found = task.answer(never, [replace(example, layout=blank)], [logits])
    assert found == {"answer": "", "start": None, "end": None, "score": 1.0}


def test_no_answer_is_blank(t5: Base) -> None:
    """Some tokenizers have tokens of blanks alone."""
    task, context = QuestionAnswering(), "my zebra card"
    (example,) = task.encode_input(t5, {"question": "where", "context": context}, max_length=48)
    texts = [context[low:high] for low, high in example.layout.offsets]
    logits = torch.zeros(example.tokens, 2)
    logits[example.layout.first + texts.index(" ")] = 9
    never = Head(SpanHeadSpec(scale=1.0, abstains=False), {}, ())
    found = task.answer(never, [example], [logits])
    assert found["answer"].strip()
    assert found["answer"] == context[found["start"] : found["end"]]

"""Choices: any number of them, each with its own rows, against transformers."""

import pytest
import torch
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import BertForMultipleChoice

from peft_engine.bases.base import Base
from peft_engine.bases.forward import hidden_states
from peft_engine.configs.manifest import ChoiceHeadSpec
from peft_engine.errors import RowError
from peft_engine.parts.batching import batches_by_length, collate, epoch_batches
from peft_engine.parts.choice_fits import fit_choices
from peft_engine.parts.fits import fit_listwise
from peft_engine.tasks.multiple_choice import MultipleChoice
from peft_engine.tasks.protocol import Encoded, Head
from peft_engine.training.head_start import FeatureStore, FrozenBase

RECORDS = [
    {"question": "where is my card", "choices": ["lost", "late order", "new"], "answer": 2},
    {"question": "about money", "choices": ["stolen", "refund"], "answer": 0},
]


def test_the_loss_is_that_of_transformers(bert: Base) -> None:
    theirs = BertForMultipleChoice(bert.model.config).eval().to(bert.device)
    theirs.bert.load_state_dict(bert.model.state_dict())
    task = MultipleChoice()
    examples = task.encode(bert, RECORDS[:1], labels=None, max_length=20)
    batch = collate(examples, pad_id=0, device=bert.device)
    assert (batch.rows, len(batch.targets)) == (3, 1)

    class UnitMean(torch.nn.Module):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            weights = batch.mask.unsqueeze(-1).float()
            pooled = (hidden * weights).sum(1) / weights.sum(1)
            return torch.nn.functional.normalize(pooled, dim=-1)

    theirs.bert.pooler = UnitMean()
    spec = ChoiceHeadSpec(pooling="mean", reading="joined")
    head = Head(spec, {"weight": theirs.classifier.weight}, ())
    assert batch.type_ids is not None
    with torch.no_grad():
        loss = task.loss(bert, head, hidden_states(bert, batch), batch, label_smoothing=0.0)
        expected = theirs(
            input_ids=batch.input_ids.unsqueeze(0),
            attention_mask=batch.mask.unsqueeze(0),
            token_type_ids=batch.type_ids.unsqueeze(0),
            labels=torch.tensor([2], device=bert.device),
        ).loss
    assert loss.count == 1
    assert float(loss.total) == pytest.approx(float(expected), rel=1e-5)


def test_a_sentence_encoder_reads_the_question_once_and_starts_at_the_cosine(
    sentence_bert: Base,
) -> None:
    task = MultipleChoice()
    examples = task.encode(sentence_bert, RECORDS, labels=None, max_length=20)
    assert [len(example.rows) for example in examples] == [4, 3]
    frozen = FrozenBase(sentence_bert, FeatureStore(), lambda: None)
    head = task.first_head(frozen, examples, labels=None)
    split = Encoded(RECORDS, examples)
    before, place = task.baselines(frozen, head, split, split)

    def feature(text: str) -> torch.Tensor:
        found = sentence_bert.text.encode_inputs([text], max_length=20)[0]
        ids = torch.tensor([found.input_ids], device=sentence_bert.device)
        with torch.no_grad():
            return sentence_bert.trunk(input_ids=ids).last_hidden_state.mean(1)[0]

    nearest = []
    for record in RECORDS:
        question = feature(str(record["question"]))
        cosines = [float(cosine_similarity(question, feature(c), dim=0)) for c in record["choices"]]
        nearest.append(cosines.index(max(cosines)) == record["answer"])
    assert before.evaluation.metrics["accuracy"] == sum(nearest) / 2
    assert place.evaluation.metrics["accuracy"] == 0.5  # both places are as usual: the first


def test_the_listwise_fit_is_a_minimum_and_starts_where_it_is_told() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(40, 3, generator=generator)
    sizes, targets = [3, 4, 1, 2] * 4, torch.tensor([[0], [1], [0], [1]] * 4)

    def objective(weight: torch.Tensor, start: torch.Tensor) -> float:
        total = sum(
            float(cross_entropy(own @ weight[0], target[0]))
            for own, target in zip(features.split(sizes), targets, strict=True)
        )
        return total / 16 + float((weight - start).square().sum()) / (2 * 10 * 16)

    for start in (torch.zeros(1, 3), torch.tensor([[0.0, 0, 5]])):
        found = fit_listwise(features, sizes, targets, start=start)["weight"]
        best = objective(found, start)
        assert best <= objective(start, start)
        for _ in range(20):
            near = found + 0.05 * torch.randn(1, 3, generator=generator)
            assert objective(near, start) >= best - 1e-6


def test_the_first_head_leaves_the_cosine_only_where_questions_left_out_gain() -> None:
    generator = torch.Generator().manual_seed(0)
    questions, choices, width = 120, 4, 60
    sizes = [choices] * questions
    noise = torch.randn(questions * choices, width, generator=generator)
    right = torch.randint(choices, (questions,), generator=generator)
    places = torch.arange(questions) * choices + right
    start = torch.zeros(1, width)
    start[0, -1] = 20.0

    noise[places, -1] += 2.0  # the cosine alone tells; twenty is too sure of itself
    weight = fit_choices(noise, sizes, right.tolist(), start=start)
    assert torch.equal(weight[:, :-1], torch.zeros(1, width - 1))
    assert 0.5 < float(weight[0, -1]) < 10

    noise[places, 0] += 4.0  # now another feature tells more
    weight = fit_choices(noise, sizes, right.tolist(), start=start)
    scores = (noise @ weight.T).view(questions, choices)
    assert float(weight[0, 0]) > 0.5
    assert (scores.argmax(1) == right).all()

    weight = fit_choices(noise[:choices], [choices], right[:1].tolist(), start=start)
    assert torch.isfinite(weight).all()  # a single question: nothing can be left out


def test_batches_never_split_a_question(bert: Base) -> None:
    records = [
        {"question": "card", "choices": ["lost"] * (2 + i % 5), "answer": 0} for i in range(23)
    ]
    examples = MultipleChoice().encode(bert, records, labels=None, max_length=20)
    for batches in (
        batches_by_length(examples, batch_size=8),
        epoch_batches(examples, batch_size=4, seed=0, epoch=0),
    ):
        assert sorted(i for batch in batches for i in batch) == list(range(23))
    for batch in batches_by_length(examples, batch_size=8):
        assert sum(len(examples[i].rows) for i in batch) <= 8
    assert len(batches_by_length(examples, batch_size=1)) == 23
    whole = collate(examples, pad_id=0, device=bert.device)
    part = whole.part(3, 7)
    again = collate(examples[3:7], pad_id=0, device=bert.device)
    assert part.tokens == again.tokens
    assert torch.equal(part.input_ids[:, : again.input_ids.shape[1]], again.input_ids)


@pytest.mark.parametrize(
    ("value", "code", "param"),
    [
        ("text", "bad_input", "input"),
        ({"question": " ", "choices": ["a", "b"]}, "bad_input", "input.question"),
        ({"question": "a", "choices": ["a"]}, "bad_input", "input.choices"),
        ({"question": "a", "choices": "ab"}, "bad_input", "input.choices"),
        ({"question": "a", "choices": ["a", 1]}, "bad_input", "input.choices.1"),
        ({"question": "a", "choices": ["card " * 40, "b"]}, "too_long", "input"),
    ],
)
def test_inputs_of_another_shape_are_refused(
    bert: Base, value: object, code: str, param: str
) -> None:
    with pytest.raises(RowError) as caught:
        MultipleChoice().encode_input(bert, value, max_length=30)
    assert (caught.value.code, caught.value.param) == (code, param)

"""The comparison of methods: nothing runs twice, recipes are not mixed, promises are judged."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.quality.grid import METHODS, SETS
from benchmarks.quality.jobs import QualityJob
from benchmarks.quality.journal import Journal
from benchmarks.quality.overview import distances, overview
from benchmarks.quality.rows import take_rows
from benchmarks.quality.summary import Cell, is_current, judge, summarise
from benchmarks.record import RESULTS
from peft_engine.training.recipes import FEW_ROW_RECIPES, RECIPES

CELL = Cell(
    set="banking77_intent",
    method="lora",
    metric="accuracy",
    mean=0.92,
    spread=None,
    seeds=(0,),
    before=0.84,
    frozen_head=0.90,
    interval=0.02,
    share=0.029,
    seconds=1.0,
)


def line(seed: int, value: float, **more: object) -> dict[str, object]:
    job = QualityJob("banking77_intent", "lora", seed)
    test = {
        "after": {"accuracy": value},
        "before": {"accuracy": 0.84},
        "frozen_head": {"accuracy": 0.9},
        "confidence_interval": {"accuracy": [0.06, 0.1]},
    }
    sizes = {"delta_parameters": 29, "base_parameters": 1000, "processor_seconds": 2.0}
    named = {"key": job.key, "set": job.set, "method": job.method, "seed": seed}
    return {**named, "metric": "accuracy", "test": test, **sizes, **more}


def test_a_journal_knows_what_is_finished_and_survives_a_torn_line(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "results" / "runs.jsonl")
    assert not journal.has("a")
    journal.add({"key": "a"})
    with journal.path.open("a") as stream:
        stream.write('{"key": "b"')  # killed while writing
    assert journal.has("a")
    assert not journal.has("b")
    journal.add({"key": "c"})
    assert [found["key"] for found in journal] == ["a", "c"]


@pytest.mark.parametrize("method", METHODS)
def test_every_cell_of_the_table_is_a_job_of_defaults(method: str) -> None:
    for name in SETS:
        training = QualityJob(name, method, 7).spec.training
        assert training.model_dump(exclude_defaults=True).keys() <= {"seed", "eval_generate_rows"}
        assert training.seed == 7


def test_a_recipe_is_named_by_its_settings_and_not_by_the_seed() -> None:
    job = QualityJob("sec_ner", "lora", 0)
    assert replace(job, seed=1).recipe == job.recipe
    others = [
        replace(job, method="bitfit"),
        replace(job, training={"learning_rate": 0.5}),
        replace(job, options={"r": 4}),
        replace(job, train_rows=10),
        replace(job, set="wnut17_ner", with_test=False),
    ]
    assert len({own.recipe for own in (job, *others)}) == len(others) + 1


def test_a_combination_is_of_another_recipe_where_its_second_rate_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both, first = (
        QualityJob("sgd_dialogue", "lora+bitfit", 0),
        QualityJob("sgd_dialogue", "lora", 0),
    )
    before = both.recipe, first.recipe
    place = ("bitfit", "text-generation")
    faster = replace(RECIPES[place], learning_rate=2 * RECIPES[place].learning_rate)
    monkeypatch.setattr("peft_engine.training.recipes.RECIPES", {**RECIPES, place: faster})
    assert both.recipe != before[0]
    assert first.recipe == before[1]


def test_sets_below_the_few_rows_are_marked_and_named_by_their_own_recipes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = [json.loads(own) for own in (RESULTS / "quality.jsonl").read_text().splitlines()]
    rates = {
        own["set"]: own["resolved"]["learning_rate"] for own in lines if own["method"] == "lora"
    }
    for name, rate in rates.items():
        recipes = FEW_ROW_RECIPES if SETS[name].few_rows else RECIPES
        assert recipes["lora", SETS[name].task].learning_rate == rate, name
    few = QualityJob("seedtasks_instruction", "bitfit", 0)
    before = few.recipe
    monkeypatch.setattr("peft_engine.training.recipes.RECIPES", {})
    assert few.recipe == before


def test_runs_of_another_recipe_are_left_out() -> None:
    assert is_current(json.loads(json.dumps(line(0, 0.9))))
    assert not is_current(line(0, 0.9, key="banking77_intent|lora|0|000000000000"))
    assert not is_current(line(0, 0.9, set="a set of yesterday"))


def test_seeds_are_summed_up() -> None:
    (cell,) = summarise([line(0, 0.90), line(1, 0.94)])
    assert cell.mean == pytest.approx(0.92)
    assert cell.spread == pytest.approx(0.0283, abs=1e-4)
    assert cell.seeds == (0, 1)
    assert (cell.share, cell.interval) == (0.029, pytest.approx(0.02))


def test_promises_are_held_against_figures() -> None:
    full = replace(CELL, method="full", mean=0.924, share=1.0)
    weak = replace(CELL, method="bitfit", mean=0.90, share=0.0011)
    peers = {("banking77_intent", "lora"): (0.945, 3)}
    met = {(v["method"], v["claim"]): v["met"] for v in judge([full, CELL, weak], peers)}
    assert met["lora", "close to full fine-tuning"]  # 0.4 points behind, 0.5 allowed
    assert met["lora", "small enough"]
    assert not met["bitfit", "close to full fine-tuning"]
    assert not met["bitfit", "small enough"]
    assert not met["bitfit", "beats the floor"]
    assert met["bitfit", "beats the untuned base"]
    assert not met["lora", "no worse than the peer"]  # 2.5 points behind, the interval is 2


@pytest.mark.parametrize(
    ("own_seeds", "full_seeds", "behind", "counts"),
    [(3, 3, 0.01, True), (3, 2, 0.01, False), (1, 3, 0.01, False), (1, 1, 0.03, True)],
)
def test_a_miss_counts_beyond_the_rows_or_over_three_seeds(
    own_seeds: int, full_seeds: int, behind: float, counts: bool
) -> None:
    cell = replace(CELL, seeds=tuple(range(own_seeds)), interval=0.02)
    full = replace(CELL, method="full", mean=cell.mean + behind, seeds=tuple(range(full_seeds)))
    (found,) = [v for v in judge([cell, full], {}) if v["claim"] == "close to full fine-tuning"]
    assert not found["met"]
    assert found["counts"] is counts


def test_a_method_is_summed_up_over_the_sets_that_full_has_too() -> None:
    full = replace(CELL, method="full", mean=0.91, share=1.0)
    names = replace(CELL, set="sec_ner", metric="f1", mean=0.75, before=0.79)
    texts = replace(CELL, set="sgd_dialogue", metric="loss", mean=1.94, before=2.7)
    full_texts = replace(texts, method="full", mean=1.91)
    peers = {("banking77_intent", "lora"): (0.83, 1), ("mr_sentiment", "lora"): (0.78, 1)}

    _, of_full, lora, peer = overview([full, full_texts, CELL, names, texts], peers)

    assert of_full[2:] == ["1 of 1", "2 of 2", "+0.0 (1 of 10 sets)", "-", "+0.000 (1 of 4 sets)"]
    # the names count against their floor of 0.801; full has not run on them
    assert lora[:2] == ["`lora`", "2.90%"]
    assert lora[2:4] == ["1 of 2", "2 of 2"]
    assert lora[4:] == [
        "+1.0 (1 of 10 sets) (+1.0 on `banking77_intent`)",
        "-",
        "-0.030 (1 of 4 sets)",
    ]
    assert peer[:4] == ["PEFT lora", "-", "1 of 2", "0 of 1"]
    assert peer[4] == "-8.0 (1 of 10 sets) (-8.0 on `banking77_intent`)"


def test_distances_to_full_fine_tuning_are_told_in_units_and_marked() -> None:
    full = replace(CELL, method="full", mean=0.923)
    bitfit = replace(CELL, method="bitfit", mean=0.9)
    mask = replace(CELL, method="mask", mean=0.5)
    loss = replace(CELL, set="sgd_dialogue", metric="loss", mean=1.94)
    full_loss = replace(loss, method="full", mean=1.91)
    bleu = replace(CELL, set="e2e_nlg", metric="bleu", mean=61.6)
    full_bleu = replace(bleu, method="full", mean=62.0)

    cells = [full, CELL, bitfit, mask, loss, full_loss, bleu, full_bleu]
    head, *rows = distances(cells)
    told = {(row[0], method): text for row in rows for method, text in zip(head, row, strict=True)}

    assert [row[:2] for row in rows] == [
        ["`banking77_intent`", "points"],
        ["`e2e_nlg`", "bleu"],
        ["`sgd_dialogue`", "loss"],
    ]
    assert told["`banking77_intent`", "lora"] == "-0.3"
    assert told["`banking77_intent`", "bitfit"] == "**-2.3**"
    assert told["`banking77_intent`", "mask"] == "-42.3"  # nothing was promised of it
    assert told["`banking77_intent`", "ia3"] == "-"
    assert told["`e2e_nlg`", "lora"] == "-0.4"
    assert told["`sgd_dialogue`", "lora"] == "**-0.030**"


def test_rows_are_taken_evenly() -> None:
    assert take_rows(range(10), 5, spread=True) == [0, 2, 4, 6, 8]
    assert take_rows(range(10), 3, spread=False) == [0, 1, 2]
    assert take_rows(range(3), 5, spread=True) == [0, 1, 2]

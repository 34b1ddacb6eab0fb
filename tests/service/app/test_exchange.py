"""Adapters in and out over HTTP, with a real inference process and the real PEFT beside it."""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from app.main import create_app
from core.db import Database, jobs
from core.settings import Settings
from core.storage import open_store
from inference.parts import make_parts
from inference.server import create_app as create_inference
from peft_engine.delta import Delta, load_delta, save_delta
from tests.service.app.keys import create_first_keys
from tests.service.app.rows import error_of, jsonl
from tests.service.app.running import run_server
from tests.service.worker.quiet_line import QuietLine
from tests.tiny_bases import WORDS, write_tiny_bert
from worker.base_cache import BaseCache
from worker.job_run import Workshop, run_jobs
from worker.protocol import Outcome, Run
from worker.trainer_engine import PeftEngine

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")

ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
"""For what no database has a part in."""

LABELS = ("lost", "new", "late")
TEXTS = ["where is my card", "my order is late please", "a new card"]
MARGIN = 2e-5
"""Of probabilities, which came through JSON and a batch of another shape."""


@dataclass
class House:
    """The service with a real inference process over one tiny base."""

    settings: Settings
    database: Database
    base: Path
    client: httpx.Client
    other: httpx.Client


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bert(tmp_path_factory.mktemp("bases") / "bert")


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the real PEFT trained and saved."""
    folder = tmp_path_factory.mktemp("peft")
    config = LoraConfig(
        task_type="SEQ_CLS", r=4, lora_alpha=6, target_modules=["query", "intermediate.dense"]
    )
    torch.manual_seed(3)
    model = get_peft_model(foreign(base), config)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.02)
    inputs = tokens(base)
    for _ in range(5):
        loss = model(**inputs, labels=torch.tensor([0, 2, 1])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def foreign(base: Path) -> Any:
    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)


def tokens(base: Path) -> Any:
    return AutoTokenizer.from_pretrained(base)(TEXTS, padding=True, return_tensors="pt")


def shares_of(base: Path, model: Any) -> list[dict[str, float]]:
    """Probabilities as transformers computes them."""
    with torch.no_grad():
        shares = model.eval()(**tokens(base)).logits.softmax(-1)
    return [dict(zip(LABELS, row.tolist(), strict=True)) for row in shares]


@pytest.fixture
def house(settings: Settings, database: Database, base: Path) -> Iterator[House]:
    own = settings.model_copy(
        update={"base_models": {"bert": str(base)}, "served_base_models": None, "threads": 1}
    )
    with ExitStack() as stack:
        parts = make_parts(own)
        url = stack.enter_context(run_server(create_inference(own, parts)))
        for served in parts.bases.all():
            served.loaded.result(30)
        own = own.model_copy(update={"inference_url": url})
        keys = create_first_keys(database)
        face = stack.enter_context(run_server(create_app(own)))
        clients = [
            stack.enter_context(
                httpx.Client(base_url=face, headers={"authorization": f"Bearer {key}"}, timeout=60)
            )
            for key in keys
        ]
        yield House(own, database, base, *clients)


def zipped(folder: Path, *, below: str = "") -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, below + path.name)
    return target.getvalue()


def bring(client: httpx.Client, content: bytes, **fields: Any) -> httpx.Response:
    headers = {"Idempotency-Key": fields.pop("key")} if "key" in fields else {}
    return client.post(
        "/adapters", files={"file": ("intents.zip", content)}, data=fields, headers=headers
    )


def brought(house: House, folder: Path, **fields: Any) -> dict[str, Any]:
    answer = bring(house.client, zipped(folder), labels=json.dumps(LABELS), **fields)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def assert_answers(house: House, reference: str, wanted: list[dict[str, float]]) -> None:
    answer = house.client.post("/predict", json={"adapter_id": reference, "inputs": TEXTS})
    assert answer.status_code == 200, answer.text
    for output, shares in zip(answer.json()["outputs"], wanted, strict=True):
        assert output["scores"] == pytest.approx(shares, abs=MARGIN)


def downloaded(house: House, reference: str, form: str, folder: Path) -> Path:
    answer = house.client.get(f"/adapters/{reference}/export", params={"format": form})
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        archive.extractall(folder)
    return folder


def test_an_adapter_of_peft_is_imported_served_continued_and_exported(
    house: House, made: Path, tmp_path: Path
) -> None:
    theirs = shares_of(house.base, PeftModel.from_pretrained(foreign(house.base), made))
    row = brought(house, made, name="theirs")
    assert (row["reference"], row["base_model"], row["labels"]) == ("theirs@1", "bert", [*LABELS])
    assert (row["origin"]["format"], row["origin"]["peft_type"]) == ("peft", "LORA")
    assert row["job_id"] is None
    assert_answers(house, row["id"], theirs)

    child = continue_from(house, row["id"])
    assert child["parent_adapter_id"] == row["id"]
    assert child["methods"][0]["alpha"] == 6

    folder = downloaded(house, child["reference"], "peft", tmp_path / "peft")
    again = shares_of(house.base, PeftModel.from_pretrained(foreign(house.base), folder))
    assert_answers(house, child["id"], again)
    assert again != theirs
    merged = downloaded(house, child["id"], "merged", tmp_path / "merged")
    model = AutoModelForSequenceClassification.from_pretrained(merged)
    assert model.config.id2label == dict(enumerate(LABELS))
    assert_answers(house, child["id"], shares_of(merged, model))


def continue_from(house: House, adapter_id: str) -> dict[str, Any]:
    """A job over HTTP, trained as a worker's child does."""
    rows = [
        {"text": f"{WORDS[place % 11]} {WORDS[place * 7 % 16]} my", "label": LABELS[place % 3]}
        for place in range(30)
    ]
    dataset = house.client.post("/datasets", files={"file": ("rows.jsonl", jsonl(rows))}).json()
    job = house.client.post(
        "/jobs",
        json={
            "dataset_id": dataset["id"],
            "base_model": "bert",
            "parent_adapter_id": adapter_id,
            "adapter_name": "continued",
            "training": {"max_steps": 4, "batch_size": 4, "learning_rate": 0.01},
        },
    )
    assert job.status_code == 202, job.text
    job_id = job.json()["id"]
    with house.database.write() as session:
        claim = jobs.claim(session, job_id, owner="test", lease_seconds=600)
    assert claim is not None
    engine = PeftEngine(house.settings)
    shop = Workshop(
        house.settings, house.database, open_store(house.settings), engine, BaseCache(engine)
    )
    line = QuietLine()
    run_jobs(shop, Run(job_id, claim.attempt), line)
    (ended,) = line.ends
    assert ended.outcome is Outcome.SUCCEEDED, ended
    return dict(house.client.get("/adapters/continued").json())


def test_what_is_brought_twice_is_one(house: House, made: Path) -> None:
    first = bring(house.client, zipped(made), name="once", key="k1")
    again = bring(house.client, zipped(made), name="once", key="k1")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    other = bring(house.client, zipped(made), name="twice", key="k1")
    assert error_of(other)["code"] == "idempotency_mismatch"
    assert first.json()["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert house.other.get(f"/adapters/{first.json()['id']}").status_code == 404


@ON_SQLITE
def test_native_files_come_back_as_they_were(house: House, made: Path) -> None:
    row = brought(house, made, name="theirs")
    native = house.client.get(f"/adapters/{row['id']}/export").content
    again = bring(house.client, native, name="again")
    assert again.status_code == 201, again.text
    assert again.json()["digest"] == row["digest"]
    assert again.json()["origin"]["format"] == "native"


@ON_SQLITE
def test_a_base_may_have_another_name_where_a_file_comes_from(house: House, made: Path) -> None:
    row = brought(house, made, name="ours")
    ours = load_delta(house.client.get(f"/adapters/{row['id']}/export").content)
    manifest = ours.manifest.model_copy(update={"base_model": "called-otherwise"})
    theirs = save_delta(Delta.of(ours.tensors, manifest))
    for where in ({}, {"base_model": "bert"}):
        came = bring(house.client, theirs, name="theirs", **where)
        assert came.is_success, came.text
        assert came.json()["base_model"] == row["base_model"]
    body = {"adapter_id": "theirs", "inputs": ["where is my card"]}
    answer = house.client.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["receipt"]["base_model"] == row["base_model"]


@ON_SQLITE
def test_a_derived_base_that_happens_to_be_loaded_takes_no_part(house: House, made: Path) -> None:
    """It has the reference and the shapes of its parent, and is loaded while somebody asks it."""
    asked = {"base_model": "bert@int8", "task": "embedding", "inputs": ["my card"]}
    assert house.client.post("/predict", json=asked).status_code == 200
    row = brought(house, made, name="theirs")
    assert row["base_model"] == "bert"
    stated = json.loads((made / "adapter_config.json").read_text())
    for name in (None, "somebody/bert"):
        changed = {"adapter_config.json": json.dumps(stated | {"base_model_name_or_path": name})}
        again = bring(house.client, packed(made, changed), name="again", labels=json.dumps(LABELS))
        assert again.status_code == 201, again.text
        assert again.json()["digest"] == row["digest"]
    where = {"base_model": "bert@int8"}
    on_int8 = brought(house, made, name="on-int8", **where)
    assert on_int8["base_model"] == "bert@int8"
    native = house.client.get(f"/adapters/{on_int8['id']}/export").content
    assert bring(house.client, native, name="back").json()["digest"] == on_int8["digest"]


def packed(folder: Path, changed: dict[str, str]) -> bytes:
    """A zip of a folder with other content in some of its files."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.writestr(path.name, changed.get(path.name) or path.read_bytes())
    return target.getvalue()


@ON_SQLITE
def test_folders_inside_and_tar(house: House, made: Path) -> None:
    below = bring(house.client, zipped(made, below="run/checkpoint-5/"), name="below")
    assert below.status_code == 201, below.text
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        archive.add(made, "adapter")
    packed = bring(house.client, target.getvalue(), name="packed", base_model="bert")
    assert packed.status_code == 201, packed.text
    assert below.json()["digest"] == packed.json()["digest"]


@ON_SQLITE
def test_every_reason_is_told(house: House, made: Path, tmp_path: Path) -> None:
    for path in made.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config |= {"layer_replication": [[0, 2]], "lora_bias": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    error = error_of(bring(house.client, zipped(tmp_path)))
    assert error["code"] == "adapter_invalid"
    places = [detail["where"] for detail in error["details"]]
    assert places == ["layer_replication", "lora_bias"]
    assert house.client.get("/adapters").json()["data"] == []
    assert not list(open_store(house.settings).list("uploads"))
    assert not list(open_store(house.settings).list("deltas"))


@ON_SQLITE
def test_formats_that_cannot_hold_it(house: House, made: Path) -> None:
    row = brought(house, made)
    for form, place in (("gguf", "base_model"), ("peft-portable", "head")):
        answer = house.client.get(f"/adapters/{row['id']}/export", params={"format": form})
        error = error_of(answer)
        assert (answer.status_code, error["code"]) == (400, "export_not_possible")
        assert place in {detail["where"] for detail in error["details"]}


@ON_SQLITE
def test_adapters_are_merged_and_judged(house: House, made: Path) -> None:
    row = brought(house, made, name="theirs")
    child = continue_from(house, row["id"])
    asked = {
        "name": "both",
        "adapters": [{"adapter_id": "theirs", "weight": 0.5}, {"adapter_id": child["id"]}],
        "merge": {"method": "ties", "density": 0.8, "r": 8},
        "dataset_id": child["dataset_id"],
    }
    answer = house.client.post("/adapters:merge", json=asked)
    assert answer.status_code == 201, answer.text
    both = answer.json()
    assert (both["methods"][0]["type"], both["methods"][0]["r"]) == ("lora", 8)
    assert [own["adapter"] for own in both["origin"]["adapters"]] == ["theirs@1", "continued@1"]
    judged = both["origin"]["evaluation"]
    assert (judged["dataset_id"], judged["split"]) == (child["dataset_id"], "test")
    assert judged["rows"] > 0
    assert 0 <= judged["values"]["accuracy"] <= 1
    again = house.client.post("/adapters:merge", json=asked)
    assert (again.status_code, again.json()["id"]) == (200, both["id"])
    predicted = house.client.post("/predict", json={"adapter_id": "both", "inputs": TEXTS})
    assert predicted.status_code == 200, predicted.text
    labels = brought(house, made, name="named", key="k")
    other = bring(house.client, zipped(made), name="nameless", labels='["a", "b", "c"]')
    parts = [{"adapter_id": labels["id"]}, {"adapter_id": other.json()["id"]}]
    error = error_of(house.client.post("/adapters:merge", json={"name": "x", "adapters": parts}))
    assert error["code"] == "merge_not_possible"
    assert error["details"][0]["code"] == "head_mismatch"


def tunery(house: House, *words: str) -> str:
    key = house.client.headers["authorization"].removeprefix("Bearer ")
    argv = [sys.executable, "-m", "cli", "--url", str(house.client.base_url), "--api-key", key]
    done = subprocess.run([*argv, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@ON_SQLITE
def test_the_commands_pack_and_write_files(house: House, made: Path, tmp_path: Path) -> None:
    labels = ",".join(LABELS)
    words = ("adapters", "import", str(made), "--name", "theirs", "--labels", labels, "--json")
    row = json.loads(tunery(house, *words))
    assert (row["reference"], row["labels"]) == ("theirs@1", [*LABELS])
    target = tmp_path / "out.zip"
    tunery(house, "adapters", "export", "theirs", str(target), "--format", "peft")
    with zipfile.ZipFile(target) as archive:
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(archive.namelist())
    assert not list(tmp_path.glob("*.part"))


def link(archive: tarfile.TarFile) -> None:
    entry = tarfile.TarInfo("adapter_config.json")
    entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/hostname"
    archive.addfile(entry)


def outside(archive: tarfile.TarFile) -> None:
    archive.addfile(tarfile.TarInfo("../outside.json"))


def absolute(archive: tarfile.TarFile) -> None:
    archive.addfile(tarfile.TarInfo("/tmp/outside.json"))


def bomb(archive: tarfile.TarFile) -> None:
    entry = tarfile.TarInfo("adapter_config.json")
    entry.size = 64 << 20
    archive.addfile(entry, io.BytesIO(bytes(entry.size)))


def crowd(archive: tarfile.TarFile) -> None:
    for number in range(300):
        archive.addfile(tarfile.TarInfo(f"{number}.json"))


def twice(archive: tarfile.TarFile) -> None:
    for _ in range(2):
        archive.addfile(tarfile.TarInfo("adapter_config.json"))


@ON_SQLITE
def test_archives_of_strangers(house: House) -> None:
    for attack in (link, outside, absolute, bomb, crowd, twice):
        target = io.BytesIO()
        with tarfile.open(fileobj=target, mode="w:gz") as archive:
            attack(archive)
        error = error_of(bring(house.client, target.getvalue()))
        assert error["code"] == "adapter_invalid", attack
        assert {detail["code"] for detail in error["details"]} == {"bad_archive"}, attack
    assert not list((house.settings.data_dir / "scratch").iterdir())


REQUESTS: tuple[tuple[dict[str, str], bytes, str], ...] = (
    ({"base_model": "nothing"}, b"x", "base_not_found"),
    ({"labels": "[1"}, b"x", "invalid_json"),
    ({"labels": "[1]"}, b"x", "bad_input"),
    ({"spelling": "wrong"}, b"x", "bad_input"),
    ({}, b"neither zip nor tar", "adapter_invalid"),
    ({}, b"", "adapter_invalid"),
)


@ON_SQLITE
def test_requests_that_cannot_be_read(house: House) -> None:
    for fields, content, code in REQUESTS:
        assert error_of(bring(house.client, content, **fields))["code"] == code, fields

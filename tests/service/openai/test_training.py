"""Files and fine-tuning jobs as the official client uses them; workers are played by the test."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import FileObject

from app.main import create_app
from core.db import Database, adapters, checkpoints, events, jobs
from core.db.migrate import upgrade
from core.queue import JobQueue
from core.settings import load_settings
from core.states import JobStatus, Phase
from core.storage import open_store
from tests.service.app.running import run_server
from tests.service.openai.conftest import open_clients
from worker.validation import DatasetValidator

Rows = list[dict[str, Any]]


def chats(count: int = 6, *, word: str = "menu") -> Rows:
    return [
        {
            "messages": [
                {"role": "user", "content": f"{word} {place}"},
                {"role": "assistant", "content": f"dish {place}"},
            ]
        }
        for place in range(count)
    ]


def jsonl(rows: Rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@dataclass(frozen=True)
class Office:
    """A running api, and what a worker needs."""

    database: Database
    validator: DatasetValidator
    client: OpenAI
    other: OpenAI

    def send(self, content: bytes, *, name: str = "menu.jsonl") -> FileObject:
        return self.client.files.create(file=(name, content), purpose="fine-tune")

    def file(self, rows: Rows, *, name: str = "menu.jsonl") -> str:
        """Upload a file and validate it as a worker does; gives its id."""
        sent = self.send(jsonl(rows), name=name)
        self.validator.validate(sent.id)
        done = self.client.files.wait_for_processing(sent.id, poll_interval=0.01)
        assert done.status == "processed", done.status_details
        return done.id

    def claim(self, job_id: str) -> int:
        with self.database.write() as session:
            found = jobs.claim(session, job_id, owner="test", lease_seconds=60)
        assert found is not None
        return found.attempt


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    settings = load_settings(
        data_dir=tmp_path_factory.mktemp("office"), base_models={"llama": "a", "bert": "b"}
    )
    upgrade(settings.database_url)
    with ExitStack() as stack:
        database = Database(settings.database_url)
        stack.callback(database.dispose)
        queue = JobQueue(settings)
        stack.callback(queue.close)
        validator = DatasetValidator(settings, database, open_store(settings), queue)
        url = stack.enter_context(run_server(create_app(settings)))
        yield Office(database, validator, *open_clients(stack, database, url))


@pytest.fixture(scope="module")
def menu(office: Office) -> str:
    """A file that is processed."""
    return office.file(chats())


def rows_of(file: Any) -> dict[str, int]:
    splits = file.x_validation["splits"].items()
    return {name: split["rows"] for name, split in splits if split["rows"]}


def refusal(call: Any, **asked: Any) -> tuple[str | None, str | None]:
    with pytest.raises(openai.BadRequestError) as told:
        call(**asked)
    assert told.value.request_id
    return told.value.code, told.value.param


def test_a_file_is_checked_after_the_answer(office: Office) -> None:
    rows = chats(4, word="checked")
    sent = office.send(jsonl(rows), name="checked.jsonl")
    assert (sent.status, sent.purpose, sent.filename) == ("uploaded", "fine-tune", "checked.jsonl")
    assert (sent.bytes, sent.object) == (len(jsonl(rows)), "file")
    with pytest.raises(openai.ConflictError):
        office.client.files.content(sent.id)
    again = office.send(jsonl(rows), name="checked.jsonl")
    assert again.id == sent.id
    office.validator.validate(sent.id)
    done = office.client.files.wait_for_processing(sent.id, poll_interval=0.01)
    assert (done.status, done.status_details) == ("processed", None)
    assert done.x_validation["task"] == "text-generation"
    assert rows_of(done) == {"train": 4}
    content = office.client.files.content(sent.id).read()
    assert [json.loads(line) for line in content.splitlines()] == rows


def test_a_wrong_file_tells_every_problem(office: Office) -> None:
    bad = jsonl(chats(3, word="bad")) + b'{"messages": []}\n{"messages": 7}\n'
    sent = office.send(bad)
    office.validator.validate(sent.id)
    found = office.client.files.wait_for_processing(sent.id, poll_interval=0.01)
    assert found.status == "error"
    assert found.status_details is not None
    assert found.status_details.startswith("line 4: ")
    assert [problem["line"] for problem in found.x_validation["problems"]] == [4, 5]
    with pytest.raises(openai.ConflictError) as told:
        office.client.fine_tuning.jobs.create(model="llama", training_file=sent.id)
    assert (told.value.code, told.value.param) == ("dataset_not_ready", "training_file")
    assert told.value.response.headers["x-should-retry"] == "false"


def test_files_are_listed_and_deleted(office: Office) -> None:
    made = [office.file(chats(4, word=f"list{place}")) for place in range(3)]
    files = office.client.files
    assert [row.id for row in files.list(limit=2)][:3] == made[::-1]
    oldest_first = [row.id for row in files.list(limit=2, order="asc")]
    assert oldest_first[-3:] == made
    assert [row.id for row in files.list(purpose="batch")] == []
    assert list(office.other.files.list()) == []
    with pytest.raises(openai.NotFoundError) as told:
        office.other.files.retrieve(made[0])
    assert (told.value.code, told.value.param) == ("dataset_not_found", "file_id")
    gone = files.delete(made[0])
    assert (gone.id, gone.deleted, gone.object) == (made[0], True, "file")
    with pytest.raises(openai.NotFoundError):
        files.retrieve(made[0])


def test_what_a_file_cannot_be_is_refused_by_name(office: Office) -> None:
    ask: Any = {"file": ("a.jsonl", jsonl(chats())), "purpose": "fine-tune"}
    expiry = {"anchor": "created_at", "seconds": 3600}
    assert refusal(office.client.files.create, **ask | {"purpose": "assistants"}) == (
        "unsupported",
        "purpose",
    )
    assert refusal(office.client.files.create, **ask, expires_after=expiry) == (
        "unsupported",
        "expires_after",
    )
    assert refusal(office.client.files.create, **ask, extra_body={"name": "x"}) == (
        "unknown_field",
        "name",
    )


def test_none_asks_for_the_default_of_a_job(office: Office, menu: str) -> None:
    """The client sends null for what is None, and both bodies mean one job."""
    client = office.client.fine_tuning.jobs
    nulls: Any = dict.fromkeys(
        ("seed", "suffix", "metadata", "method", "integrations", "validation_file")
    )
    nulls["hyperparameters"] = dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier"))
    own = dict.fromkeys(("task", "method", "base", "training", "auto_start", "evaluate_test"))
    told = client.create(model="llama", training_file=menu, **nulls, extra_body={"x_tunery": own})
    assert told.id == client.create(model="llama", training_file=menu).id


def test_a_job_from_its_wish_to_its_model(office: Office, menu: str) -> None:
    client = office.client.fine_tuning.jobs
    made = client.create(
        model="llama",
        training_file=menu,
        suffix="dishes",
        seed=7,
        metadata={"team": "care"},
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {
                    "batch_size": 4,
                    "n_epochs": 2,
                    "learning_rate_multiplier": "auto",
                }
            },
        },
        extra_body={
            "x_tunery": {
                "method": {"type": "lora", "r": 4},
                "training": {"learning_rate": 0.01, "max_grad_norm": None},
            }
        },
    )
    assert (made.object, made.status, made.model) == ("fine_tuning.job", "queued", "llama")
    assert (made.training_file, made.validation_file, made.seed) == (menu, None, 7)
    assert (made.hyperparameters.batch_size, made.hyperparameters.n_epochs) == (4, 2)
    assert made.method is not None
    assert made.method.type == "supervised"
    assert (made.metadata, made.result_files, made.fine_tuned_model) == ({"team": "care"}, [], None)
    spec = made.x_tunery["spec"]
    assert (spec["method"][0]["r"], spec["training"]["learning_rate"]) == (4, 0.01)
    assert (spec["training"]["seed"], spec["training"]["max_grad_norm"]) == (7, None)

    attempt = office.claim(made.id)
    with office.database.write() as session:
        progress = {"step": 3, "total_steps": 6, "tokens": 90, "eta_seconds": 30.0}
        jobs.update_fenced(session, made.id, attempt, phase=Phase.TRAINING, progress=progress)
        told: Any = {"job_id": made.id, "tenant_id": made.organization_id, "attempt": attempt}
        events.append(session, **told, event="progress", message="step 3 of 6", data=progress)
        for name, value in (("train/loss", 2.5), ("validation/loss", 2.25)):
            events.put_metric(session, **told, name=name, step=3, value=value)
        for step in (2, 3):
            checkpoints.add(session, **told, step=step, key=f"k{step}", bytes=1, sha256="0" * 64)
    running = client.retrieve(made.id)
    assert (running.status, running.trained_tokens, running.finished_at) == ("running", None, None)
    assert running.estimated_finish is not None
    assert 0 <= running.estimated_finish - running.created_at - 30 < 30
    points = list(client.checkpoints.list(made.id, limit=1))
    assert [point.step_number for point in points] == [3, 2]
    assert (points[0].metrics.train_loss, points[0].metrics.valid_loss) == (2.5, 2.25)
    assert points[1].metrics.train_loss is None

    with office.database.write() as session:
        published = adapters.publish(
            session,
            tenant_id=made.organization_id,
            name="dishes",
            base_model="llama",
            base_fingerprint="sha256:" + "f" * 64,
            task="text-generation",
            methods=[{"type": "lora", "r": 4}],
            parameters=1,
            bytes=1,
            digest="sha256:" + "d" * 64,
            key="k",
            job_id=made.id,
        )
        jobs.finish(session, made.id, attempt, JobStatus.SUCCEEDED, adapter_id=published.id)
    ended = client.retrieve(made.id)
    assert (ended.status, ended.fine_tuned_model) == ("succeeded", "dishes@1")
    assert (ended.trained_tokens, ended.estimated_finish) == (90, None)
    assert ended.finished_at is not None
    assert office.client.models.retrieve("dishes@1").x_tunery["adapter_id"] == published.id

    story = list(client.list_events(made.id, limit=2))
    numbers = [int(event.id.removeprefix("ftevent-")) for event in story]
    assert numbers == sorted(numbers, reverse=True)
    assert story[-1].message == "queued"
    (metrics,) = [event for event in story if event.type == "metrics"]
    assert metrics.data == progress
    assert {event.object for event in story} == {"fine_tuning.job.event"}
    unknown = ("bad_input", "after")
    for cursor in ("x", f"ftevent-{numbers[0] + 1}", made.id):
        assert refusal(client.list_events, fine_tuning_job_id=made.id, after=cursor) == unknown
    for ask, more in (
        (client.list, {}),
        (client.checkpoints.list, {"fine_tuning_job_id": made.id}),
        (office.client.files.list, {}),
    ):
        assert refusal(ask, **more, after=published.id) == unknown

    onward = client.create(model="dishes", training_file=menu, seed=8)
    assert onward.model == "llama"
    assert onward.x_tunery["spec"]["parent_adapter_id"] == published.id
    assert onward.x_tunery["spec"]["method"][0]["r"] == 4


def test_jobs_are_listed_by_their_metadata(office: Office, menu: str) -> None:
    client = office.client.fine_tuning.jobs
    made = [
        client.create(model="llama", training_file=menu, seed=seed, metadata={"run": "list"}).id
        for seed in (31, 32, 33)
    ]
    wanted: Any = {"run": "list"}
    assert [job.id for job in client.list(limit=2, metadata=wanted)] == made[::-1]
    assert made[0] in {job.id for job in client.list(limit=2)}
    assert list(office.other.fine_tuning.jobs.list()) == []
    with pytest.raises(openai.NotFoundError) as told:
        office.other.fine_tuning.jobs.retrieve(made[0])
    assert told.value.code == "job_not_found"


def test_cancelling_pausing_resuming(office: Office, menu: str) -> None:
    client = office.client.fine_tuning.jobs
    job = client.create(model="llama", training_file=menu, seed=41)
    assert client.pause(job.id).status == "paused"
    assert client.resume(job.id).status == "queued"
    options = {"x_tunery": {"auto_start": False, "evaluate_test": False}}
    held = client.create(model="llama", training_file=menu, seed=40, extra_body=options)
    assert (held.status, "start" in held.x_tunery["reason"]) == ("paused", True)
    assert held.x_tunery["spec"]["evaluate_test"] is False
    assert client.resume(held.id).status == "queued"
    office.claim(job.id)
    stopping = client.cancel(job.id)
    # no status that a program could not know
    assert (stopping.status, stopping.x_tunery["status"]) == ("running", "cancelling")
    waiting = client.create(model="llama", training_file=menu, seed=42)
    assert client.cancel(waiting.id).status == "cancelled"
    with pytest.raises(openai.ConflictError) as told:
        client.cancel(waiting.id)
    assert told.value.code == "job_finished"
    assert told.value.response.request.headers["x-stainless-retry-count"] == "0"


def test_a_job_waits_for_its_file_and_fails_with_it(office: Office) -> None:
    client = office.client.fine_tuning.jobs
    good, bad = office.send(jsonl(chats(4, word="wait"))), office.send(b'{"messages": 1}\n')
    waiting, hopeless = (
        client.create(model="llama", training_file=file.id) for file in (good, bad)
    )
    assert waiting.status == hopeless.status == "validating_files"
    for file in (good, bad):
        office.validator.validate(file.id)
    assert client.retrieve(waiting.id).status == "queued"
    failed = client.retrieve(hopeless.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert (failed.error.code, failed.error.param) == ("dataset_invalid", "training_file")


def test_a_lost_answer_makes_one_job(office: Office, menu: str) -> None:
    client = office.client.fine_tuning.jobs
    ask: Any = {"model": "llama", "training_file": menu, "seed": 51}
    assert client.create(**ask).id == client.create(**ask).id
    keyed: Any = ask | {"seed": 52, "extra_headers": {"Idempotency-Key": "once"}}
    assert client.create(**keyed).id == client.create(**keyed).id
    with pytest.raises(openai.ConflictError) as told:
        client.create(**keyed | {"seed": 53})
    assert told.value.code == "idempotency_mismatch"


def test_a_validation_file_is_joined(office: Office, menu: str) -> None:
    client = office.client.fine_tuning.jobs
    held_out = office.file(chats(5, word="held"), name="held.jsonl")
    ask: Any = {"model": "llama", "training_file": menu, "validation_file": held_out}
    job = client.create(**ask)
    assert (job.training_file, job.validation_file) == (menu, held_out)
    assert job.status == "validating_files"
    joined = job.x_tunery["dataset_id"]
    office.validator.validate(joined)
    assert rows_of(office.client.files.retrieve(joined)) == {"train": 6, "validation": 5}
    assert client.retrieve(job.id).status == "queued"
    assert client.create(**ask).id == job.id
    assert next(iter(client.list(limit=1))).validation_file == held_out
    # the same rows on both sides: seen once the two are one
    leaking = client.create(model="llama", training_file=menu, validation_file=menu)
    office.validator.validate(leaking.x_tunery["dataset_id"])
    failed = client.retrieve(leaking.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code) == ("failed", "dataset_leakage")
    raw = office.send(jsonl(chats(4, word="raw")))
    with pytest.raises(openai.ConflictError) as early:
        client.create(**ask | {"validation_file": raw.id})
    assert (early.value.code, early.value.param) == ("dataset_not_ready", "validation_file")
    assert refusal(client.create, **ask | {"training_file": joined}) == (
        "bad_input",
        "validation_file",
    )


def test_what_a_job_cannot_be_is_refused_by_name(office: Office, menu: str) -> None:
    ask: Any = {"model": "llama", "training_file": menu}
    many = {"hyperparameters": {"n_epochs": 1}}
    wrong: list[tuple[str, str, dict[str, Any]]] = [
        ("unsupported", "method.type", {"method": {"type": "dpo"}}),
        ("unsupported", "method.reinforcement", {"method": {"reinforcement": {}}}),
        ("unsupported", "integrations", {"integrations": [{"type": "wandb"}]}),
        (
            "unsupported",
            "hyperparameters.learning_rate_multiplier",
            {"hyperparameters": {"learning_rate_multiplier": 2.0}},
        ),
        ("bad_input", "hyperparameters.n_epochs", {"hyperparameters": {"n_epochs": 0}}),
        ("bad_input", "suffix", {"suffix": "No Spaces"}),
        ("bad_input", "x_tunery.method.0.r", {"extra_body": {"x_tunery": {"method": {"r": 0}}}}),
        ("bad_input", "x_tunery.colour", {"extra_body": {"x_tunery": {"colour": 1}}}),
        (
            "bad_input",
            "hyperparameters.n_epochs",
            many | {"extra_body": {"x_tunery": {"training": {"epochs": 2}}}},
        ),
        (
            "task_mismatch",
            "x_tunery.task",
            {"extra_body": {"x_tunery": {"task": "regression"}}},
        ),
    ]
    for code, param, change in wrong:
        assert refusal(office.client.fine_tuning.jobs.create, **ask | change) == (code, param)
    missing: list[tuple[str, str, dict[str, Any]]] = [
        ("model_not_found", "model", {"model": "gpt-9"}),
        ("dataset_not_found", "training_file", {"training_file": "file-none"}),
        ("dataset_not_found", "validation_file", {"validation_file": "file-none"}),
    ]
    for code, param, change in missing:
        with pytest.raises(openai.NotFoundError) as told:
            office.client.fine_tuning.jobs.create(**ask | change)
        assert (told.value.code, told.value.param) == (code, param)


def test_a_refusal_says_its_reason_once(office: Office, menu: str) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        office.client.fine_tuning.jobs.create(
            model="llama", training_file=menu, extra_body={"method": {"type": "dpo"}}
        )
    assert told.value.message.count("jobs are supervised") == 1

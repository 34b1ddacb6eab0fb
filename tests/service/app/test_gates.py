"""The gate of an alias: what passes, what is refused, and what cannot be compared."""

import random
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from core.db import datasets, draws, jobs
from core.db.models import Adapter
from core.states import DatasetStatus
from tests.service.app.conftest import Edge
from tests.service.app.rows import error_of

ROWS = "a" * 64
PAIRING = "sha256:" + "1" * 64


@dataclass(frozen=True)
class Metric:
    """A metric around a value; its resamples scatter alike for equal seeds, as paired ones do."""

    value: float
    scatter: float = 0.01
    own: float = 0.0
    """Scatter that is not shared with other models."""
    seed: int = 0
    rows: int = 100
    pairing: str = PAIRING
    lower_is_better: bool = False

    @property
    def values(self) -> list[float]:
        shared, alone = random.Random(0), random.Random(self.seed + 1)
        return [
            self.value + self.scatter * shared.gauss(0, 1) + self.own * alone.gauss(0, 1)
            for _ in range(1000)
        ]


def publish(
    edge: Edge,
    *,
    test_sha256: str = ROWS,
    max_length: int = 128,
    deciding: str | None = "accuracy",
    values: dict[str, Any] | None = None,
    **metrics: Metric,
) -> Adapter:
    row = edge.publish("intents", **(values or {}))
    with edge.database.write() as session:
        draws.put(
            session,
            row,
            metrics,
            test_sha256=test_sha256,
            max_length=max_length,
            deciding=deciding,
        )
    return row


def move(client: httpx.Client, adapter: Adapter, **gate: Any) -> httpx.Response:
    return client.put("/aliases/prod", json={"adapter_id": adapter.id, "gate": gate})


def refused(response: httpx.Response) -> tuple[int, str, str | None]:
    error = error_of(response)
    return response.status_code, error["code"], error["param"]


INCOMPARABLE = (409, "gate_not_comparable", "gate")


def test_a_better_one_passes_and_a_worse_one_does_not(client: httpx.Client, edge: Edge) -> None:
    good = publish(edge, accuracy=Metric(0.90), loss=Metric(0.3, lower_is_better=True))
    better = publish(edge, accuracy=Metric(0.92, own=0.005), loss=Metric(0.2, lower_is_better=True))
    worse = publish(edge, accuracy=Metric(0.85, own=0.005), loss=Metric(0.4, lower_is_better=True))
    # the first has nothing to be compared with
    assert move(client, good).status_code == 200
    response = move(client, worse)
    assert refused(response) == (409, "gate_failed", "gate")
    (found,) = error_of(response)["details"]
    assert (found["metric"], found["rows"]) == ("accuracy", 100)
    assert found["delta"] == pytest.approx(-0.05)
    low, high = found["confidence_interval"]
    assert low < -0.05 < high < 0
    assert client.get("/aliases/prod").json()["revision"] == 1
    # of a loss less is better
    assert refused(move(client, worse, metric="loss"))[1] == "gate_failed"
    assert move(client, better, metric="loss").status_code == 200

    newest, first = client.get("/aliases/prod").json()["history"]
    assert first["gate"] is None
    assert newest["gate"]["compared_with"] == good.id
    assert newest["gate"]["delta"] == pytest.approx(0.1)
    assert newest["gate"]["confidence_interval"] == pytest.approx([0.1, 0.1])
    # without a gate it moves whatever the test says
    body = {"adapter_id": worse.id}
    assert client.put("/aliases/prod", json=body).status_code == 200
    # what is there already is not judged
    assert move(client, worse).json()["revision"] == 3


def test_doubt_passes_unless_a_limit_is_set(client: httpx.Client, edge: Edge) -> None:
    good = publish(edge, accuracy=Metric(0.90))
    unclear = publish(edge, accuracy=Metric(0.89, own=0.02))
    move(client, good)
    assert refused(move(client, unclear, max_drop=0.02))[1] == "gate_failed"
    assert refused(move(client, unclear, max_drop=0))[1] == "gate_failed"
    assert move(client, unclear, max_drop=0.1).status_code == 200
    move(client, good)
    assert move(client, unclear).status_code == 200
    assert refused(move(client, good, max_drop=-1))[:2] == (400, "bad_input")


def test_only_what_was_tested_alike_is_compared(client: httpx.Client, edge: Edge) -> None:
    metric = Metric(0.9)
    move(client, publish(edge, accuracy=metric))
    others: dict[str, Adapter] = {
        "different rows": publish(edge, accuracy=metric, test_sha256="b" * 64),
        "no test results": edge.publish("intents"),
        "drew different resamples": publish(
            edge, accuracy=Metric(0.9, pairing="sha256:" + "2" * 64)
        ),
        "different resamples": publish(edge, accuracy=Metric(0.9, rows=99)),
        "does": publish(edge, accuracy=metric, values={"task": "regression"}),
    }
    for words, adapter in others.items():
        response = move(client, adapter)
        assert refused(response) == INCOMPARABLE, words
        assert words in error_of(response)["message"]
    assert client.get("/aliases/prod").json()["revision"] == 1


def test_the_metric_must_be_clear(client: httpx.Client, edge: Edge) -> None:
    both = {"accuracy": Metric(0.9), "f1": Metric(0.9)}
    move(client, publish(edge, **both))
    other = publish(edge, deciding="f1", **both)
    unclear = (409, "gate_not_comparable", "gate.metric")
    response = move(client, other)
    assert refused(response) == unclear
    assert "accuracy, f1" in error_of(response)["message"]
    assert refused(move(client, other, metric="bleu")) == unclear
    assert move(client, other, metric="f1").status_code == 200


def test_tokens_must_be_the_same_tokens(client: httpx.Client, edge: Edge) -> None:
    loss = {"deciding": "loss", "loss": Metric(1.0, lower_is_better=True)}
    text: dict[str, Any] = {"task": "text-generation", "template_digest": "sha256:t"}
    move(client, publish(edge, values=text, **loss))
    wrong = text | {"template_digest": "sha256:u"}
    assert refused(move(client, publish(edge, values=wrong, **loss))) == INCOMPARABLE
    assert refused(move(client, publish(edge, max_length=64, values=text, **loss))) == INCOMPARABLE
    assert move(client, publish(edge, values=text, **loss)).status_code == 200


def test_a_test_whose_rows_were_trained_on_tells_nothing(client: httpx.Client, edge: Edge) -> None:
    good = publish(edge, accuracy=Metric(0.9))
    move(client, good)
    with edge.database.write() as session:
        dataset = datasets.create(
            session,
            tenant_id=good.tenant_id,
            name="leaky",
            status=DatasetStatus.READY,
            report={"leakage": {"blocks": True, "exact_rows": 3}},
        )
        job = jobs.create(
            session,
            tenant_id=good.tenant_id,
            dataset_id=dataset.id,
            base_model="minilm",
            spec={"allow_leakage": True},
            max_attempts=1,
        )
    leaky = publish(edge, accuracy=Metric(0.99), values={"job_id": job.id})
    response = move(client, leaky)
    assert refused(response) == INCOMPARABLE
    assert "allow_leakage" in error_of(response)["message"]


def test_a_deleted_adapter_keeps_no_draws(client: httpx.Client, edge: Edge) -> None:
    row = publish(edge, accuracy=Metric(0.9))
    with edge.database.read() as session:
        kept = draws.list_of(session, row.tenant_id, row.id)
        assert draws.values_of(kept["accuracy"]) == tuple(Metric(0.9).values)
        assert draws.list_of(session, "ten_other", row.id) == {}
    client.delete(f"/adapters/{row.id}").raise_for_status()
    with edge.database.read() as session:
        assert draws.list_of(session, row.tenant_id, row.id) == {}

"""Aliases over HTTP: moves, conditions, rollback, names, tenants, scopes, receipts."""

from typing import Any

import httpx

from tests.service.app.conftest import Edge
from tests.service.app.rows import error_of, upload


def put(client: httpx.Client, name: str, reference: str, **more: Any) -> dict[str, Any]:
    response = client.put(f"/aliases/{name}", json={"adapter_id": reference, **more})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refused(response: httpx.Response) -> tuple[int, str, str | None]:
    error = error_of(response)
    return response.status_code, error["code"], error["param"]


def put_refused(client: httpx.Client, name: str, **body: Any) -> tuple[int, str, str | None]:
    return refused(client.put(f"/aliases/{name}", json=body))


def test_an_alias_is_put_moved_and_put_again(client: httpx.Client, edge: Edge) -> None:
    first, second = edge.publish("intents"), edge.publish("intents")
    made = put(client, "prod", "intents@1")
    assert made["adapter_id"] == first.id
    assert (made["adapter"], made["revision"]) == ("intents@1", 1)
    assert made["adapter_digest"] == first.digest
    moved = put(client, "prod", "intents")
    assert (moved["adapter_id"], moved["revision"], moved["id"]) == (second.id, 2, made["id"])
    assert put(client, "prod", second.id) == moved

    # an alias may be put where another one points: later moves of that one change nothing
    put(client, "canary", "prod")
    shown = client.get("/aliases/prod").json()
    assert {name: shown[name] for name in moved} == moved
    assert [
        (move["revision"], move["action"], move["adapter"], move["previous_adapter_id"])
        for move in shown["history"]
    ] == [(2, "set", "intents@2", first.id), (1, "set", "intents@1", None)]
    assert shown["history_has_more"] is False
    page = client.get("/aliases/prod?limit=1").json()
    assert (len(page["history"]), page["history_has_more"]) == (1, True)
    assert client.get("/aliases/prod?before=2").json()["history"] == shown["history"][1:]

    listed = client.get("/aliases").json()
    assert [row["name"] for row in listed["data"]] == ["canary", "prod"]
    assert client.get("/aliases?adapter_id=intents@1").json()["data"] == []
    assert len(client.get("/aliases?adapter_id=prod").json()["data"]) == 2
    assert client.get("/adapters/prod").json()["aliases"] == ["canary", "prod"]
    assert [row["aliases"] for row in client.get("/adapters").json()["data"]] == [
        ["canary", "prod"],
        [],
    ]


def test_a_receipt_says_what_the_alias_meant(client: httpx.Client, edge: Edge) -> None:
    first, second = edge.publish("intents"), edge.publish("intents")
    put(client, "prod", "intents@1")

    def ask(**body: Any) -> list[dict[str, Any]]:
        response = client.post("/predict", json=body)
        assert response.status_code == 200, response.text
        receipts: list[dict[str, Any]] = response.json()["receipts"]
        return receipts

    (before,) = ask(adapter_id="prod", inputs=["a"])
    put(client, "prod", "intents@2")
    rows = ["a", {"adapter_id": "intents@1", "input": "b"}, {"adapter_id": None, "input": "c"}]
    named, own, plain = ask(adapter_id="prod", inputs=rows)
    told = ("adapter_id", "adapter", "alias", "alias_revision", "adapter_digest")
    assert [before[name] for name in told] == [first.id, "intents@1", "prod", 1, first.digest]
    assert [named[name] for name in told] == [second.id, "intents@2", "prod", 2, second.digest]
    assert [own[name] for name in told] == [first.id, "intents@1", None, None, first.digest]
    assert [plain[name] for name in told] == [None] * 5


def test_rollback(client: httpx.Client, edge: Edge) -> None:
    made = [edge.publish("intents").id for _ in range(3)]
    for target in made:
        put(client, "prod", target)

    def roll_back(**body: Any) -> httpx.Response:
        return client.post("/aliases/prod:rollback", json=body or None)

    assert roll_back().json()["adapter_id"] == made[1]
    # a repeated request that names what it saw cannot go too far
    moved = (409, "alias_moved", "expected_adapter_id")
    assert refused(roll_back(expected_adapter_id=made[2])) == moved
    assert roll_back(expected_adapter_id="intents@2").json()["adapter_id"] == made[0]
    assert refused(roll_back()) == (409, "nothing_to_roll_back", "revision")
    assert roll_back(revision=3).json()["adapter_id"] == made[2]
    newest = client.get("/aliases/prod").json()["history"][0]
    assert (newest["action"], newest["restored_revision"]) == ("rollback", 3)
    assert refused(roll_back(revision=0))[:2] == (400, "bad_input")
    assert refused(client.post("/aliases/none:rollback"))[:2] == (404, "alias_not_found")


def test_a_move_on_condition(client: httpx.Client, edge: Edge) -> None:
    first, second = edge.publish("intents"), edge.publish("intents")
    moved = (409, "alias_moved", "expected_adapter_id")
    body = {"adapter_id": first.id}
    assert put_refused(client, "prod", **body, expected_adapter_id=second.id) == moved
    put(client, "prod", first.id, expected_adapter_id=None)
    body = {"adapter_id": second.id}
    assert put_refused(client, "prod", **body, expected_adapter_id=None) == moved
    assert put_refused(client, "prod", **body, expected_adapter_id="gone@9") == moved
    put(client, "prod", second.id, expected_adapter_id="intents@1")
    # sent again, it finds its wish fulfilled
    assert put(client, "prod", second.id, expected_adapter_id="intents@1")["revision"] == 2


def test_names_mean_one_thing(client: httpx.Client, edge: Edge) -> None:
    edge.publish("intents")
    taken = (409, "name_taken", "name")
    assert put_refused(client, "intents", adapter_id="intents@1") == taken
    put(client, "prod", "intents")
    dataset = upload(client)
    body = {"dataset_id": dataset["id"], "base_model": "minilm"}
    response = client.post("/jobs", json={**body, "adapter_name": "prod"})
    assert refused(response) == (409, "name_taken", "adapter_name")
    job = client.post("/jobs", json={**body, "adapter_name": "soon"})
    assert job.status_code == 202
    assert put_refused(client, "soon", adapter_id="intents") == taken
    client.post(f"/jobs/{job.json()['id']}:cancel")
    put(client, "soon", "intents")
    for name in ("Upper", "a b", "a@1", "x" * 65, "-a"):
        assert put_refused(client, name, adapter_id="intents")[:2] == (400, "bad_input"), name
    assert put_refused(client, "adp_x", adapter_id="intents") == (400, "bad_input", "name")


def test_an_adapter_that_an_alias_needs_is_not_deleted(client: httpx.Client, edge: Edge) -> None:
    adapter = edge.publish("intents")
    put(client, "prod", "intents")
    response = client.delete(f"/adapters/{adapter.id}")
    assert refused(response)[:2] == (409, "adapter_in_use")
    assert response.headers["x-should-retry"] == "false"
    gone = client.delete("/aliases/prod").json()
    assert (gone["object"], gone["deleted"]) == ("alias", True)
    assert client.delete("/aliases/prod").status_code == 404
    assert client.delete(f"/adapters/{adapter.id}").status_code == 200


def test_what_is_not_there(client: httpx.Client, edge: Edge) -> None:
    missing = put_refused(client, "prod", adapter_id="none")
    assert missing == (404, "adapter_not_found", "adapter_id")
    assert put_refused(client, "prod")[1:] == ("bad_input", "adapter_id")
    assert put_refused(client, "prod", adapter_id="a", color=1)[1:] == ("bad_input", "color")
    assert refused(client.get("/aliases/prod"))[:2] == (404, "alias_not_found")
    assert client.get("/aliases").json()["data"] == []


def test_aliases_of_another_tenant_are_not_there(
    client: httpx.Client, other: httpx.Client, edge: Edge
) -> None:
    mine = edge.publish("intents")
    put(client, "prod", mine.id)
    assert other.get("/aliases").json()["data"] == []
    assert refused(other.get("/aliases/prod"))[:2] == (404, "alias_not_found")
    assert refused(other.post("/aliases/prod:rollback"))[:2] == (404, "alias_not_found")
    assert refused(other.delete("/aliases/prod"))[:2] == (404, "alias_not_found")
    assert put_refused(other, "prod", adapter_id=mine.id)[:2] == (404, "adapter_not_found")
    response = other.post("/predict", json={"adapter_id": "prod", "inputs": ["a"]})
    assert refused(response)[:2] == (404, "adapter_not_found")
    theirs = edge.publish("intents", key=edge.other_key)
    assert put(other, "prod", "intents")["adapter_id"] == theirs.id
    assert client.get("/adapters/prod").json()["id"] == mine.id


def test_reading_is_not_moving(edge: Edge) -> None:
    edge.publish("intents")
    put(edge.client(edge.key), "prod", "intents")
    reader = edge.client(edge.new_key("read", "predict"))
    assert reader.get("/aliases/prod").status_code == 200
    denied = (403, "missing_scope", None)
    assert put_refused(reader, "prod", adapter_id="intents") == denied
    assert refused(reader.post("/aliases/prod:rollback")) == denied
    assert refused(reader.delete("/aliases/prod")) == denied
    assert refused(edge.client(edge.new_key("write")).get("/aliases")) == denied

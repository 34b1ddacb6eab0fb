"""``compare``: other adapters and the plain base answer the same inputs in the same call."""

from typing import Any

import httpx

from core.db import adapters, nodes
from tests.service.app.conftest import Edge
from tests.service.app.rows import error_of
from tests.service.app.twin_inference import LONG


def ask(client: httpx.Client, **body: Any) -> dict[str, Any]:
    response = client.post("/predict", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def refused(client: httpx.Client, **body: Any) -> tuple[int, str, str | None]:
    response = client.post("/predict", json=body)
    error = error_of(response)
    return response.status_code, error["code"], error["param"]


def announce(edge: Edge, architecture: str = "encoder") -> None:
    with edge.database.write() as session:
        nodes.announce(
            session,
            id="node",
            url="http://node",
            bases=[{"name": "minilm", "architecture": architecture}],
            device="cpu",
            precision={},
            status="ready",
        )


def test_columns_stand_beside_the_answer(client: httpx.Client, edge: Edge) -> None:
    first, second, other = edge.publish("one"), edge.publish("one"), edge.publish("two")
    client.put("/aliases/prod", json={"adapter_id": "two"}).raise_for_status()
    rows = ["a", {"adapter_id": "two", "input": "b"}]
    plain = ask(client, adapter_id="one", inputs=rows)
    assert plain["comparison"] is None
    del edge.twin.rows[:]
    answer = ask(client, adapter_id="one", inputs=rows, compare=[None, "one@1", "prod"])
    assert answer["outputs"] == plain["outputs"]
    assert answer["receipts"] == plain["receipts"]
    assert [row["by"] for row in answer["outputs"]] == [second.id, other.id]
    base, older, aliased = answer["comparison"]
    assert [column["adapter_id"] for column in answer["comparison"]] == [None, "one@1", "prod"]
    for column, wanted in ((base, None), (older, first.id), (aliased, other.id)):
        assert [output["label"] for output in column["outputs"]] == ["a", "b"]
        assert {output["by"] for output in column["outputs"]} == {wanted}
        assert column["receipt"]["adapter_id"] == wanted
        assert column["receipts"] == [column["receipt"]] * 2
    assert (older["receipt"]["adapter"], aliased["receipt"]["alias"]) == ("one@1", "prod")
    # one request to the inference process, so that the rows can share a batch
    assert [row["input"] for row in edge.twin.rows] == ["a", "b"] * 4
    assert answer["usage"]["input_tokens"] == 8


def test_the_base_chooses_among_the_labels_of_a_classifier(
    client: httpx.Client, edge: Edge
) -> None:
    edge.publish("one")

    def options(**body: Any) -> list[dict[str, Any]]:
        del edge.twin.rows[:]
        ask(client, adapter_id="one", inputs=["a"], compare=[None, "one"], **body)
        return [row["options"] for row in edge.twin.rows]

    # a base of unknown family is not told to choose: a decoder could not
    assert options() == [{}, {}, {}]
    announce(edge)
    assert options() == [{}, {"labels": ["a", "b"]}, {}]
    own = {"labels": ["x", "y"]}
    assert options(options=own) == [{}, own, {}]
    announce(edge, "causal")
    assert options() == [{}, {}, {}]


def test_options_of_a_row_are_for_those_who_can_take_them(client: httpx.Client, edge: Edge) -> None:
    edge.publish("one")
    row = {"adapter_id": None, "input": "a", "options": {"labels": ["x", "y"]}}
    ask(client, base_model="minilm", inputs=[row], compare=["one", None])
    assert [row["options"] for row in edge.twin.rows] == [
        {"labels": ["x", "y"]},
        {},
        {"labels": ["x", "y"]},
    ]


def test_what_is_refused(client: httpx.Client, other: httpx.Client, edge: Edge) -> None:
    edge.publish("one")
    one = {"adapter_id": "one", "inputs": ["a"]}
    missing = (404, "adapter_not_found", "compare.1")
    assert refused(client, **one, compare=[None, "none"]) == missing
    edge.publish("two", key=edge.other_key)
    assert refused(client, **one, compare=[None, "two"]) == missing
    assert refused(client, **one, compare=[]) == (400, "bad_input", "compare")
    assert refused(client, **one, compare=["one", ""]) == (400, "bad_input", "compare.1")
    assert refused(client, **one, compare=[None] * 9)[:2] == (400, "bad_input")
    # 8 rows are allowed, and comparisons count
    three = {"adapter_id": "one", "inputs": ["a", "b", "c"]}
    assert refused(client, **three, compare=["one", "one"]) == (400, "too_many_rows", "compare")
    long = {"adapter_id": "one", "inputs": ["a" * 900]}
    assert refused(client, **long, compare=["one", "one"]) == (413, "too_large", "compare")
    assert edge.twin.rows == []


def test_an_error_of_a_compared_row_names_the_comparison(client: httpx.Client, edge: Edge) -> None:
    edge.publish("one")
    edge.twin.too_long_for = edge.publish("two").id
    body = {"adapter_id": "one", "inputs": ["a", LONG], "compare": ["two"]}
    response = client.post("/predict", json=body)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, "too_long", "compare.0")
    assert error["message"].endswith("(input 1)")


def test_lineage(client: httpx.Client, other: httpx.Client, edge: Edge) -> None:
    oldest = edge.publish("one")
    parent = edge.publish("one", parent_adapter_id=oldest.id)
    adapter = edge.publish("two", parent_adapter_id=parent.id)
    children = [edge.publish("two", parent_adapter_id=adapter.id) for _ in range(2)]
    with edge.database.write() as session:
        adapters.mark_deleted(session, oldest.tenant_id, oldest.id)

    shown = client.get("/adapters/two@1/lineage").json()
    assert shown["adapter"]["adapter_id"] == adapter.id
    assert [(row["adapter"], row["deleted"]) for row in shown["ancestors"]] == [
        ("one@2", False),
        ("one@1", True),
    ]
    assert [row["adapter_id"] for row in shown["children"]] == [child.id for child in children][
        ::-1
    ]
    assert (shown["ancestors_has_more"], shown["children_has_more"]) == (False, False)
    alone = client.get("/adapters/two@3/lineage").json()
    assert [row["adapter"] for row in alone["ancestors"]] == ["two@1", "one@2", "one@1"]
    assert alone["children"] == []
    assert other.get(f"/adapters/{adapter.id}/lineage").status_code == 404

"""The pages for people: they load, and nothing on them comes from outside."""

import re

import httpx
import pytest

from tests.service.app.conftest import Edge
from tests.service.app.rows import error_of, upload


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_a_page_and_all_that_it_loads(stranger: httpx.Client, path: str) -> None:
    page = stranger.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert loaded
    for address in loaded:
        assert address.startswith("/"), f"{address} comes from outside"
        assert stranger.get(address).status_code == 200, address
    assert "http://" not in page.text
    assert "https://" not in page.text


def test_static_files_are_a_short_list(stranger: httpx.Client) -> None:
    for name in ("index.html", "..%2Fmain.py", "%2e%2e/main.py", "redoc.standalone.js", "x%00"):
        response = stranger.get(f"/static/{name}")
        assert response.status_code == 404, name
        error_of(response)


def test_the_dashboard_writes_text_and_no_markup(stranger: httpx.Client) -> None:
    script = stranger.get("/static/dashboard.js").text
    for dangerous in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert dangerous not in script


def test_hostile_words_come_back_as_they_were(client: httpx.Client, edge: Edge) -> None:
    made = upload(client)
    words = {"<script>": "alert(1)", "{{7*7}}": "'; DROP TABLE jobs; --", "__proto__": "\u202e🏳️‍🌈"}
    body = {"dataset_id": made["id"], "base_model": "minilm", "metadata": words}
    job = client.post("/jobs", json=body).json()
    assert client.get(f"/jobs/{job['id']}").json()["metadata"] == words
    assert client.get(f"/jobs/{job['id']}").headers["content-type"] == "application/json"

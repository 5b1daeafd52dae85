from __future__ import annotations

import base64
import hashlib
import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest
from fake_backend import FakeBackend
from starlette.testclient import TestClient

from purnet_serve.http.app import create_app
from purnet_serve.http.docs_page import render
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.settings import Settings

VOID = {"br", "meta"}


class Page(HTMLParser):
    """The tags of a page; fails where one is closed that is not the last opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def app() -> Any:
    return create_app(Settings(), FakeBackend(), Metrics())


@pytest.fixture(scope="module")
def answer(app: Any) -> Any:
    return TestClient(app).get("/docs")


def test_the_page_names_all_that_the_document_has(app: Any, answer: Any) -> None:
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    document = app.openapi()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            heading = f"<code>{method.upper()} {path}</code></h2>"
            section = answer.text.split(heading)[1].split("<h2")[0]
            named = re.findall("<code>(.*?)</code>", section)
            wanted = [one["name"] for one in operation.get("parameters", ())]
            wanted += operation.get("requestBody", {}).get("content", ())
            for status, response in operation["responses"].items():
                wanted += [status, *response.get("content", ()), *response.get("headers", ())]
                for content in response.get("content", {}).values():
                    wanted += content.get("examples", ())
            assert set(wanted) <= set(named)
            assert operation.get("description", "").split("`")[0] in unescape(section)
    for name, schema in document["components"]["schemas"].items():
        section = answer.text.split(f"<h2 id='schema-{name}'>")[1].split("<h2")[0]
        assert all(f"<code>{field}</code>" in section for field in schema["properties"])


def test_the_page_is_well_formed_and_its_links_lead_somewhere(answer: Any) -> None:
    page = Page(answer.text)
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert links <= {f"#{name}" for name in ids} | {"openapi.json"}


def test_the_page_needs_nothing_but_itself_and_its_policy_allows_nothing_else(answer: Any) -> None:
    page = Page(answer.text)
    assert not re.search("https?:|src=|url\\(|@import", answer.text)
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "form"})
    assert all(not {"style", "onclick"} & set(attributes) for _, attributes in page.tags)
    (style,) = re.findall("<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = answer.headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", f"style-src 'sha256-{digest}'", "base-uri 'none'"} <= set(policy)
    assert "unsafe" not in answer.headers["content-security-policy"]


def test_it_is_served_below_its_root_path_and_takes_only_reading() -> None:
    app = create_app(Settings(root_path="/purnet"), FakeBackend(), Metrics())
    client = TestClient(app)
    assert "href='openapi.json'" in client.get("/purnet/docs").text
    assert client.head("/purnet/docs").status_code == 200
    assert client.post("/purnet/docs").json()["code"] == "method_not_allowed"


def test_text_of_the_document_is_escaped() -> None:
    operation = {"description": "<b>`a<b`", "responses": {}}
    document = {
        "info": {"title": "<script>", "version": "1"},
        "paths": {"/<i>": {"get": operation}},
        "components": {"schemas": {}},
    }
    page = render(document)
    assert not re.search("<script>|<b>|<i>", page)
    assert "&lt;b&gt;<code>a&lt;b</code>" in page

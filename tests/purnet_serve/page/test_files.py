"""The files of the page and how they are served; no browser."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_backend import FakeBackend
from starlette.testclient import TestClient

import purnet_serve
from purnet_serve.http.app import create_app
from purnet_serve.observability.http_metrics import Metrics
from purnet_serve.settings import Settings

PAGE = Path(purnet_serve.__file__).parent / "page"


def client(**settings: Any) -> TestClient:
    return TestClient(create_app(Settings(**settings), FakeBackend(), Metrics()))


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def links(self) -> set[str]:
        values = (a.get("src") or (a.get("href") if t != "a" else None) for t, a in self.found)
        return {value for value in values if value}


@pytest.fixture(scope="module")
def answer() -> Any:
    return client().get("/")


def test_the_policy_allows_nothing_but_the_page_s_own_files(answer: Any) -> None:
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["img-src"] == "'self' blob:"
    assert policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in answer.headers["content-security-policy"]


def test_the_page_has_no_script_or_style_in_itself_and_names_no_other_host(answer: Any) -> None:
    for tag, attributes in Tags(answer.text).found:
        assert tag != "style"
        assert tag != "script" or attributes.get("src")
        assert not any(name == "style" or name.startswith("on") for name in attributes)
    for file in PAGE.iterdir():
        if file.suffix in {".js", ".css", ".html"}:
            hosts = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", file.read_text())
            assert hosts == [], file.name


def test_every_file_it_names_is_there_with_its_type(answer: Any) -> None:
    asking, types = client(), {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    wanted = {f"/{link}" for link in Tags(answer.text).links()}
    modules = {file.name for file in PAGE.glob("*.js")}
    for name in modules:
        imports = re.findall(r'from "\./([\w.]+)"', (PAGE / name).read_text())
        assert set(imports) <= modules
        wanted |= {f"/page/{one}" for one in imports}
    assert {f"/page/{name}" for name in modules} <= wanted
    for path in wanted:
        got = asking.get(path)
        assert got.status_code == 200, path
        assert got.headers["content-type"].startswith(types.get(path.rsplit(".")[-1], "image/"))
        assert "content-security-policy" in got.headers


def test_a_file_that_is_known_is_not_sent_again(answer: Any) -> None:
    tag, asking = answer.headers["etag"], client()
    assert answer.headers["cache-control"] == "no-cache"
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = asking.get("/", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
        assert again.headers["content-security-policy"]
    assert asking.get("/", headers={"If-None-Match": '"other"'}).status_code == 200


def test_it_takes_only_reading_and_knows_no_other_file() -> None:
    asking = client()
    assert asking.head("/").content == b""
    assert asking.head("/").status_code == 200
    assert asking.post("/").json()["code"] == "method_not_allowed"
    for path in ("/page/", "/page/index.html", "/page/none.js", "/page/..%2Fsettings.py"):
        assert asking.get(path).json()["code"] == "not_found", path


def test_it_can_be_switched_off() -> None:
    asking = client(page="off")
    assert asking.get("/").json()["code"] == "not_found"
    assert asking.get("/page/app.js").json()["code"] == "not_found"
    assert asking.get("/docs").status_code == 200


@pytest.mark.parametrize("path", ["/purnet", "/purnet/", "/"])
def test_below_a_prefix_its_links_begin_with_it(path: str) -> None:
    asking = client(root_path="/purnet")
    answer = asking.get(path)
    assert answer.status_code == 200
    links = Tags(answer.text).links()
    assert "/purnet/page/app.js" in links
    assert all(link.startswith("/purnet/page/") for link in links)
    assert asking.get("/purnet/page/app.js").status_code == 200
    assert 'href="/purnet/docs"' in answer.text


def test_every_refusal_of_a_mask_has_words() -> None:
    responses = client().get("/openapi.json").json()["paths"]["/v1/mask"]["post"]["responses"]
    codes = {
        code
        for response in responses.values()
        for content in response["content"].values()
        for code in content.get("examples", ())
    }
    assert {"body_too_large", "too_many_requests", "key_missing"} <= codes
    text = (PAGE / "refusals.js").read_text()
    known = set(re.findall(r"^  (\w+): \(", text, re.MULTILINE))
    assert codes <= known

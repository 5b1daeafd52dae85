"""Refusals as the page words them, in Chromium, before services that refuse."""

from __future__ import annotations

import hashlib
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from page_driver import OpenPage, await_failure, await_result, masks_asked_for, pick
from photos import encoded, scene
from playwright.sync_api import Page, Route, expect
from service_process import fake_service

KEY = "a-key-of-ours"
PHOTO = ("photo.png", encoded(scene()))
MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that asks for a key, takes one request at a time, and no large file."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(hashlib.sha256(KEY.encode()).hexdigest())
    limits = {
        "PURNET_API_KEYS_FILE": str(keys),
        "PURNET_MAX_REQUESTS_IN_FLIGHT": "1",
        "PURNET_MAX_BODY_BYTES": str(MAX_BYTES),
        "PURNET_MAX_PIXELS": "1_000_000",
        "PURNET_RETRY_AFTER_S": "30",
    }
    with fake_service(**limits) as (_, url):
        yield url


def with_key(page: Page) -> None:
    page.add_init_script(f"sessionStorage.setItem('purnet-api-key', '{KEY}')")


@contextmanager
def upload_in_flight(url: str) -> Iterator[None]:
    """Another client's request, which is admitted and does not end."""
    parts = urlsplit(url)
    head = f"POST /v1/mask HTTP/1.1\r\nHost: x\r\nX-Api-Key: {KEY}\r\nExpect: 100-continue\r\n"
    with socket.create_connection((parts.hostname, parts.port)) as client:
        client.sendall(f"{head}Content-Length: 10\r\n\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 100")
        yield


def test_a_key_is_asked_for_only_where_one_is_needed_and_kept_for_the_tab(
    open_page: OpenPage, strict: str
) -> None:
    page = open_page(strict)
    field = page.get_by_label("This server asks for an API key.")
    expect(field).to_be_hidden()
    pick(page, PHOTO)
    expect(field).to_be_focused()
    field.fill("wrong")
    page.keyboard.press("Enter")
    field = page.get_by_label("The server does not know this API key.")
    expect(field).to_be_focused()
    assert page.evaluate("sessionStorage.length") == 0
    field.fill(KEY)
    page.get_by_role("button", name="Use this key").click()
    await_result(page)
    expect(page.locator("#key-form")).to_be_hidden()
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [
        1,
        0,
        "",
    ]
    page.reload()
    pick(page, PHOTO)
    await_result(page)


def test_a_late_refusal_of_an_old_key_forgets_no_new_one(open_page: OpenPage, strict: str) -> None:
    page = open_page(strict)
    old: list[Route] = []

    def hold_the_first(route: Route) -> None:
        old.append(route) if not old else route.continue_()

    page.route("**/v1/mask", hold_the_first)
    with page.expect_request("**/v1/mask"):
        pick(page, PHOTO)
    page.evaluate(f"sessionStorage.setItem('purnet-api-key', '{KEY}')")
    old[0].fulfill(status=403, json={"code": "key_unknown", "status": 403, "detail": "No."})
    await_result(page)
    expect(page.locator("#key-form")).to_be_hidden()


def test_a_refusal_that_is_not_of_the_service_asks_for_no_key(
    open_page: OpenPage, strict: str
) -> None:
    page = open_page(strict, with_key)
    page.route("**/v1/mask", lambda route: route.fulfill(status=403, body="<h1>Forbidden</h1>"))
    pick(page, PHOTO)
    failure = await_failure(page, "An answer this page does not know")
    expect(failure.get_by_role("button", name="Try again")).to_be_visible()
    expect(page.locator("#key-form")).to_be_hidden()
    assert page.evaluate("sessionStorage.length") == 1


def test_a_key_that_no_header_can_hold_is_unknown(open_page: OpenPage, strict: str) -> None:
    page = open_page(strict)
    pick(page, PHOTO)
    page.locator("#key").fill("\u043a\u043b\u044e\u0447")
    page.keyboard.press("Enter")
    expect(page.get_by_label("The server does not know this API key.")).to_be_visible()


def test_a_busy_server_is_asked_again_when_it_said(open_page: OpenPage, strict: str) -> None:
    page = open_page(strict, lambda one: (with_key(one), one.clock.install(time=0)))
    page.clock.pause_at(1000)
    asked = masks_asked_for(page)
    with upload_in_flight(strict):
        pick(page, PHOTO)
        failure = await_failure(page, "The server is busy")
        countdown = failure.locator(".countdown")
        expect(countdown).to_have_text("Trying again in 30 seconds.")
        page.clock.run_for(29_000)
        expect(countdown).to_have_text("Trying again in 1 second.")
        expect(page.locator("#strip .state")).to_have_text("Again in 1 second")
        assert len(asked) == 1
        page.clock.run_for(1000)
        expect(countdown).to_have_text("Trying again in 30 seconds.")
        assert len(asked) == 2
    failure.get_by_role("button", name="Try now").click()
    await_result(page)
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("name", "data", "title", "reason"),
    [
        ("empty.png", b"", "This file is empty", "It has no bytes."),
        (
            "large.bmp",
            bytes(250_000),
            "This file is too large",
            "It has 250 kB; this server takes up to 100 kB.",
        ),
        (
            "wide.png",
            encoded(scene(2000, 1000)),
            "This photo has too many pixels",
            "up to 1 megapixels",
        ),
        ("cut.png", encoded(scene())[:200], "This photo is damaged", "The PNG image is cut short."),
    ],
)
def test_what_is_wrong_with_a_file_is_said_plainly(
    open_page: OpenPage, strict: str, name: str, data: bytes, title: str, reason: str
) -> None:
    page = open_page(strict, with_key)
    pick(page, (name, data))
    failure = await_failure(page, title)
    expect(failure.locator(".reason")).to_contain_text(reason)
    expect(failure.get_by_role("button")).to_be_hidden()
    expect(page.get_by_role("status")).to_have_text(f"{name}: {title}.")


def test_a_server_that_is_gone_is_named_and_may_be_tried_again(open_page: OpenPage) -> None:
    with fake_service() as (service, url):
        page = open_page(url)
        service.signal(signal.SIGKILL)
        service.wait()
        pick(page, PHOTO)
        failure = await_failure(page, "The server cannot be reached")
        expect(failure.locator(".countdown")).to_contain_text("Trying again in")
        failure.get_by_role("button", name="Try now").click()
        await_failure(page, "The server cannot be reached")
        page.get_by_role("button", name="Remove").click()
        page.get_by_role("button", name="Try this photo").click()
        expect(page.get_by_role("status")).to_contain_text("sample photo cannot be loaded")


def test_an_answer_of_something_else_is_no_mystery(open_page: OpenPage, strict: str) -> None:
    page = open_page(strict, with_key)
    page.route("**/v1/mask", lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    pick(page, PHOTO)
    failure = await_failure(page, "An answer this page does not know")
    expect(failure.locator(".reason")).to_contain_text("status 502")


def test_progress_is_that_of_the_upload(open_page: OpenPage, strict: str) -> None:
    page = open_page(strict, with_key)
    page.evaluate(
        """() => {
          window.told = [];
          const state = () => document.querySelector("#strip .state")?.textContent;
          new MutationObserver(() => window.told.push(state()))
            .observe(document.querySelector("#strip"), {childList: true, subtree: true});
        }"""
    )
    pick(page, PHOTO)
    await_result(page)
    told = list(dict.fromkeys(page.evaluate("window.told")))
    assert told[0] == "Sending, 0 %"
    assert told[-2:] == ["Finding the object", "Done"]


def test_a_photo_that_is_removed_is_not_waited_for(open_page: OpenPage, tmp_path: Path) -> None:
    with fake_service(PURNET_FAKE_GATE="closed") as (service, url):
        page = open_page(url)
        pick(page, PHOTO)
        service.await_line("asked", service.lines)
        with page.expect_event("requestfailed"):
            page.get_by_role("button", name="Remove").click()
        expect(page.get_by_role("button", name="Choose photos")).to_be_visible()

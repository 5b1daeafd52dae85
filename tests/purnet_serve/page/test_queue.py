"""Photos in a row whose requests are lost, refused or answered in unknown ways, in Chromium."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_driver import OpenPage, await_failure, await_result, masks_asked_for, pick
from photos import encoded, scene
from playwright.sync_api import Page, Route, expect
from service_process import fake_service

KEY = "a-key-of-ours"
DATA = encoded(scene())
THREE = tuple((f"{name}.png", DATA) for name in "abc")
MASKS = "**/v1/mask*"
GONE = "The server cannot be reached"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_service() as (_, url):
        yield url


@pytest.fixture(scope="module")
def with_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A service that asks for a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(hashlib.sha256(KEY.encode()).hexdigest())
    with fake_service(PURNET_API_KEYS_FILE=str(keys)) as (_, url):
        yield url


def stopped_clock(page: Page) -> None:
    """From the opening of the page on; it goes on only as a test says."""
    page.clock.install(time=0)


def refuse_all(page: Page, status: int, code: str, *, retry_after_s: int) -> None:
    """Every photo gets this error, until the route of `MASKS` is taken away."""
    problem = {"code": code, "status": status, "detail": "Not now."}
    headers = {"Retry-After": str(retry_after_s)}
    page.route(MASKS, lambda route: route.fulfill(status=status, json=problem, headers=headers))


def test_a_lost_connection_pauses_photos_and_fails_none(open_page: OpenPage, url: str) -> None:
    page = open_page(url, stopped_clock)
    page.clock.pause_at(1000)
    page.route(MASKS, lambda route: route.abort())
    pick(page, *THREE)
    failure = await_failure(page, GONE)
    asked = masks_asked_for(page)
    for wait_s in ("1 second", "2 seconds", "4 seconds", "8 seconds", "10 seconds", "10 seconds"):
        expect(failure.locator(".countdown")).to_have_text(f"Trying again in {wait_s}.")
        expect(page.locator("#strip .state")).to_have_text([f"Again in {wait_s}"] * 2 + ["Waiting"])
        page.clock.run_for(int(wait_s.split()[0]) * 1000)
    expect(failure.locator(".countdown")).to_have_text("Trying again in 10 seconds.")
    expect(page.locator("#strip .state")).to_have_text(["Again in 10 seconds"] * 2 + ["Waiting"])
    assert len(asked) == 12
    page.unroute(MASKS)
    failure.get_by_role("button", name="Try now").click()
    await_result(page)
    expect(page.locator("#strip .state")).to_have_text(["Done", "Again in 10 seconds", "Done"])
    page.clock.run_for(10_000)
    expect(page.locator("#strip .state")).to_have_text(["Done"] * 3)


def test_a_server_that_stays_away_fails_a_photo_after_three_minutes(
    open_page: OpenPage, url: str
) -> None:
    page = open_page(url, stopped_clock)
    page.clock.pause_at(1000)
    page.route(MASKS, lambda route: route.abort())
    pick(page, *THREE[:1])
    failure = await_failure(page, GONE)
    expect(failure.get_by_role("button", name="Try now")).to_be_visible()
    page.clock.fast_forward(179_000)
    expect(page.locator("#strip .state")).to_have_text("Again in 2 seconds")
    page.clock.run_for(2000)
    expect(page.locator("#strip .state")).to_have_text(GONE)
    expect(failure.locator(".countdown")).to_be_empty()
    failure.get_by_role("button", name="Try again").click()
    expect(failure.locator(".countdown")).to_have_text("Trying again in 1 second.")


def test_a_network_that_is_back_is_used_at_once(open_page: OpenPage, url: str) -> None:
    page = open_page(url, stopped_clock)
    page.clock.pause_at(1000)
    page.context.set_offline(True)
    pick(page, *THREE)
    failure = await_failure(page, GONE)
    page.clock.fast_forward(200_000)  # without a network of its own it gives up on no server
    expect(failure.locator(".countdown")).to_have_text("Trying again in 2 seconds.")
    page.context.set_offline(False)
    await_result(page)
    expect(page.locator("#strip .state")).to_have_text(["Done"] * 3)


def test_a_wait_that_is_longer_than_the_limit_is_a_refusal(open_page: OpenPage, url: str) -> None:
    page = open_page(url, stopped_clock)
    page.clock.pause_at(1000)
    refuse_all(page, 503, "not_ready", retry_after_s=86400)
    pick(page, *THREE)
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    expect(page.locator("#strip")).not_to_contain_text("Again in")


def test_a_server_that_starts_is_waited_for(open_page: OpenPage, url: str) -> None:
    page = open_page(url, stopped_clock)
    page.clock.pause_at(1000)
    refuse_all(page, 503, "not_ready", retry_after_s=1)
    pick(page, *THREE[:1])
    for _ in range(25):
        expect(page.locator("#strip .state")).to_have_text("Again in 1 second")
        with page.expect_request(MASKS):
            page.clock.run_for(1000)
    expect(page.locator("#strip .state")).to_have_text("Again in 1 second")
    page.unroute(MASKS)
    page.clock.run_for(1000)
    await_result(page)


def test_a_file_that_was_deleted_is_not_a_server_that_is_gone(
    open_page: OpenPage, url: str, tmp_path: Path
) -> None:
    page = open_page(url, stopped_clock)
    page.clock.pause_at(1000)
    page.route(MASKS, lambda route: route.abort())
    file = tmp_path / "photo.png"
    file.write_bytes(DATA)
    page.locator("#files").set_input_files(file)
    await_failure(page, GONE)
    file.unlink()
    page.clock.run_for(1000)
    failure = await_failure(page, "This file can no longer be read")
    expect(failure.get_by_role("button")).to_be_hidden()


def test_no_photo_is_sent_while_a_key_is_needed(open_page: OpenPage, with_keys: str) -> None:
    page = open_page(with_keys)
    asked = masks_asked_for(page)
    states = page.locator("#strip .state")
    pick(page, *THREE)
    missing, unknown = "This server asks for an API key", "The server does not know this API key"
    expect(states).to_have_text([missing, missing, "Waiting"])
    assert len(asked) == 2  # both were sent before the first answer
    page.get_by_label(f"{missing}.").fill("wrong")
    page.keyboard.press("Enter")
    expect(states).to_have_text([unknown, unknown, "Waiting"])
    field = page.get_by_label(f"{unknown}.")
    expect(field).to_be_focused()
    assert [one.headers.get("x-api-key") for one in asked] == [None, None, "wrong", "wrong"]
    field.fill(KEY)
    page.keyboard.press("Enter")
    expect(states).to_have_text(["Done"] * 3)
    assert [one.headers.get("x-api-key") for one in asked[4:]] == [KEY] * 3


def test_a_photo_that_needs_a_key_holds_no_other_once_it_is_removed(
    open_page: OpenPage, with_keys: str
) -> None:
    page = open_page(with_keys)
    pick(page, *THREE)
    expect(page.locator("#strip [data-state=needsKey]")).to_have_count(2)
    page.evaluate(f"sessionStorage.setItem('purnet-api-key', '{KEY}')")
    for _ in range(2):
        page.get_by_role("button", name="Remove").click()
    expect(page.locator("#strip .state")).to_have_text("Done")


@pytest.mark.parametrize("body", ["null", "7", '"text"', "[]", '{"code": "constructor"}'])
def test_an_error_in_any_form_ends_a_photo_and_frees_its_place(
    open_page: OpenPage, url: str, body: str
) -> None:
    page = open_page(url)
    page.route(
        MASKS,
        lambda route: route.fulfill(status=500, body=body, content_type="application/json"),
    )
    pick(page, *THREE)
    unknown = "An answer this page does not know"
    expect(page.locator("#strip .state")).to_have_text([unknown] * 3)
    page.unroute(MASKS)
    await_failure(page, unknown).get_by_role("button", name="Try again").click()
    await_result(page)


def test_a_page_in_place_of_a_mask_is_no_result(open_page: OpenPage, url: str) -> None:
    page = open_page(url)
    sign_in = "<h1>Sign in to this network</h1>"
    page.route(MASKS, lambda route: route.fulfill(body=sign_in, content_type="text/html"))
    pick(page, *THREE[:1])
    failure = await_failure(page, "An answer this page does not know")
    expect(failure.locator(".reason")).to_contain_text("status 200")


def test_a_fault_of_the_page_itself_fails_the_photo(open_page: OpenPage, url: str) -> None:
    broken = """
      const send = XMLHttpRequest.prototype.send;
      XMLHttpRequest.prototype.send = function () {
        XMLHttpRequest.prototype.send = send;
        throw new TypeError("as a browser without it");
      };
      console.error = () => {};
    """
    page = open_page(url, lambda one: one.add_init_script(broken))
    pick(page, *THREE[:1])
    failure = await_failure(page, "Something went wrong on this page")
    failure.get_by_role("button", name="Try again").click()
    await_result(page)


def test_a_countdown_follows_the_clock_where_timers_are_slow(open_page: OpenPage, url: str) -> None:
    page = open_page(url, stopped_clock)
    page.clock.pause_at(1000)
    refuse_all(page, 429, "too_many_requests", retry_after_s=30)
    pick(page, *THREE[:1])
    countdown = await_failure(page, "The server is busy").locator(".countdown")
    expect(countdown).to_have_text("Trying again in 30 seconds.")
    seen_again = "document.dispatchEvent(new Event('visibilitychange'))"
    page.clock.set_system_time(1020)  # no timer has run, as in a tab that is hidden
    page.evaluate(seen_again)
    expect(countdown).to_have_text("Trying again in 10 seconds.")
    page.unroute(MASKS)
    page.clock.set_system_time(1030)
    page.evaluate(seen_again)
    await_result(page)


def test_a_server_that_says_nothing_is_given_up(open_page: OpenPage) -> None:
    with fake_service(PURNET_FAKE_GATE="closed") as (service, url):
        page = open_page(url, stopped_clock)
        page.clock.pause_at(1000)
        pick(page, *THREE[:1])
        service.await_line("asked", service.lines)
        expect(page.locator("#strip .state")).to_have_text("Finding the object")
        page.clock.run_for(119_000)
        expect(page.locator("#strip .state")).to_have_text("Finding the object")
        page.clock.run_for(1000)
        failure = await_failure(page, "The server does not answer")
        expect(failure.locator(".reason")).to_have_text(
            "Nothing was sent or received for two minutes."
        )


def test_an_upload_that_goes_on_is_never_too_long(open_page: OpenPage, url: str) -> None:
    keep = """
      const send = XMLHttpRequest.prototype.send;
      XMLHttpRequest.prototype.send = function (body) {
        window.sent = this;
        send.call(this, body);
      };
    """
    held: list[Route] = []
    page = open_page(url, lambda one: (one.add_init_script(keep), one.clock.install(time=0)))
    page.clock.pause_at(1000)
    page.route(MASKS, lambda route: held.append(route))
    with page.expect_request(MASKS):
        pick(page, *THREE[:1])
    for percent in (10, 20, 30):
        page.clock.run_for(100_000)
        page.evaluate(
            """loaded => window.sent.upload.dispatchEvent(
              new ProgressEvent("progress", {lengthComputable: true, loaded, total: 100}))""",
            percent,
        )
        expect(page.locator("#strip .state")).to_have_text(f"Sending, {percent} %")
    held[0].continue_()
    await_result(page)

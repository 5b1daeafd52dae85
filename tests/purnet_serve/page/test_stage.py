"""The stage when another photo is chosen, a picture cannot be opened, or a button goes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from page_driver import (
    OpenPage,
    await_failure,
    await_result,
    choose,
    download,
    masks_asked_for,
    pick,
)
from photos import encoded, scene
from playwright.sync_api import Page, Route, expect
from service_process import fake_service

DATA = encoded(scene())
HEIC = (Path(__file__).parents[2] / "data" / "pictures" / "scene.heic").read_bytes()
MASKS = "**/v1/mask*"
HOLD_DECODING = """
  const decode = HTMLImageElement.prototype.decode;
  HTMLImageElement.prototype.decode = async function () {
    await window.held;
    return decode.call(this);
  };
"""


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_service() as (_, url):
        yield url


def select(page: Page, name: str) -> None:
    page.locator("#strip button", has_text=name).click()


def broken_mask(route: Route) -> None:
    route.fulfill(
        body=b"no picture",
        content_type="image/png",
        headers={"X-Width": "96", "X-Height": "64", "X-Model-Version": "1"},
    )


def test_a_mask_that_cannot_be_opened_is_a_failure_and_no_other_photo_s_progress(
    open_page: OpenPage, url: str
) -> None:
    page = open_page(url, lambda one: one.add_init_script(HOLD_DECODING))
    pick(page, ("good.png", DATA))
    await_result(page)
    page.route(MASKS, broken_mask)
    pick(page, ("bad.png", DATA), button="Add")
    failure = await_failure(page, "The result cannot be shown")
    expect(failure).to_be_visible()
    expect(page.locator("#strip .state")).to_have_text(["Done", "Done"])
    waiting: list[Route] = []
    page.unroute(MASKS)
    page.route(MASKS, lambda route: waiting.append(route))
    with page.expect_request(MASKS):
        pick(page, ("slow.png", DATA), button="Add")
    expect(page.locator(".busy p")).to_have_text("Sending, 0 %")
    page.evaluate("() => { window.held = new Promise((resolve) => { window.go = resolve }) }")
    select(page, "bad.png")
    expect(page.locator(".busy p")).to_have_text("Opening")
    expect(page.locator("#stage")).to_have_attribute("data-phase", "busy")
    page.evaluate("() => window.go()")
    expect(page.locator("#stage")).to_have_attribute("data-phase", "failure")
    expect(failure.get_by_role("heading")).to_have_text("The result cannot be shown")
    select(page, "good.png")
    expect(page.locator("#stage")).to_have_attribute("data-phase", "done")
    waiting[0].continue_()
    expect(page.locator("#strip .state")).to_have_text(["Done"] * 3)
    expect(page.locator("#stage")).to_have_attribute("data-phase", "done")


def test_showing_may_be_tried_again(open_page: OpenPage, url: str) -> None:
    fail_once = """
      const decode = HTMLImageElement.prototype.decode;
      HTMLImageElement.prototype.decode = async function () {
        if (this.src === window.broken) throw new DOMException("no memory", "EncodingError");
        return decode.call(this);
      };
      const create = URL.createObjectURL;
      URL.createObjectURL = (blob) => {
        const url = create(blob);
        if (!(blob instanceof File) && !window.mended) window.broken = url;
        return url;
      };
    """
    page = open_page(url, lambda one: one.add_init_script(fail_once))
    pick(page, ("photo.png", DATA))
    failure = await_failure(page, "The result cannot be shown")
    page.evaluate("() => { window.mended = true }")
    failure.get_by_role("button", name="Try again").click()
    await_result(page)


def test_where_the_photo_is_too_large_to_decode_the_server_makes_the_cutout(
    open_page: OpenPage, url: str
) -> None:
    page = open_page(url)
    pick(page, ("photo.png", DATA))
    await_result(page)
    page.evaluate(
        """() => {
          window.createImageBitmap = async () => {
            throw new DOMException("too large", "InvalidStateError");
          };
        }"""
    )
    asked = masks_asked_for(page)
    download(page)
    assert ["output=cutout" in one.url for one in asked] == [True]


def test_what_cannot_be_displayed_is_never_blurred(open_page: OpenPage, url: str) -> None:
    page = open_page(url, permissions=["clipboard-read", "clipboard-write"])
    pick(page, ("photo.png", DATA))
    await_result(page)
    choose(page, "Blurred")
    expect(page.locator("#stage")).to_have_attribute("data-backdrop", "blur")
    assert (download(page)[1][..., 3] == 255).all()
    pick(page, ("scene.heic", HEIC), button="Add")
    expect(page.locator("#note")).to_contain_text("This browser cannot display this format")
    await_result(page)
    expect(page.locator("#stage")).to_have_attribute("data-backdrop", "none")
    shown = page.locator(".after canvas").evaluate(
        """(one) => one.getContext("2d").getImageData(0, 0, one.width, one.height).data
          .filter((_, at) => at % 4 === 3).some((alpha) => alpha < 255)"""
    )
    assert shown
    assert not (download(page)[1][..., 3] == 255).all()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("status")).to_have_text("The cutout is copied.")
    opaque = page.evaluate(
        """async () => {
          const [item] = await navigator.clipboard.read();
          const picture = await createImageBitmap(await item.getType("image/png"));
          const paint = new OffscreenCanvas(picture.width, picture.height).getContext("2d");
          paint.drawImage(picture, 0, 0);
          return paint.getImageData(0, 0, picture.width, picture.height).data
            .every((level, at) => at % 4 !== 3 || level === 255);
        }"""
    )
    assert not opaque
    select(page, "photo.png")
    expect(page.locator("#stage")).to_have_attribute("data-backdrop", "blur")


def test_only_the_last_cutouts_of_what_cannot_be_displayed_are_kept(
    open_page: OpenPage, url: str
) -> None:
    page = open_page(url)
    names = [f"{letter}.heic" for letter in "abcde"]
    pick(page, *((name, HEIC) for name in names))
    expect(page.locator("#strip .state")).to_have_text(["Done"] * 5)
    page.wait_for_function(
        "() => [...document.querySelectorAll('.thumbnail')].every(({width}) => width > 1)"
    )
    asked = masks_asked_for(page)
    select(page, "e.heic")
    await_result(page)
    assert asked == []
    select(page, "b.heic")
    await_result(page)
    assert ["output=cutout" in one.url for one in asked] == [True]
    choose(page, "Mask")
    download(page)
    assert len(asked) == 1


def test_the_focus_stays_where_the_button_was(open_page: OpenPage, url: str) -> None:
    page = open_page(url, lambda one: one.clock.install(time=0))
    page.clock.pause_at(1000)
    page.route(MASKS, lambda route: route.abort())
    pick(page, ("photo.png", DATA))
    countdown = await_failure(page, "The server cannot be reached").locator(".countdown")
    section = page.get_by_role("region", name="Photo and result")
    button = page.get_by_role("button", name="Try now")
    button.focus()
    page.keyboard.press("Enter")
    expect(section).to_be_focused()
    expect(countdown).to_have_text("Trying again in 1 second.")
    page.keyboard.press("Tab")
    expect(button).to_be_focused()
    page.clock.run_for(1000)  # the countdown ends
    expect(section).to_be_focused()
    expect(countdown).to_have_text("Trying again in 2 seconds.")
    page.keyboard.press("Tab")
    expect(button).to_be_focused()


def test_a_sample_that_is_not_there_is_no_photo(open_page: OpenPage, url: str) -> None:
    page = open_page(url)
    page.route("**/page/sample.jpg", lambda route: route.fulfill(status=404, body="none"))
    page.get_by_role("button", name="Try this photo").click()
    expect(page.get_by_role("status")).to_contain_text("The sample photo cannot be loaded.")
    expect(page.locator("#workspace")).to_be_hidden()

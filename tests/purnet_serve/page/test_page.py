"""The page as people use it, in Chromium, before the service with the shipped weights."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
import skimage
from page_driver import (
    OpenPage,
    await_result,
    choose,
    download,
    give,
    masks_asked_for,
    pick,
    slide,
    split,
)
from photos import encoded, opened, with_orientation
from PIL import Image
from playwright.sync_api import Page, expect
from service_process import END_S, running

PICTURES = Path(__file__).parents[2] / "data" / "pictures"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    purnet = str(Path(sys.executable).parent / "purnet")
    with running([purnet, "serve", "--port", "0", "--device", "cpu"]) as process:
        yield process.await_line("ready at", process.lines).split()[4]
        process.signal(signal.SIGTERM)
        assert process.wait() == 0


@pytest.fixture(scope="module")
def cat() -> bytes:
    return (Path(skimage.__file__).parent / "data" / "chelsea.png").read_bytes()


def from_server(url: str, photo: bytes, **query: object) -> np.ndarray:
    answer = httpx.post(
        f"{url}/v1/mask", content=photo, params=query, timeout=END_S, trust_env=False
    )
    assert answer.status_code == 200
    return np.asarray(opened(answer.content))


def roughness(pixels: np.ndarray, where: np.ndarray) -> float:
    """How much one row differs from the next, on average."""
    return float(np.abs(np.diff(pixels.astype(float), axis=0))[where[1:]].mean())


def test_the_sample_photo_gives_a_cutout_and_nothing_else_is_contacted(
    open_page: OpenPage, url: str
) -> None:
    contacted: set[str] = set()
    page = open_page(url, lambda one: one.on("request", lambda sent: contacted.add(sent.url)))
    page.get_by_role("button", name="Try this photo").click()
    await_result(page)
    expect(page.locator("#caption")).to_contain_text("coffee.jpg, 600 \u00d7 400 pixels")
    expect(page.get_by_role("img", name="Cutout of coffee.jpg")).to_be_visible()
    expect(page.get_by_role("status")).to_have_text("coffee.jpg: the mask is ready.")
    assert all(one.removeprefix("blob:").startswith(url) for one in contacted)


def test_photos_come_by_dialogue_camera_drop_and_paste(
    open_page: OpenPage, url: str, cat: bytes
) -> None:
    page = open_page(url, has_touch=True, is_mobile=True)
    assert page.locator("#camera").get_attribute("capture") == "environment"
    pick(page, ("camera.png", cat), button="Take a photo")
    pick(page, ("picked.png", cat), button="Add")
    give(page, "dragenter", ("dropped.png", cat))
    expect(page.locator("#drop-hint")).to_be_visible()
    give(page, "drop", ("dropped.png", cat))
    expect(page.locator("#drop-hint")).to_be_hidden()
    give(page, "paste", ("pasted.png", cat))
    names = ["camera.png", "picked.png", "dropped.png", "pasted.png"]
    expect(page.locator("#strip .name")).to_have_text(names)
    expect(page.locator("#strip .state")).to_have_text(["Done"] * 4)
    give(page, "paste")
    expect(page.get_by_role("status")).to_contain_text("That was no file.")


def test_downloads_are_what_the_server_answers_for_the_photo(
    open_page: OpenPage, url: str, cat: bytes
) -> None:
    page = open_page(url)
    pick(page, ("my cat.png", cat))
    await_result(page)
    name, cutout = download(page)
    assert name == "my cat-cutout.png"
    wanted = from_server(url, cat, output="cutout")
    assert np.array_equal(cutout[..., 3], wanted[..., 3])
    kept = wanted[..., 3] >= 128  # a canvas rounds the colour of what is more transparent
    assert np.abs(cutout[kept].astype(int) - wanted[kept]).max() <= 1
    choose(page, "Mask")
    name, mask = download(page)
    assert name == "my cat-mask.png"
    assert np.array_equal(mask, from_server(url, cat))


def test_the_threshold_acts_in_the_browser_as_the_server_s_would(
    open_page: OpenPage, url: str, cat: bytes
) -> None:
    page = open_page(url)
    pick(page, ("cat.png", cat))
    await_result(page)
    asked = masks_asked_for(page)
    choose(page, "Mask")
    slide(page, "#threshold", "128")
    expect(page.locator("#threshold-value")).to_have_text("128 and more")
    page.wait_for_function(
        """() => {
          const shown = document.querySelector(".after canvas");
          const {data} = shown.getContext("2d").getImageData(0, 0, shown.width, shown.height);
          return data.every((level) => level === 0 || level === 255);
        }"""
    )
    mask = download(page)[1][..., 0]
    assert np.array_equal(mask, from_server(url, cat, threshold=128))
    choose(page, "Cutout")
    cutout = download(page)[1]
    assert np.array_equal(cutout, from_server(url, cat, output="cutout", threshold=128))
    assert asked == []


def test_a_colour_or_a_blurred_copy_lies_behind_the_cutout(
    open_page: OpenPage, url: str, cat: bytes
) -> None:
    page = open_page(url)
    pick(page, ("cat.png", cat))
    await_result(page)
    checks = page.locator(".after").evaluate("one => getComputedStyle(one).backgroundImage")
    assert "conic-gradient" in checks
    alpha = from_server(url, cat)
    left_out = alpha == 0
    choose(page, "Colour")
    slide(page, "#colour", "#20a0f0")
    coloured = download(page)[1]
    assert np.all(coloured[left_out][:, :3] == (0x20, 0xA0, 0xF0))
    choose(page, "Blurred")
    blurred = download(page)[1]
    photo = np.asarray(opened(cat).convert("RGB")).astype(float)
    assert np.all(coloured[..., 3] == 255)
    assert np.all(blurred[..., 3] == 255)
    # Like the photo on the whole, and without its detail.
    difference = blurred[left_out][:, :3] - photo[left_out]
    assert np.abs(difference.mean(axis=0)).max() < 12
    assert roughness(blurred[..., :3], left_out) < roughness(photo, left_out) / 2


def test_the_divider_follows_pointer_and_keys(open_page: OpenPage, url: str, cat: bytes) -> None:
    page = open_page(url)
    pick(page, ("cat.png", cat))
    await_result(page)
    box = page.locator(".frame").bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] / 2, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, middle)
    page.mouse.up()
    assert split(page) == pytest.approx(25, abs=0.5)
    slider = page.get_by_role("slider", name="Divider")
    expect(slider).to_be_focused()
    page.keyboard.press("ArrowRight")
    assert split(page) == 26
    expect(slider).to_have_attribute("aria-valuetext", "26 % original")
    page.keyboard.press("End")
    assert split(page) == 100
    choose(page, "Original")
    expect(page.locator(".handle")).to_be_hidden()
    choose(page, "Mask")
    expect(page.get_by_role("img", name="Mask of cat.png")).to_be_visible()


def test_what_is_shown_can_be_copied(open_page: OpenPage, url: str, cat: bytes) -> None:
    page = open_page(url, permissions=["clipboard-read", "clipboard-write"])
    pick(page, ("cat.png", cat))
    await_result(page)
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("status")).to_have_text("The cutout is copied.")
    copied = page.evaluate(
        """async () => {
          const [item] = await navigator.clipboard.read();
          const picture = await createImageBitmap(await item.getType("image/png"));
          return [picture.width, picture.height];
        }"""
    )
    assert copied == [451, 300]


def test_several_photos_in_a_row_each_with_its_end(
    open_page: OpenPage, url: str, cat: bytes
) -> None:
    page = open_page(url)
    pick(page, ("a.png", cat), ("notes.txt", b"not a photo"), ("b.png", cat), ("c.png", cat))
    states = page.locator("#strip .state")
    refused = "This is not a photo the server can read"
    expect(states).to_have_text(["Done", refused, "Done", "Done"])
    page.locator("#strip button", has_text="notes.txt").click()
    failure = page.locator(".failure")
    expect(failure.get_by_role("heading")).to_have_text(refused)
    expect(failure.locator(".reason")).to_contain_text("text")
    expect(failure.locator(".trace")).to_contain_text("unsupported_media, request ")
    expect(failure.get_by_role("button")).to_be_hidden()
    expect(page.locator("[data-download]")).to_be_disabled()
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#strip .name")).to_have_text(["a.png", "b.png", "c.png"])
    expect(page.locator("#caption")).to_contain_text("b.png")
    for _ in range(3):
        page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("button", name="Choose photos")).to_be_focused()


def test_where_the_time_went_is_what_the_server_measured(
    open_page: OpenPage, url: str, cat: bytes
) -> None:
    page = open_page(url)
    with page.expect_response("**/v1/mask") as answered:
        pick(page, ("cat.png", cat))
    await_result(page)
    measured = dict(re.findall(r"(\w+);dur=([\d.]+)", answered.value.headers["server-timing"]))
    assert set(measured) == {"receive", "decode", "queue", "infer", "encode"}
    for stage, ms in measured.items():
        shown = page.locator(f"#timings dl [data-stage={stage}] dd").inner_text()
        assert float(shown.split()[0]) == pytest.approx(float(ms), abs=0.51)
    expect(page.locator("#timings dl [data-stage=rest] dt")).to_have_text("Network and browser")


def test_a_photo_is_shown_and_cut_out_as_displayed(
    open_page: OpenPage, url: str, cat: bytes
) -> None:
    page = open_page(url)
    turned = encoded(opened(cat).convert("RGB"), "JPEG", exif=with_orientation(6))
    pick(page, ("turned.jpg", turned))
    await_result(page)
    expect(page.locator("#caption")).to_contain_text("300 \u00d7 451 pixels")
    size = page.locator("canvas.before").evaluate("one => [one.width, one.height]")
    assert size == [300, 451]
    cutout = download(page)[1]
    assert np.array_equal(cutout[..., 3], from_server(url, turned))


def test_a_format_that_the_browser_cannot_display_is_cut_out_all_the_same(
    open_page: OpenPage, url: str
) -> None:
    photo = (PICTURES / "scene.heic").read_bytes()
    page = open_page(url)
    pick(page, ("scene.heic", photo))
    await_result(page)
    expect(page.locator("#note")).to_contain_text("This browser cannot display this format")
    expect(page.get_by_role("radio", name="Blurred")).to_be_disabled()
    cutout, wanted = download(page)[1], from_server(url, photo, output="cutout")
    assert np.array_equal(cutout[..., 3], wanted[..., 3])
    choose(page, "Mask")
    assert np.array_equal(download(page)[1], from_server(url, photo))


def test_a_photo_too_large_for_the_browser_s_canvas_is_cut_out_by_the_server(
    open_page: OpenPage, url: str, cat: bytes
) -> None:
    none = "HTMLCanvasElement.prototype.toBlob = (done) => done(null);"
    page = open_page(url, lambda one: one.add_init_script(none))
    pick(page, ("cat.png", cat))
    await_result(page)
    slide(page, "#threshold", "100")
    cutout = download(page)[1]
    assert np.array_equal(cutout, from_server(url, cat, output="cutout", threshold=100))
    choose(page, "Blurred")
    page.locator("[data-download]").click()
    expect(page.get_by_role("status")).to_contain_text("may be too large for this browser")


def test_a_transparent_picture_stays_transparent(open_page: OpenPage, url: str, cat: bytes) -> None:
    pixels = np.dstack([np.asarray(opened(cat).convert("RGB")), np.full((300, 451), 255, np.uint8)])
    pixels[:, 200:, 3] = 0
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    page = open_page(url)
    pick(page, ("half.png", file.getvalue()))
    await_result(page)
    wanted = from_server(url, file.getvalue(), output="cutout")
    assert np.array_equal(download(page)[1][..., 3], wanted[..., 3])


def test_it_works_by_keys_alone(open_page: OpenPage, url: str) -> None:
    page = open_page(url)
    order = []
    for _ in range(3):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.innerText.trim()"))
    assert order == ["Use it from code", "Choose photos", "Try this photo"]
    page.keyboard.press("Enter")
    await_result(page)
    expect(page.locator("#strip button")).to_be_focused()
    seen = [_next(page) for _ in range(6)]
    assert seen == ["view", "threshold", "backdrop", "download", "copy", ""]
    page.locator("[name=view]:checked").focus()
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("radio", name="Mask")).to_be_checked()
    expect(page.get_by_role("img", name="Mask of coffee.jpg")).to_be_visible()


def _next(page: Page) -> str:
    page.keyboard.press("Tab")
    focused = "const {name, id, dataset} = document.activeElement;"
    return str(
        page.evaluate(f"() => {{ {focused} return name || id || Object.keys(dataset)[0] || '' }}")
    )

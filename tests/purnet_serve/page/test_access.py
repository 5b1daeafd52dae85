"""Whether everybody can use the page: axe-core, themes, widths, forced colours, motion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from page_driver import OpenPage, await_result, pick
from photos import encoded, scene
from playwright.sync_api import Page
from service_process import fake_service

WIDTHS = (320, 390, 820, 1440)
PHOTO = ("photo.png", encoded(scene()))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_service() as (_, url):
        yield url


def faults(page: Page) -> list[Any]:
    """What axe-core calls serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        (one["id"], [n["html"] for n in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page: OpenPage, url: str, theme: Any) -> None:
    page = open_page(url, color_scheme=theme)
    assert faults(page) == []
    pick(page, PHOTO, ("notes.txt", b"none"))
    await_result(page)
    page.locator(".segments label", has_text="Colour").click()
    assert faults(page) == []
    page.locator("#strip button", has_text="notes.txt").click()
    page.evaluate("document.querySelector('#key-form').hidden = false")
    assert faults(page) == []


def test_nothing_is_wider_than_the_screen_and_targets_are_large_enough(
    open_page: OpenPage, url: str
) -> None:
    page = open_page(url)
    for _ in range(2):
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            for button in page.get_by_role("button").all():
                box = button.bounding_box()
                assert box is not None
                assert min(box["width"], box["height"]) >= 40
        if page.locator("#stage").is_hidden():
            pick(page, ("a-name-of-a-file-that-has-no-space-in-it-and-is-very-long.png", PHOTO[1]))
            await_result(page)


def test_the_theme_is_that_of_the_system(open_page: OpenPage, url: str) -> None:
    page = open_page(url, color_scheme="light")
    paper = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(paper) != light


def test_forced_colours_show_what_is_chosen(open_page: OpenPage, url: str) -> None:
    page = open_page(url, forced_colors="active")
    pick(page, PHOTO)
    await_result(page)
    background = "one => getComputedStyle(one).backgroundColor"
    chosen = page.locator(".segments :checked + span").first.evaluate(background)
    other = page.locator(".segments :not(:checked) + span").first.evaluate(background)
    assert chosen != other
    assert faults(page) == []


def test_motion_is_left_out_where_it_is_unwanted(open_page: OpenPage, url: str) -> None:
    page = open_page(url)
    pick(page, PHOTO)
    await_result(page)
    name = "one => getComputedStyle(one).animationName"
    assert page.locator("#stage").evaluate(name) == "none"
    page.emulate_media(reduced_motion="no-preference")
    assert page.locator("#stage").evaluate(name) == "reveal"

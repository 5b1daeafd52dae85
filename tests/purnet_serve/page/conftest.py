"""A real Chromium before a running service."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from page_driver import OpenPage
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from tests.conftest import Require

WAIT_MS = 20_000
HOW = "the tests of the page drive Chromium: `apt-get install chromium`, or put one on the path"


@pytest.fixture(scope="module")
def browser(require: Require) -> Iterator[Browser]:
    """Ends with the module: while it is open, no test of this thread can run an event loop."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    require(path, HOW)
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path)
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """`open_page(url, **options of the context)`: the page, which must meet no error of its own."""
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def open_(url: str, before: Callable[[Page], Any] = lambda _: None, **options: Any) -> Page:
        context = browser.new_context(**{"reduced_motion": "reduce", **options})
        contexts.append(context)
        context.set_default_timeout(WAIT_MS)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if _is_ours(message) else 0)
        before(page)
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert errors == []


def _is_ours(message: Any) -> bool:
    """Errors in the console, but for those that Chromium writes of every answer that is no 2xx."""
    return message.type == "error" and "Failed to load resource" not in message.text

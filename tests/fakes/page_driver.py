"""What tests of the web page do with it: give it files, wait for masks, take what it gives."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Callable
from typing import Any

import numpy as np
from photos import opened
from playwright.sync_api import Page, Request, expect

File = tuple[str, bytes]
OpenPage = Callable[..., Page]
_GIVE = """([event, files]) => {
  const data = new DataTransfer();
  for (const {name, type, base64} of files) {
    const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
    data.items.add(new File([bytes], name, {type}));
  }
  const options = {bubbles: true, cancelable: true};
  document.body.dispatchEvent(event === "paste"
    ? new ClipboardEvent("paste", {...options, clipboardData: data})
    : new DragEvent(event, {...options, dataTransfer: data}));
}"""


def give(page: Page, event: str, *files: File) -> None:
    """Drop or paste files: `event` is `dragenter`, `drop` or `paste`."""
    packed = [
        {"name": n, "type": _kind(n), "base64": base64.b64encode(d).decode()} for n, d in files
    ]
    page.evaluate(_GIVE, [event, packed])


def pick(page: Page, *files: File, button: str = "Choose photos") -> None:
    """Choose files in the browser's own dialogue."""
    with page.expect_file_chooser() as chosen:
        page.get_by_role("button", name=button, exact=True).click()
    payload = [{"name": n, "mimeType": _kind(n), "buffer": d} for n, d in files]
    chosen.value.set_files(payload)


def await_result(page: Page) -> None:
    expect(page.locator("#stage")).to_have_attribute("data-phase", "done")
    expect(page.locator("#stage")).to_have_class("stage pictured reveal")


def await_failure(page: Page, title: str) -> Any:
    """The words about a photo that failed."""
    failure = page.locator(".failure")
    expect(failure.get_by_role("heading")).to_have_text(title)
    return failure


def download(page: Page) -> tuple[str, np.ndarray]:
    """Name and pixels of what the download button gives."""
    with page.expect_download() as started:
        page.locator("[data-download]").click()
    return started.value.suggested_filename, np.asarray(opened(started.value.path().read_bytes()))


def choose(page: Page, label: str) -> None:
    """Choose a view or a backdrop, as a click on its words does."""
    page.locator(".segments label", has_text=label).click()


def slide(page: Page, selector: str, value: str) -> None:
    """Set a slider or a colour."""
    page.locator(selector).fill(value)


def split(page: Page) -> float:
    """Where the divider is, in percent from the left."""
    style = page.locator("#stage").evaluate(
        "stage => getComputedStyle(stage).getPropertyValue('--split')"
    )
    return float(style.removesuffix("%"))


def masks_asked_for(page: Page) -> list[Request]:
    """Requests for masks from now on; the list grows."""
    asked: list[Request] = []
    page.on("request", lambda one: asked.append(one) if "/v1/mask" in one.url else None)
    return asked


def _kind(name: str) -> str:
    return mimetypes.guess_type(name)[0] or ""

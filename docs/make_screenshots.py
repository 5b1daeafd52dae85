"""Draw docs/page/*.webp: the web page in three widths and both themes, with a real result on it.

Run it from the root. Text is set in the system's own font, so the pictures differ by machine.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import product
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

HEIGHTS = {390: 844, 820: 1180, 1440: 1000}
"""Height of the window by its width, in CSS pixels."""
TARGET = Path(__file__).parent / "page"


@contextmanager
def service() -> Iterator[str]:
    """The address of a service with the shipped weights."""
    command = [str(Path(sys.executable).parent / "purnet"), "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            yield next(line.split()[4] for line in process.stdout or () if "ready at" in line)
        finally:
            process.terminate()


def shoot(browser: Browser, url: str, width: int, theme: str, state: str) -> None:
    """The page at the `start`, or with the `result` of the sample photo."""
    mobile = width < 1000
    context = browser.new_context(
        viewport={"width": width, "height": HEIGHTS[width]},
        color_scheme="dark" if theme == "dark" else "light",
        has_touch=mobile,
        is_mobile=mobile,
        reduced_motion="reduce",
    )
    page = context.new_page()
    page.goto(url, wait_until="networkidle")
    if state == "result":
        page.get_by_role("button", name="Try this photo").click()
        page.locator("#stage[data-phase=done] .after").wait_for()
        page.locator("#status:not([data-shown])").wait_for(state="attached")
    # Chromium forgets that it plays a phone while it takes a picture larger than the window.
    height = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": width, "height": height})
    save(page.screenshot(), f"{state}-{width}-{theme}")
    context.close()


def save(png: bytes, name: str) -> None:
    """Keep a screenshot as a small WebP."""
    with Image.open(BytesIO(png)) as image:
        image.convert("RGB").save(TARGET / f"{name}.webp", quality=80, method=6)


def main() -> None:
    """All widths, themes and states."""
    TARGET.mkdir(exist_ok=True)
    with service() as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        for shot in product(HEIGHTS, ("light", "dark"), ("start", "result")):
            shoot(browser, url, *shot)
        browser.close()


if __name__ == "__main__":
    main()

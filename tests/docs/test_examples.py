"""What README and docs tell people to copy does what they say, against the real server."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from photos import encoded, opened, scene
from playwright.sync_api import sync_playwright
from service_process import ROOT, fake_service
from tests.conftest import Require

DOCS = ROOT / "docs"
EXAMPLES = DOCS / "examples"
PAGES = [ROOT / "README.md", DOCS / "api.md", DOCS / "clients.md"]
WRITTEN = "http://127.0.0.1:8000"
SECONDS = 60


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with fake_service(PURNET_LOG_LEVEL="error") as (_, address):
        yield address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader stands: `photo.jpg`, and some in `photos`."""
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(encoded(scene(40 + number, 30), "JPEG"))
    (tmp_path / "photo.jpg").write_bytes(encoded(scene(), "JPEG"))
    return tmp_path


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    return done.stdout


def curl_lines() -> list[str]:
    lines = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        lines += [line for line in text.splitlines() if line.startswith("curl ")]
    return lines


def python_blocks() -> list[str]:
    blocks = []
    for page in PAGES:
        blocks += re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in blocks if "purnet_serve.client" in block]


@pytest.mark.parametrize("line", sorted(set(curl_lines())))
def test_each_line_of_curl_gives_a_picture(line: str, url: str, folder: Path) -> None:
    words = shlex.split(line.replace(WRITTEN, url))
    program = shutil.which(words[0])
    assert program is not None
    run([program, "-sS", *words[1:]], folder)
    picture = opened((folder / words[words.index("-o") + 1]).read_bytes())
    assert picture.size == (96, 64)
    assert picture.mode == ("L" if "mask.png" in words else "RGBA")


@pytest.mark.parametrize("block", python_blocks())
def test_each_block_of_python_runs(block: str, url: str, folder: Path) -> None:
    assert WRITTEN in block
    before = {*folder.rglob("*.png")}
    run([sys.executable, "-c", block.replace(WRITTEN, url)], folder)
    made = {*folder.rglob("*.png")} - before
    assert made
    for file in made:
        assert opened(file.read_bytes()).format == "PNG"
    if "client.many" in block:
        assert {file.name for file in made} == {"0.png", "1.png", "2.png"}


def test_the_documents_hold_what_is_run_here() -> None:
    assert len(curl_lines()) >= 7
    assert len(python_blocks()) >= 3


def test_the_program_for_a_folder(url: str, folder: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "folder.py"), "photos", "out", url]
    run(command, folder)
    assert {path.name for path in (folder / "out").iterdir()} == {"0.png", "1.png", "2.png"}
    (folder / "photos" / "3.jpg").write_text("no photo")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 1
    assert "3.jpg" in done.stderr
    assert "unsupported_media" in done.stderr


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not here; Chromium runs it too")
def test_the_program_for_node(url: str, folder: Path) -> None:
    command = ["node", str(EXAMPLES / "cutout.mjs"), "photo.jpg", "cutout.png", url]
    assert "by fake@" in run(command, folder)
    cutout = opened((folder / "cutout.png").read_bytes())
    assert (cutout.mode, cutout.size) == ("RGBA", (96, 64))


def test_the_function_in_a_browser(url: str, folder: Path, require: Require) -> None:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    chromium = next(filter(None, map(shutil.which, names)), None)
    require(chromium, "the example for browsers runs in Chromium: `apt-get install chromium`")
    source = (EXAMPLES / "purnet.mjs").read_text(encoding="utf-8")
    use = """async ([source, url, bytes]) => {
      const blob = new Blob([source], {type: "text/javascript"});
      const {findObject} = await import(URL.createObjectURL(blob));
      const found = await findObject(url, new Blob([new Uint8Array(bytes)]), {output: "cutout"});
      const failed = await findObject(url, new Blob(["text"])).catch((error) => error);
      const shown = await createImageBitmap(found.picture);
      return {size: [shown.width, shown.height], box: found.box, model: found.model,
              code: failed.code, status: failed.status, id: failed.requestId};
    }"""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        page = browser.new_page()
        page.goto(f"{url}/livez")
        photo = list((folder / "photo.jpg").read_bytes())
        found = page.evaluate(use, [source, url, photo])
        browser.close()
    assert (found["size"], found["box"][1:], found["model"]) == (
        [96, 64],
        [0, 96, 64],
        "fake@aaaaaaaaaaaa",
    )
    assert (found["code"], found["status"], len(found["id"])) == ("unsupported_media", 415, 32)

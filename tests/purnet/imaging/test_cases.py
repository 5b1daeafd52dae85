"""Files that people have; `NAME.shown.png` is what a browser shows of one on a white page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from purnet.imaging import open_image

CASES = Path(__file__).parent / "cases"
FILES = sorted(path for path in CASES.iterdir() if not path.name.endswith(".shown.png"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_read_as_a_browser_shows_it(path: Path) -> None:
    read = np.asarray(open_image(path.read_bytes()).convert("RGB")).astype(int)
    shown = np.asarray(Image.open(path.with_suffix(".shown.png")).convert("RGB")).astype(int)
    assert read.shape == shown.shape
    off = np.abs(read - shown)
    # What a JPEG shows is given as it was before its loss.
    assert off.mean() <= 4 if path.suffix == ".jpg" else off.max() <= 1

"""A data set on disk that evaluation tests score: three photos with squares as their objects."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

STEMS = ("good", "middling", "poor")
SIZE = (40, 30)


def square(left: int) -> Image.Image:
    """A white square of 12 pixels on black, `left` pixels from the left edge."""
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[9:21, left : left + 12] = 255
    return Image.fromarray(mask)


@dataclass(frozen=True)
class Disk:
    """A data set, and saved maps that hit its objects wholly, half and not at all."""

    dataset: Path
    predictions: Path

    @property
    def truth(self) -> Path:
        return self.dataset / "mask"


@pytest.fixture
def disk(tmp_path) -> Disk:
    disk = Disk(tmp_path / "squares", tmp_path / "maps")
    for folder in (disk.dataset / "image", disk.truth, disk.predictions):
        folder.mkdir(parents=True)
    for stem, left in zip(STEMS, (10, 16, 26), strict=True):
        Image.new("RGB", SIZE, (200, 80, 40)).save(disk.dataset / "image" / f"{stem}.jpg")
        square(10).save(disk.truth / f"{stem}.png")
        square(left).save(disk.predictions / f"{stem}.png")
    return disk

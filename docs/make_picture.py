"""Draw docs/picture.webp and docs/failures.webp by the shipped weights. Run it from the root.

The first shows photo | mask | cutout of what they are for, the second photo | mask of what they are
bad at.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import skimage.data
from PIL import Image

import purnet
from purnet.imaging import cutout

HEIGHT = 240
GAP = 8
# All from scikit-image: in the public domain, CC0, or without a known copyright.
PHOTOS = ("coffee", "astronaut", "rocket")
FAILURES = (("coins", "text"), ("chelsea", "camera", "immunohistochemistry"))
FOLDER = Path(__file__).parent


def beside(pictures: Sequence[Image.Image], height: int) -> Image.Image:
    """The pictures in a row, each `height` high."""
    sized = [
        picture.convert("RGB").resize((round(picture.width * height / picture.height), height))
        for picture in pictures
    ]
    width = sum(picture.width + GAP for picture in sized) - GAP
    sheet = Image.new("RGB", (width, height), "white")
    left = 0
    for picture in sized:
        sheet.paste(picture, (left, 0))
        left += picture.width + GAP
    return sheet


def below(rows: Sequence[Image.Image]) -> Image.Image:
    """The rows from top to bottom."""
    height = sum(row.height + GAP for row in rows) - GAP
    sheet = Image.new("RGB", (max(row.width for row in rows), height), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    return sheet


def photo_and_mask(predictor: purnet.Predictor, name: str) -> tuple[Image.Image, Image.Image]:
    """A photo of scikit-image, and its mask."""
    photo = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    return photo, Image.fromarray(predictor.predict(photo))


def on_white(photo: Image.Image, mask: Image.Image) -> Image.Image:
    """What is cut out, on white ground."""
    white = Image.new("RGBA", photo.size, "white")
    white.alpha_composite(cutout(photo.copy(), mask))
    return white


def main() -> None:
    """Draw both pictures."""
    predictor = purnet.load()
    rows = []
    for name in PHOTOS:
        photo, mask = photo_and_mask(predictor, name)
        rows.append(beside((photo, mask, on_white(photo, mask)), HEIGHT))
    below(rows).save(FOLDER / "picture.webp", quality=80)
    rows = []
    for names in FAILURES:
        pairs = [photo_and_mask(predictor, name) for name in names]
        rows.append(beside([picture for pair in pairs for picture in pair], HEIGHT * 2 // 3))
    below(rows).save(FOLDER / "failures.webp", quality=80)


if __name__ == "__main__":
    main()

"""Draw docs/picture.webp: photo | mask | cutout, by the shipped weights. Run it from the root."""

from __future__ import annotations

from pathlib import Path

import skimage.data
from PIL import Image

import purnet
from purnet.imaging import cutout

HEIGHT = 240
GAP = 8
PHOTOS = ("coffee", "chelsea", "rocket")  # all CC0, from scikit-image
TARGET = Path(__file__).parent / "picture.webp"


def row(predictor: purnet.Predictor, name: str) -> Image.Image:
    """Photo, mask and cutout side by side, `HEIGHT` high."""
    photo = Image.fromarray(getattr(skimage.data, name)())
    mask = Image.fromarray(predictor.predict(photo))
    white = Image.new("RGBA", photo.size, "white")
    white.alpha_composite(cutout(photo.copy(), mask))
    size = (round(photo.width * HEIGHT / photo.height), HEIGHT)
    sheet = Image.new("RGB", (3 * size[0] + 2 * GAP, HEIGHT), "white")
    for place, picture in enumerate((photo, mask, white)):
        sheet.paste(picture.convert("RGB").resize(size), (place * (size[0] + GAP), 0))
    return sheet


def main() -> None:
    """Stack a row for each photo."""
    predictor = purnet.load()
    rows = [row(predictor, name) for name in PHOTOS]
    height = len(rows) * (HEIGHT + GAP) - GAP
    sheet = Image.new("RGB", (max(r.width for r in rows), height), "white")
    for place, picture in enumerate(rows):
        sheet.paste(picture, (0, place * (HEIGHT + GAP)))
    sheet.save(TARGET, quality=80)


if __name__ == "__main__":
    main()

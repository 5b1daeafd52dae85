"""What other services' APIs do to a mask or a cutout before it is encoded.

Of a picture of the photo's size: smooth its edges, crop it to the object, make it smaller, put a
colour behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from math import sqrt
from typing import Literal

import numpy as np
from PIL import Image, ImageFilter

Colour = tuple[int, int, int, int]
"""Red, green, blue, alpha: 0..255."""

CROP_LEVEL = 16
"""Mask levels below are empty when a picture is cropped: a soft mask is seldom 0 anywhere."""
JPEG_QUALITY = 90
POSTPROCESS_BYTES_PER_PIXEL = 20
"""The picture, its resized or composed copy with what Pillow holds meanwhile, and the result."""


@dataclass(frozen=True, slots=True)
class Margin:
    """Room left around the object on one side."""

    amount: float
    unit: Literal["px", "%"]
    """Pixels of the photo, or a part of the object's size in that direction."""

    def pixels(self, size: int) -> int:
        """The same in pixels, for an object of `size` pixels."""
        return round(self.amount if self.unit == "px" else self.amount * size / 100)


Margins = tuple[Margin, Margin, Margin, Margin]
"""Above, right, below, left."""


@dataclass(frozen=True, slots=True)
class Postprocessing:
    """What is done to a picture, in this order."""

    smooth: bool = False
    """Make the mask black and white, with smooth edges and without specks."""
    crop: Margins | None = None
    """Cut off what is empty but for these margins, as far as the photo reaches."""
    max_pixels: int | None = None
    """Make a larger picture smaller, keeping its proportions."""
    background: Colour | None = None
    """Lay a cutout on this colour."""

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of such a picture, made smaller where it has too many pixels."""
        if self.max_pixels is None or width * height <= self.max_pixels:
            return width, height
        scale = sqrt(self.max_pixels / (width * height))
        return max(1, int(width * scale)), max(1, int(height * scale))


def smooth_mask(mask: Image.Image) -> Image.Image:
    """Mode `L` -> the same with levels 0 and 255 alone: opened, blurred, cut in the middle."""
    opened = mask.filter(ImageFilter.MinFilter(3)).filter(ImageFilter.MaxFilter(3))
    blurred = opened.filter(ImageFilter.GaussianBlur(2))
    return blurred.point([255 * (level >= 127) for level in range(256)])


def postprocess(picture: Image.Image, mask: Image.Image, steps: Postprocessing) -> Image.Image:
    """Mode `L` or `RGBA` picture and its soft mask, of one size -> the same mode."""
    if steps.crop is not None:
        picture = picture.crop(_crop_box(mask, steps.crop))
    size = steps.size_of(*picture.size)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    if steps.background is not None and picture.mode == "RGBA":
        canvas = Image.new("RGBA", picture.size, steps.background)
        canvas.alpha_composite(picture)
        return canvas
    return picture


def encode_jpeg(picture: Image.Image) -> bytes:
    """Mode `L`, or `RGBA` without transparency -> JPEG."""
    out = BytesIO()
    opaque = picture if picture.mode == "L" else picture.convert("RGB")
    opaque.save(out, "JPEG", quality=JPEG_QUALITY)
    return out.getvalue()


def _crop_box(mask: Image.Image, margins: Margins) -> tuple[int, int, int, int]:
    """Left, top, right, bottom; all of the mask where it is empty."""
    levels = np.asarray(mask) >= CROP_LEVEL
    rows, columns = np.flatnonzero(levels.any(axis=1)), np.flatnonzero(levels.any(axis=0))
    if not rows.size:
        return 0, 0, mask.width, mask.height
    left, right = int(columns[0]), int(columns[-1]) + 1
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    width, height = right - left, bottom - top
    above, beyond, below, before = margins
    return (
        max(0, left - before.pixels(width)),
        max(0, top - above.pixels(height)),
        min(mask.width, right + beyond.pixels(width)),
        min(mask.height, bottom + below.pixels(height)),
    )

"""Small pictures made on the spot, so that a test says what it sends."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image


def scene(width: int = 96, height: int = 64) -> Image.Image:
    """Smooth and without symmetry: red grows rightward, green downward, blue in a corner."""
    y, x = np.mgrid[0:height, 0:width]
    red = x * 255 // max(1, width - 1)
    green = y * 255 // max(1, height - 1)
    blue = np.where((x < width // 3) & (y < height // 3), 200, 40)
    return Image.fromarray(np.dstack([red, green, blue]).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def with_orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def opened(data: bytes) -> Image.Image:
    with Image.open(BytesIO(data)) as image:
        image.load()
        return image


def unknown_pixel_format() -> bytes:
    """A DDS file with a damaged header, of which Pillow says that it is not implemented."""
    data = bytearray(encoded(scene(), "DDS"))
    data[80:84] = bytes(4)  # the flags of its pixel format
    return bytes(data)

"""An encoded image to what the network sees of it: one way for library, commands and service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from purnet.imaging.decode import (
    UInt8Array,
    apply_orientation,
    decoding,
    on_white,
    orientation,
    to_rgba,
)
from purnet.imaging.formats import QUARTER_TURNS, Header

# A large JPEG is decoded at 1/2, 1/4 or 1/8 while both sides stay this many times the input size,
# so that the antialiased resize still has something to average.
DRAFT_FACTOR = 2


@dataclass(frozen=True, slots=True)
class PhotoPixels:
    """A photo at the network's size, and the size it is displayed at."""

    pixels: UInt8Array
    """(S, S, 3) uint8 RGB, upright, transparency on white, C-contiguous."""
    width: int
    height: int
    transparent: UInt8Array | None = None
    """(S, S, 4) uint8 RGBA of a photo that has transparency."""


def read_pixels(
    source: bytes | Path, size: int, *, header: Header | None = None, reduced_jpeg: bool = True
) -> PhotoPixels:
    """Decode an image for a network that sees `size` by `size` pixels.

    Bilinear, antialiased when it shrinks. `header` is what `read_header` gave for it, if it was
    read. JPEGs of at least four times `size` are decoded at reduced scale unless `reduced_jpeg` is
    off, in half of the time (docs/operating.md says what that changes).

    Raises as `open_image` does.
    """
    with decoding(source, header=header) as image:
        stored = image.size
        box = _reduce(image, DRAFT_FACTOR * size) if reduced_jpeg else None
        full, upright = to_rgba(image), orientation(image)
        width, height = stored if box else full.size

        def resized(picture: Image.Image) -> UInt8Array:
            # Before it is turned, so that no second copy of full size is made.
            small = picture.resize((size, size), Image.Resampling.BILINEAR, box)
            return np.array(apply_orientation(small, upright), dtype=np.uint8)

        transparent = resized(full) if full.mode == "RGBA" else None
        pixels = resized(on_white(full))
    if upright in QUARTER_TURNS:
        width, height = height, width
    return PhotoPixels(pixels, width, height, transparent)


def _reduce(image: Image.Image, min_side: int) -> tuple[float, float, float, float] | None:
    """Have a JPEG decoded at the smallest scale at which both sides are at least `min_side`.

    Returns the box of the picture in the decoded pixels, which round sides up to whole numbers.
    """
    drafted = image.draft(image.mode, (min_side, min_side))
    return None if drafted is None else drafted[1]

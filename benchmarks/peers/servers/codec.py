"""JPEG -> pixels, mask -> PNG, as `purnet_serve.images.codec` does it; a test holds them equal."""

import numpy as np
from PIL import Image

from purnet.imaging import (
    QUARTER_TURNS,
    UInt8Array,
    decoding,
    encode_png,
    orientation,
    resize_mask,
    to_rgb,
    turned,
)

INPUT_SIZE = 320
"""Side of the square the network sees, in pixels."""


def decode(photo: bytes) -> tuple[UInt8Array, tuple[int, int]]:
    """Encoded photo -> (320, 320, 3) uint8 RGB as displayed, and its displayed (width, height)."""
    with decoding(photo) as image:
        rgb, upright = to_rgb(image), orientation(image)
        small = rgb.resize((INPUT_SIZE, INPUT_SIZE), Image.Resampling.BILINEAR)
        width, height = rgb.size
    size = (height, width) if upright in QUARTER_TURNS else (width, height)
    return np.array(turned(small, upright), dtype=np.uint8), size


def encode(mask: UInt8Array, size: tuple[int, int]) -> bytes:
    """(320, 320) uint8 -> PNG of `size`, (width, height)."""
    return encode_png(resize_mask(mask, size))

"""JPEG -> pixels, mask -> PNG, as `purnet_serve.images.codec` does it; a test holds them equal."""

from purnet.imaging import UInt8Array, encode_png, read_pixels, resize_mask

INPUT_SIZE = 320
"""Side of the square the network sees, in pixels."""


def decode(photo: bytes) -> tuple[UInt8Array, tuple[int, int]]:
    """Encoded photo -> (320, 320, 3) uint8 RGB as displayed, and its displayed (width, height)."""
    seen = read_pixels(photo, INPUT_SIZE)
    return seen.pixels, (seen.width, seen.height)


def encode(mask: UInt8Array, size: tuple[int, int]) -> bytes:
    """(320, 320) uint8 -> PNG of `size`, (width, height)."""
    return encode_png(resize_mask(mask, size))

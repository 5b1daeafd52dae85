"""Pixels for the network, masks of the image's own size, cutouts, and files of both."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image, ImageChops

from purnet.imaging.decode import UInt8Array, on_white

_ROWS_PER_BLOCK = 64  # float temporaries of a 16k wide mask stay at a few MB
_MANY_ROWS = 3  # times those of the mask
_BLOCK_BYTES = 1 << 18
PNG_LEVEL = 1
"""ISA-L's level: the size of zlib's level 1 in a quarter of its time."""
WEBP_MAX_SIDE = 16_383
"""Pixels; the format has 14 bits for a side."""
WEBP_QUALITY = 80


def to_pixels(image: Image.Image, size: int) -> UInt8Array:
    """RGB, or RGBA laid on white -> (size, size, 3) uint8, C-contiguous.

    Bilinear, antialiased when it shrinks.
    """
    resized = on_white(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.uint8)


def resize_mask(mask: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    """(H', W') uint8 mask -> (H, W) uint8 of `size` (W, H), C-contiguous.

    Bilinear with half-pixel centres and clamped edges, *not* antialiased in either direction:
    OpenCV's INTER_LINEAR, within 1/255. Pillow's own bilinear averages when it shrinks, and its
    affine transform rounds down.
    """
    height, width = mask.shape
    left, right, across = _neighbours(size[0], width)
    upper, lower, down = _neighbours(size[1], height)
    levels = mask.astype(np.float32)
    wide = levels[:, left]
    change = levels[:, right]
    change -= wide
    change *= across
    wide += change
    out = np.empty((size[1], size[0]), np.uint8)
    if size[1] < _MANY_ROWS * height:
        for begin in range(0, size[1], _ROWS_PER_BLOCK):
            rows = slice(begin, begin + _ROWS_PER_BLOCK)
            block = wide[upper[rows]]
            step = wide[lower[rows]]
            step -= block
            step *= down[rows, None]
            block += step
            block += np.float32(0.5)  # the cast truncates
            out[rows] = block
        return out
    # Many rows between the same two rows of the mask: these are read once, and what is computed
    # stays in the processor's cache.
    block = np.empty((_ROWS_PER_BLOCK, size[0]), np.float32)
    changes = np.flatnonzero(np.diff(upper)) + 1
    for first, last in zip((0, *changes), (*changes, size[1]), strict=True):
        above = wide[upper[first]]
        step = wide[lower[first]] - above
        above = above + np.float32(0.5)
        for begin in range(first, last, _ROWS_PER_BLOCK):
            end = min(begin + _ROWS_PER_BLOCK, last)
            between = np.multiply(down[begin:end, None], step, out=block[: end - begin])
            between += above
            out[begin:end] = between
    return out


def cutout(image: Image.Image, mask: Image.Image) -> Image.Image:
    """RGB or RGBA image and mode `L` mask of the same size -> RGBA.

    Alpha is the mask, or the image's own where that is less. Where it is 0 the pixel is 0 as a
    whole, so that nothing of the background is left in the file. `image` itself is changed and
    returned: a copy would double a large photo.
    """
    alpha = mask
    if image.mode == "RGBA":
        alpha = ImageChops.darker(image.getchannel("A"), mask)
    image.putalpha(alpha)
    image.paste((0, 0, 0, 0), mask=alpha.point([255, *[0] * 255], "1"))
    return image


def encode_png(picture: Image.Image | UInt8Array) -> bytes:
    """(H, W) uint8 mask, or image of mode `L` or `RGBA` -> PNG.

    Every row is stored as its difference from the one above. Pillow tries five filters for each
    row, which takes most of its time.
    """
    if isinstance(picture, Image.Image):
        size, mode = picture.size, picture.mode
    else:
        size, mode = (picture.shape[1], picture.shape[0]), "L"
    colour, channels = {"L": (0, 1), "RGBA": (6, 4)}[mode]
    header = struct.pack(">IIBBBBB", *size, 8, colour, 0, 0, 0)
    packer = isal_zlib.compressobj(PNG_LEVEL)
    pixels = [packer.compress(block) for block in _filtered_rows(picture, *size, channels)]
    pixels.append(packer.flush())
    out = [b"\x89PNG\r\n\x1a\n"]
    for kind, body in (
        (b"IHDR", [header]),
        (b"IDAT", pixels),
        (b"IEND", []),
    ):
        checksum = zlib.crc32(kind)
        for part in body:
            checksum = zlib.crc32(part, checksum)
        out += [struct.pack(">I", sum(map(len, body))), kind, *body, struct.pack(">I", checksum)]
    return b"".join(out)


def encode_webp(image: Image.Image) -> bytes:
    """Mode `L` -> lossless WebP; `RGBA` -> WebP of lossy colour and exact alpha.

    No side may exceed `WEBP_MAX_SIDE`.
    """
    out = BytesIO()
    if image.mode == "L":
        image.save(out, "WEBP", lossless=True, quality=0, method=0)
    else:
        image.save(out, "WEBP", quality=WEBP_QUALITY, method=0, alpha_quality=100)
    return out.getvalue()


def _filtered_rows(
    picture: Image.Image | UInt8Array, width: int, height: int, channels: int
) -> Iterator[UInt8Array]:
    """Rows behind PNG's filter "up", some at a time."""
    row_bytes = width * channels
    above = np.zeros((1, row_bytes), np.uint8)
    rows = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, height, rows):
        end = min(start + rows, height)
        if isinstance(picture, Image.Image):
            samples = np.asarray(picture.crop((0, start, width, end)))
            samples = samples.reshape(end - start, row_bytes)
        else:
            samples = picture[start:end]
        block = np.empty((end - start, row_bytes + 1), np.uint8)
        block[:, 0] = 2
        np.subtract(samples[:1], above, out=block[:1, 1:])
        np.subtract(samples[1:], samples[:-1], out=block[1:, 1:])
        above = samples[-1:]
        yield block


def _neighbours(
    out: int, size: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For `out` positions along `size` samples: the two neighbours and the second's weight."""
    centre = np.clip((np.arange(out) + 0.5) * (size / out) - 0.5, 0, size - 1)
    first = centre.astype(np.intp)
    return first, np.minimum(first + 1, size - 1), (centre - first).astype(np.float32)

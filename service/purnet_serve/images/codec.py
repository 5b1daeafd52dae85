"""Upload -> pixels, mask -> PNG. Everything here is synchronous and runs in a pool thread.

Limits are read from the header before any pixel is decoded. Decoding itself is `purnet.imaging`,
which the command line shares, so both give the same mask for a photo.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image

from purnet.imaging import UInt8Array, cutout, orientation, resize_mask, to_rgb, turned
from purnet_serve.errors import ImageError, ServiceError, SideTooLongError, TooManyPixelsError
from purnet_serve.images.header import Format, Header, read_header

# Where it is allowed, a JPEG is decoded at 1/2, 1/4 or 1/8 while both sides stay this many times
# the input size, so that the antialiased resize still has something to average.
DRAFT_FACTOR = 2
# Level 1: smooth masks come out a little larger than at 6, in a fifth of the time.
PNG_LEVEL = 1
FOREGROUND_THRESHOLD = 128
# While decoding: what Pillow decodes, what it is converted to, and its turned copy, four bytes a
# pixel each; deep grey passes through wider integers; a WebP decoder keeps two canvases and hands
# out a third.
BYTES_PER_PIXEL: dict[Format, int] = {"JPEG": 12, "PNG": 16, "WEBP": 24}
# While encoding: the mask, where it is foreground, and its copy cut at the threshold.
MASK_BYTES_PER_PIXEL = 4
WIDENED_BYTES_PER_PIXEL = 12  # three arrays of float32

# Our own limit is checked first, but it is a setting; above 89 megapixels Pillow only warns.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may claim in its header."""

    max_pixels: int
    max_side: int


@dataclass(frozen=True, slots=True)
class Options:
    """What the client asks for."""

    output: Literal["mask", "cutout"] = "mask"
    size: Literal["original", "model"] = "original"
    threshold: int | None = None
    """0..255: masks become 0 or 255, from this level up; None keeps them soft."""

    @property
    def needs_upload(self) -> bool:
        """Whether the answer shows the photo's own pixels, so that it is decoded again."""
        return self.output == "cutout" and self.size == "original"


@dataclass(frozen=True, slots=True)
class Decoded:
    """A photo at the model's size, and the size it is displayed at."""

    pixels: UInt8Array
    width: int
    height: int
    format: Format


@dataclass(frozen=True, slots=True)
class Answer:
    """An encoded PNG, and the box around the object."""

    body: bytes
    box: Box | None
    """Left, top, right, bottom of the foreground in displayed pixels, right and bottom excluded."""


def check_header(upload: bytes, limits: Limits) -> Header:
    """Read the header and hold it against the limits. Raises what `decode` raises."""
    header = read_header(upload)
    _check(header, limits)
    return header


def decoding_bytes(header: Header) -> int:
    """Most bytes that decoding an image takes."""
    return header.width * header.height * BYTES_PER_PIXEL[header.format]


def encoding_bytes(decoded: Decoded, options: Options) -> int:
    """Most bytes that encoding an answer takes beside the answer itself."""
    each = MASK_BYTES_PER_PIXEL
    if options.needs_upload:
        each += BYTES_PER_PIXEL[decoded.format]
    # A mask is first widened, which takes as many rows as the network has, however thin the photo.
    rows: int = decoded.pixels.shape[0]
    return decoded.width * (decoded.height * each + rows * WIDENED_BYTES_PER_PIXEL)


def decode(
    upload: bytes,
    input_size: int,
    limits: Limits,
    header: Header | None = None,
    *,
    reduced_jpeg: bool = False,
) -> Decoded:
    """Check and decode an upload to (S, S, 3) uint8 RGB; `header` is that of `check_header`.

    `reduced_jpeg` decodes large JPEGs at reduced scale: pixels come out within about half a level
    on average, in a third of the time. The masks then differ by more than the parity gate allows.

    Raises `UnsupportedMediaError`, `ImageError`, `TooManyPixelsError` or `SideTooLongError`.
    """
    header = header or check_header(upload, limits)
    with _opened(upload, header) as image:
        box = _reduce(image, DRAFT_FACTOR * input_size) if reduced_jpeg else None
        # Decoded before its orientation is asked for: asking decodes a PNG too, but hides the
        # errors of its pixels.
        rgb, upright = to_rgb(image), orientation(image)
        # Resized before it is turned, so that no second copy of full size is made.
        small = rgb.resize((input_size, input_size), Image.Resampling.BILINEAR, box)
    width, height = header.width, header.height
    if upright >= 5:
        width, height = height, width
    pixels = np.array(turned(small, upright), dtype=np.uint8)
    return Decoded(pixels, width, height, header.format)


def encode(mask: UInt8Array, decoded: Decoded, upload: bytes | None, options: Options) -> Answer:
    """Mask of the network -> the PNG that was asked for.

    `upload` may be None unless `options.needs_upload`. Mode `L` for masks, `RGBA` for cutouts, at
    the photo's displayed size or the model's.
    """
    full = resize_mask(mask, (decoded.width, decoded.height))
    box = _foreground(full)
    alpha = full if options.size == "original" else Image.fromarray(mask)
    if options.threshold is not None:
        alpha = alpha.point([255 * (level >= options.threshold) for level in range(256)])
    if options.output == "mask":
        return Answer(_png(alpha), box)
    if not options.needs_upload:
        return Answer(_png(cutout(Image.fromarray(decoded.pixels), alpha)), box)
    if upload is None:
        raise ValueError("a cutout of the original size needs the upload")
    with _opened(upload, read_header(upload)) as image:
        photo, upright = to_rgb(image), orientation(image)
    return Answer(_png(cutout(turned(photo, upright), alpha)), box)


def _reduce(image: Image.Image, least_side: int) -> tuple[float, float, float, float] | None:
    """Let a JPEG be decoded at the least scale with both sides of `least_side` pixels.

    Returns where the picture lies in what will be decoded: an odd side halved has a column more
    than half of it.
    """
    drafted = image.draft(image.mode, (least_side, least_side))
    return None if drafted is None else drafted[1]


def _check(header: Header, limits: Limits) -> None:
    side, pixels = max(header.width, header.height), header.width * header.height
    size = f"The image is {header.width} by {header.height} pixels"
    if side > limits.max_side:
        raise SideTooLongError(
            f"{size}; no side may exceed {limits.max_side}.", limit=limits.max_side, actual=side
        )
    if pixels > limits.max_pixels:
        raise TooManyPixelsError(
            f"{size}; it may have at most {limits.max_pixels} pixels.",
            limit=limits.max_pixels,
            actual=pixels,
        )


@contextmanager
def _opened(upload: bytes, header: Header) -> Iterator[Image.Image]:
    """The upload as Pillow opens it; whatever Pillow raises meanwhile makes it a broken image."""
    try:
        with Image.open(BytesIO(upload), formats=[header.format]) as image:
            if image.size != (header.width, header.height):
                raise ImageError(f"The {header.format} file contradicts itself about its size.")
            yield image
    except (ServiceError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixelsError(
            "The image has more pixels than can be decoded safely.",
            limit=Image.MAX_IMAGE_PIXELS,
            actual=header.width * header.height,
        ) from error
    except Exception as error:  # decoders fed with garbage raise nearly anything
        what = "cut short" if "truncated" in str(error) else "broken"
        raise ImageError(f"The {header.format} image is {what}.") from error


def _foreground(mask: Image.Image) -> Box | None:
    levels = np.asarray(mask) >= FOREGROUND_THRESHOLD
    rows, columns = np.flatnonzero(levels.any(axis=1)), np.flatnonzero(levels.any(axis=0))
    if not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _png(image: Image.Image) -> bytes:
    out = BytesIO()
    image.save(out, "PNG", compress_level=PNG_LEVEL)
    return out.getvalue()

"""An upload held against the limits before anything is decoded, and the memory its decoding takes.

Reading headers is `purnet.imaging`, which the command line shares; its errors become ours here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from purnet.imaging import (
    FORMATS,
    Format,
    Header,
    TooManyPixelsError,
    TooManyScansError,
    UnknownFormatError,
    read_header,
)
from purnet.imaging import ImageError as UnreadableError
from purnet_serve import errors

BYTES_PER_PIXEL: dict[Format, int] = {
    # What Pillow decodes, what that becomes and its turned copy, four bytes a pixel each. A
    # progressive JPEG keeps coefficients of two bytes a sample while it is decoded.
    "JPEG": 14,
    # Transparent colours of 16 bits are read twice.
    "PNG": 16,
    # The decoder keeps two canvases and hands out a third; then there are two copies.
    "WEBP": 24,
    # Planes of two bytes a sample and RGBA from them, handed out as bytes.
    "AVIF": 24,
    "HEIF": 24,
    "GIF": 16,
    "BMP": 16,
    # Samples of any depth, a strip of them as large as the image, and a copy that is turned.
    "TIFF": 28,
}
"""Most bytes that decoding takes for each pixel."""

FORMATS_BY_NAME: dict[str, Format] = {name.lower(): name for name in FORMATS}
"""Formats as the settings name them."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may claim in its header."""

    max_pixels: int
    max_side: int
    formats: tuple[Format, ...] = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF")


def check_header(upload: bytes, limits: Limits) -> Header:
    """Read the header and compare it with the limits.

    Raises `UnsupportedMediaError`, `ImageError`, `TooManyScansError`, `TooManyPixelsError` or
    `SideTooLongError`.
    """
    with service_errors():
        header = read_header(upload, limits.formats)
    side, pixels = max(header.width, header.height), header.width * header.height
    size = f"The image is {header.width} by {header.height} pixels"
    if side > limits.max_side:
        raise errors.SideTooLongError(
            f"{size}; no side may exceed {limits.max_side}.", limit=limits.max_side, actual=side
        )
    if pixels > limits.max_pixels:
        raise errors.TooManyPixelsError(
            f"{size}; it may have at most {limits.max_pixels} pixels.",
            limit=limits.max_pixels,
            actual=pixels,
        )
    return header


def decoding_bytes(header: Header) -> int:
    """Most bytes that decoding an image takes."""
    return header.width * header.height * BYTES_PER_PIXEL[header.format]


@contextmanager
def service_errors() -> Iterator[None]:
    """Raise the errors of `purnet.imaging` as those that clients are answered with."""
    try:
        yield
    except UnknownFormatError as error:
        raise errors.UnsupportedMediaError(_sentence(error)) from error
    except TooManyScansError as error:
        raise errors.TooManyScansError(_sentence(error), limit=error.limit) from error
    except TooManyPixelsError as error:
        raise errors.TooManyPixelsError(_sentence(error), limit=error.limit) from error
    except UnreadableError as error:
        raise errors.ImageError(_sentence(error), limit=error.limit) from error


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[0].upper()}{text[1:]}."

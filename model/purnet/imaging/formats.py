"""The formats that are taken, the header every one of them gives, and the errors of a bad file.

Texts of errors are clauses without a full stop: "the PNG image is cut short".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from purnet.errors import ImageError

Format = Literal["JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF"]

FORMATS: tuple[Format, ...] = get_args(Format)
"""Every format whose header is read here."""

NAMES: dict[Format, str] = dict(zip(FORMATS, FORMATS, strict=True)) | {
    "WEBP": "WebP",
    "HEIF": "HEIC/HEIF",
}
"""What a person calls them."""

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".mpo", ".png"}
    | {".tif", ".tiff", ".webp"}
)
"""Files of a folder that are taken for images; a file named by itself is always tried."""

QUARTER_TURNS = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""


class UnknownFormatError(ImageError):
    """The bytes do not begin as an image of a format that is taken."""


class TooManyPixelsError(ImageError):
    """The image has more pixels than Pillow decodes without being told that it may."""


class TooManyScansError(ImageError):
    """The progressive JPEG has more scans than any camera or editor writes."""


def cut_short(image_format: Format) -> ImageError:
    """The error of a file that ends before its picture does."""
    return ImageError(f"the {NAMES[image_format]} image is cut short")


def broken(image_format: Format, reason: str = "") -> ImageError:
    """The error of a file that contradicts its format; `reason` says how."""
    return ImageError(f"the {NAMES[image_format]} image is broken{reason and f': {reason}'}")


@dataclass(frozen=True, slots=True)
class Header:
    """What an encoded image says of itself before any pixel is decoded."""

    format: Format
    width: int
    """Pixels as the decoder gives them, before `orientation` is applied."""
    height: int
    orientation: int = 1
    """EXIF orientation, 1 to 8, that is still to be applied to the decoded pixels."""

    @property
    def displayed_size(self) -> tuple[int, int]:
        """(width, height) in pixels as a person sees the image."""
        turned = self.orientation in QUARTER_TURNS
        return (self.height, self.width) if turned else (self.width, self.height)

"""Mask files as grey levels, whatever mode they were saved in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.errors import DatasetError
from model.imaging import as_displayed, orientation

UInt8Array = NDArray[np.uint8]


class UnreadableError(DatasetError):
    """One file of a set cannot be used. `reason` completes the sentence that `path` begins."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path = path
        self.reason = reason


def read_map(path: Path) -> UInt8Array:
    """A saliency map or mask as (H, W) uint8, 255 = salient.

    Takes 1-bit, grey, palette and colour files (their luminance) and 16-bit grey. Raises
    `UnreadableError` for a file that does not decode and for one with transparency, since that is a
    cutout whose colours say nothing about saliency.
    """
    with opened(path) as image:
        return grey_levels(image)


def size_of(path: Path) -> tuple[int, int]:
    """(width, height) as displayed, in pixels, from the header. Raises `UnreadableError`."""
    with opened(path) as image:
        return displayed_size(image)


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) in pixels after the EXIF orientation is applied, without decoding."""
    width, height = image.size
    return (height, width) if orientation(image) >= 5 else (width, height)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Pillow's image of a file; whatever Pillow finds wrong with it becomes `UnreadableError`."""
    try:
        with Image.open(path) as image:
            yield image
    # Pillow reports a broken file with any of these, depending on the format.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableError(path, f"cannot be read: {error}") from error


def read_truth(path: Path) -> UInt8Array:
    """`read_map` for ground truth: a mask that holds only 0 and 1 is stretched to 0 and 255."""
    truth = read_map(path)
    return truth * np.uint8(255) if truth.max() == 1 else truth


def grey_levels(image: Image.Image) -> UInt8Array:
    """(H, W) uint8 of an opened image; see `read_map`."""
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise ValueError("it has transparency, so it is a cutout and not a mask")
    return np.asarray(as_displayed(image).convert("L"))

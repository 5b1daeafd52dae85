"""Mask files as grey levels, whatever mode they were saved in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from purnet.errors import DatasetError
from purnet.imaging import as_displayed, decoding, displayed_size

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


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Pillow's image of a file; whatever Pillow finds wrong with it becomes `UnreadableError`."""
    try:
        with decoding(path) as image:
            yield image
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableError(path, f"cannot be read: {error}") from error


def read_truth(path: Path) -> UInt8Array:
    """`read_map` for ground truth, whose objects may be marked by other levels than white.

    A mask that holds only 0 and 1 is stretched to 0 and 255. A palette mask that holds black and
    one other colour, or black and any colour but greys, holds labels, as VOC and labelme write
    them: what is not black is 255. Any other palette is read by its luminance, as a grey mask.
    """
    with opened(path) as image:
        truth = grey_levels(image)
        if image.mode in ("P", "PA"):
            colours = np.asarray(as_displayed(image))
            if _are_labels(colours):
                return np.where(colours.any(axis=2), np.uint8(255), np.uint8(0))
    return truth * np.uint8(255) if truth.max() == 1 else truth


def grey_levels(image: Image.Image) -> UInt8Array:
    """(H, W) uint8 of an opened image; see `read_map`."""
    if image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255:
        raise ValueError("it has transparency, so it is a cutout and not a mask")
    return np.asarray(as_displayed(image).convert("L"))


def _are_labels(colours: UInt8Array) -> bool:
    """Whether (H, W, 3) uint8 RGB has black and one other colour, or black and a colour no grey."""
    marked = colours[colours.any(axis=2)]
    if not 0 < len(marked) < colours.shape[0] * colours.shape[1]:
        return False
    return bool((marked == marked[0]).all() or (marked != marked[:, :1]).any())

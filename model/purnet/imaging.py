"""Images in and out of the model, without torch: file -> RGB -> pixels; mask -> image.

Everything a person would notice is decided here, once, for the command line and the service:

- *As displayed*: EXIF orientation is applied, an animation is its first frame, ICC profiles are
  ignored (a profile shifts colours a little, never what is salient).
- *Transparency* is composited on white. What lies under transparent pixels is arbitrary, often
  black; white is the page people look at such pictures on, and dark logos stay visible on it.
- *16-bit* samples are scaled to 8 bits; Pillow's own conversion saturates them.
- *CMYK* JPEG files with Adobe's marker hold inverted inks, those without it plain ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

UInt8Array = NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
"""Files of a folder that are taken for images; a file named by itself is always tried."""

ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_SIDE = frozenset({5, 6, 7, 8})
"""Orientations that swap width and height."""
_SAYS_ORIENTATION = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_ROWS_PER_BLOCK = 64  # float temporaries of a 16k wide mask stay at a few MB


def open_image(source: bytes | Path) -> Image.Image:
    """Read an encoded image, in any format Pillow reads, as RGB of the size it is displayed at.

    Raises as `decoding` does.
    """
    with decoding(source) as image:
        return as_displayed(image)


@contextmanager
def decoding(source: bytes | Path) -> Iterator[Image.Image]:
    """Pillow's image of an encoded one, as stored, to be decoded meanwhile.

    Raises `OSError` (`PIL.UnidentifiedImageError` is one) or `ValueError` for what is not an image
    or is broken, and `PIL.Image.DecompressionBombError` for one too large to be honest.
    """
    # Not by its path: Pillow maps such a file into memory, and a TIFF that is to be turned comes
    # out sheared.
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        with Image.open(BytesIO(data)) as image:
            yield image
    except UnidentifiedImageError as error:  # its text names the buffer
        raise UnidentifiedImageError("cannot identify the format of the image") from error
    except (OSError, ValueError, MemoryError, Image.DecompressionBombError):
        raise
    except Exception as error:  # decoders fed with garbage raise nearly anything
        raise ValueError(f"it is damaged: {error}") from error


def as_displayed(image: Image.Image) -> Image.Image:
    """An opened image of any Pillow mode -> RGB, upright, transparency on white."""
    upright = turned(to_rgb(image), orientation(image))
    for key in _SAYS_ORIENTATION:  # or it would be turned again
        upright.info.pop(key, None)
    return upright


def to_rgb(image: Image.Image) -> Image.Image:
    """An opened image of any Pillow mode -> RGB as stored, transparency on white."""
    image.load()  # Pillow turns a TIFF upright while it loads, and drops the tag
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep(image)
    if image.has_transparency_data:
        return _on_white(image)
    if image.mode == "CMYK" and image.format in ("JPEG", "MPO") and "adobe" not in image.info:
        # Pillow reads every CMYK JPEG as Adobe writes it.
        return ImageChops.invert(image).convert("RGB")
    return image.convert("RGB")


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """An image as stored -> upright, by its EXIF orientation."""
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where it is absent, out of range or the EXIF block is broken."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except (
        Exception
    ):  # Pillow's EXIF parser has no closed set of errors, and the photo is still good
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) in pixels of an opened image after its orientation is applied.

    Nothing is decoded, but a PNG whose orientation may follow its pixels.
    """
    width, height = image.size
    # Pillow swaps a TIFF's sides when it opens it, by the tag alone, which it drops in loading.
    swapped = isinstance(image, TiffImageFile) and image.tag_v2.get(ORIENTATION_TAG, 1) in _ON_SIDE
    return (height, width) if orientation(image) in _ON_SIDE and not swapped else (width, height)


def to_pixels(image: Image.Image, size: int) -> UInt8Array:
    """RGB image -> (size, size, 3) uint8, C-contiguous: bilinear, antialiased when it shrinks."""
    resized = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.uint8)


def resize_mask(mask: UInt8Array, size: tuple[int, int]) -> Image.Image:
    """(H', W') uint8 mask -> mode `L` image of `size` (width, height).

    Bilinear with half-pixel centres and clamped edges, *not* antialiased in either direction:
    OpenCV's INTER_LINEAR, within 1/255. Pillow's own bilinear averages when it shrinks, and its
    affine transform rounds down.
    """
    height, width = mask.shape
    left, right, across = _neighbours(size[0], width)
    upper, lower, down = _neighbours(size[1], height)
    levels = mask.astype(np.float32)
    wide = levels[:, left]
    wide += (levels[:, right] - wide) * across
    out = np.empty((size[1], size[0]), np.uint8)
    for start in range(0, size[1], _ROWS_PER_BLOCK):
        rows = slice(start, start + _ROWS_PER_BLOCK)
        block = wide[upper[rows]]
        block += (wide[lower[rows]] - block) * down[rows, None]
        block += 0.5  # the cast truncates
        out[rows] = block
    return Image.fromarray(out)


def cutout(image: Image.Image, mask: Image.Image) -> Image.Image:
    """RGB image and mode `L` mask of the same size -> RGBA, the mask as its alpha.

    `image` itself gets the alpha channel and is returned: a copy would double a large photo.
    """
    image.putalpha(mask)
    return image


def _neighbours(
    out: int, size: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """For `out` positions along `size` samples: the two neighbours and the second's weight."""
    centre = np.clip((np.arange(out) + 0.5) * (size / out) - 0.5, 0, size - 1)
    first = centre.astype(np.intp)
    return first, np.minimum(first + 1, size - 1), (centre - first).astype(np.float32)


def _on_white(image: Image.Image) -> Image.Image:
    rgba = image
    if image.mode != "RGBA":  # to convert it to itself would copy it
        rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    canvas = Image.new("RGB", rgba.size, "white")
    canvas.paste(rgba, mask=rgba)
    return canvas


def _from_deep(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits -> RGB, scaled.

    `I;16` is 0..65535. `I` and `F` declare no range: `I` is 0..65535 unless it goes beyond, `F` is
    0..1 or 0..255 unless it goes beyond; then the largest value is white.
    """
    samples = np.asarray(image)
    if image.mode.startswith("I;16"):
        grey = ((samples.astype(np.uint32) + 128) // 257).astype(np.uint8)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            grey[samples == transparent] = 255
    else:
        levels = np.nan_to_num(samples.astype(np.float64), posinf=0.0, neginf=0.0).clip(min=0)
        largest = float(levels.max(initial=0.0))
        declared = (65535.0,) if image.mode == "I" else (1.0, 255.0)
        white = next((top for top in declared if largest <= top), largest)
        grey = np.rint(levels * (255.0 / white)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")

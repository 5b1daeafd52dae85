"""Encoded images to RGB as displayed. The rules are those of `purnet.imaging`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image, UnidentifiedImageError
from PIL.AvifImagePlugin import AvifImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from purnet.errors import ImageError
from purnet.imaging.formats import (
    FORMATS,
    NAMES,
    Format,
    Header,
    TooManyPixelsError,
    UnknownFormatError,
    broken,
)
from purnet.imaging.header import format_of, join_names, read_header, what_it_is
from purnet.imaging.heif import strip_heif
from purnet.imaging.jpeg import picture_of_jpeg
from purnet.imaging.png import picture_of_png
from purnet.imaging.simple_headers import first_frame_of_gif
from purnet.imaging.tiff import exif_orientation, strip_tiff

UInt8Array = NDArray[np.uint8]

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_TAG = 258
_ORIENTATION = "purnet orientation"
"""Key of an opened image's `info`: the orientation that is still to be applied."""
_TURNS = frozenset({_ORIENTATION, "exif"})
_DEPTH = "purnet depth"
"""Key of an opened image's `info`: bits of a sample, where Pillow may have scaled it."""
_ROWS_PER_BLOCK = 64  # integers of 64 bits of a 16k wide image stay at a few MB


def open_image(source: bytes | Path, *, keep_alpha: bool = False) -> Image.Image:
    """Read an encoded image, in any format Pillow reads, at the size it is displayed at.

    RGB with transparency on white; with `keep_alpha` RGBA where the image has transparency.

    Raises `ImageError` (a `ValueError`) for what is not an image or is broken, `TooManyPixelsError`
    (one of them) for one too large to be honest, and `OSError` for a file that cannot be read.
    """
    with decoding(source) as image:
        return _upright(image, keep_alpha=keep_alpha)


@contextmanager
def decoding(source: bytes | Path, *, header: Header | None = None) -> Iterator[Image.Image]:
    """Pillow's image of an encoded one, as stored, to be decoded meanwhile.

    `header` is what `read_header` gave for it, if it was read. `orientation` tells how the image is
    to be turned. Raises as `open_image` does.
    """
    # Not by its path: Pillow maps such a file into memory, and a TIFF that is to be turned comes
    # out sheared.
    data = source if isinstance(source, bytes) else source.read_bytes()
    image_format = format_of(data)
    if image_format is None:
        opened: Iterator[Image.Image] = _other_format(data)
    else:
        opened = _known_format(data, header or read_header(data))
    name = "image" if image_format is None else f"{NAMES[image_format]} image"
    try:
        yield from opened
    except (ImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = f"the {name} has more pixels than can be decoded safely"
        raise TooManyPixelsError(reason, limit=Image.MAX_IMAGE_PIXELS) from error
    except Exception as error:  # decoders fed with garbage raise nearly anything
        is_cut = any(word in str(error).lower() for word in ("truncated", "end of file", "eof"))
        raise ImageError(f"the {name} is {'cut short' if is_cut else 'broken'}") from error


def as_displayed(image: Image.Image, *, keep_alpha: bool = False) -> Image.Image:
    """An opened image of any Pillow mode -> RGB, upright, transparency on white.

    With `keep_alpha`, RGBA instead where the image has transparency. `image` is left as it is.
    """
    upright = _upright(image, keep_alpha=keep_alpha)
    return upright.copy() if upright is image else upright


def to_rgba(image: Image.Image) -> Image.Image:
    """An opened image of any Pillow mode, as stored -> RGBA if it has transparency, else RGB."""
    image.load()  # Pillow turns a TIFF upright while it loads, and drops the tag
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return _from_deep(image)
    if not image.has_transparency_data and image.mode != "RGB":
        return image.convert("RGB")
    if image.mode in ("RGB", "RGBA") and "transparency" not in image.info:
        # Such an image holds its decoder, which holds as much again.
        return image.copy() if isinstance(image, WebPImageFile | AvifImageFile) else image
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def on_white(image: Image.Image) -> Image.Image:
    """RGB, or RGBA laid on white -> RGB."""
    if image.mode == "RGB":
        return image
    canvas = Image.new("RGB", image.size, "white")
    canvas.paste(image, mask=image)
    return canvas


def apply_orientation(image: Image.Image, orientation: int) -> Image.Image:
    """An image as stored -> upright, by its EXIF orientation."""
    method = _TRANSPOSE.get(orientation)
    return image if method is None else image.transpose(method)


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, that is still to be applied to an opened image."""
    value: int | None = image.info.get(_ORIENTATION)
    return exif_orientation(image.info.get("exif") or b"") if value is None else value


def stored_samples(image: Image.Image) -> NDArray[Any] | None:
    """(H, W) samples of a grey image as its file holds them, not scaled; None of a colour image.

    Pillow scales those of 2 and 4 bits to 8; `image` must be one from `decoding`.
    """
    if image.mode not in ("1", "L", "I", "F") and not image.mode.startswith("I;16"):
        return None
    samples = np.asarray(image)
    depth = image.info.get(_DEPTH, 8)
    return samples // (255 // ((1 << depth) - 1)) if depth < 8 and image.mode == "L" else samples


def displayed_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) in pixels, as displayed, of an image from `decoding`. Decodes nothing."""
    return Header("PNG", *image.size, orientation(image)).displayed_size


def _upright(image: Image.Image, *, keep_alpha: bool) -> Image.Image:
    """As `as_displayed`, but the result may be `image` itself."""
    rgba = to_rgba(image)
    upright = apply_orientation(rgba if keep_alpha else on_white(rgba), orientation(image))
    if upright is not image:  # or it would be turned again
        upright.info = {key: upright.info[key] for key in upright.info.keys() - _TURNS}
    return upright


def _known_format(data: bytes, header: Header) -> Iterator[Image.Image]:
    """Open an image whose header was read, without what its decoder does not need."""
    size = header.width, header.height
    match header.format:
        case "PNG":
            opened = _png(data, size)
        case "HEIF":
            opened = _heif(data, size)
        case _:
            opened = _pillow(_STRIP.get(header.format, bytes)(data), header.format)
    for image in opened:
        if image.size != size:
            raise broken(header.format, "it contradicts itself about its size")
        image.info[_ORIENTATION] = header.orientation
        yield image


def _strip_avif(data: bytes) -> bytes:
    return strip_heif(data, "AVIF")


_STRIP: dict[Format, Callable[[bytes], bytes]] = {
    "JPEG": picture_of_jpeg,
    "AVIF": _strip_avif,
    "GIF": first_frame_of_gif,
    "TIFF": strip_tiff,
}


def _pillow(data: bytes, image_format: Format) -> Iterator[Image.Image]:
    # A thread for an image: images are decoded side by side already.
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    with Image.open(BytesIO(data), formats=[image_format]) as image:
        if isinstance(image, TiffImageFile):
            image.info[_DEPTH] = image.tag_v2.get(_BITS_TAG, (8,))[0]
        yield image


def _other_format(data: bytes) -> Iterator[Image.Image]:
    """Open an image of a format whose header is not read here."""
    others = [kind for kind in Image.ID if kind not in FORMATS]
    try:
        with Image.open(BytesIO(data), formats=others) as image:
            yield image
    except UnidentifiedImageError as error:  # its text names the buffer
        raise UnknownFormatError(
            f"cannot identify the format of the image: it is {what_it_is(data)}; taken are "
            f"{join_names(FORMATS)} images"
        ) from error


def _png(data: bytes, canvas: tuple[int, int]) -> Iterator[Image.Image]:
    picture = picture_of_png(data)
    for image in _pillow(picture.data, "PNG"):
        samples, high = picture.clear, 255 // ((1 << min(picture.depth, 8)) - 1)
        image.info[_DEPTH] = picture.depth
        if samples is not None and image.mode == "RGB" and picture.depth == 16:
            yield _placed(_with_clear_colour(image, picture.data, samples), picture.offset, canvas)
            continue
        if samples is not None:  # Pillow scales samples of less than 8 bits
            scaled = tuple(sample * high for sample in samples)
            image.info["transparency"] = scaled if image.mode == "RGB" else scaled[0]
        yield _placed(image, picture.offset, canvas)


def _placed(image: Image.Image, offset: tuple[int, int], canvas: tuple[int, int]) -> Image.Image:
    """An image, or the first frame of an animation on its transparent canvas."""
    if image.size == canvas:
        return image
    whole = Image.new("RGBA", canvas)
    whole.paste(to_rgba(image), offset)
    return whole


def _with_clear_colour(image: Image.Image, data: bytes, colour: tuple[int, ...]) -> Image.Image:
    """RGB of 16 bits -> RGBA of 8, pixels of one colour transparent.

    Pillow keeps the high bytes of such samples. Read in the other order, it keeps the low ones.
    """
    image.load()
    with Image.open(BytesIO(data), formats=["PNG"]) as low:
        low.tile = [low.tile[0]._replace(args="RGB;16L")]
        low.load()
    alpha = np.empty((image.height, image.width), np.uint8)
    for start in range(0, image.height, _ROWS_PER_BLOCK):
        box = 0, start, image.width, min(start + _ROWS_PER_BLOCK, image.height)
        samples = np.asarray(image.crop(box)).astype(np.uint16) << 8 | np.asarray(low.crop(box))
        alpha[box[1] : box[3]] = np.where((samples == colour).all(axis=2), 0, 255)
    image.putalpha(Image.fromarray(alpha))
    return image


def _heif(data: bytes, size: tuple[int, int]) -> Iterator[Image.Image]:
    import pi_heif

    pi_heif.options.DECODE_THREADS = 1
    pi_heif.options.THUMBNAILS = False
    pi_heif.options.DEPTH_IMAGES = False
    pi_heif.options.AUX_IMAGES = False
    if Image.MAX_IMAGE_PIXELS and size[0] * size[1] > 2 * Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError
    yield pi_heif.open_heif(strip_heif(data, "HEIF")).to_pillow()


def _from_deep(image: Image.Image) -> Image.Image:
    """Grey of more than 8 bits -> RGB, or RGBA if one level is transparent, scaled.

    `I;16` is 0..65535. `I` and `F` declare no range: `I` is 0..65535 unless it goes beyond, `F` is
    0..1 or 0..255 unless it goes beyond; then the largest value is white.
    """
    clear = image.info.get("transparency")
    white = 65535.0
    if not image.mode.startswith("I;16"):
        largest = max(float(block.max(initial=0.0)) for _, block in _deep_blocks(image))
        declared = (65535.0,) if image.mode == "I" else (1.0, 255.0)
        white = next((top for top in declared if largest <= top), largest)
    grey = np.empty((image.height, image.width), np.uint8)
    alpha = np.full_like(grey, 255) if isinstance(clear, int) else None
    for rows, samples in _deep_blocks(image):
        grey[rows] = np.rint(samples * (255.0 / white))
        if alpha is not None:
            alpha[rows][samples == clear] = 0
    picture = Image.fromarray(grey).convert("RGB")
    if alpha is not None:
        picture.putalpha(Image.fromarray(alpha))
    return picture


def _deep_blocks(image: Image.Image) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Rows of a deep grey image, a few at a time, none below 0 and none infinite."""
    for start in range(0, image.height, _ROWS_PER_BLOCK):
        end = min(start + _ROWS_PER_BLOCK, image.height)
        samples = np.asarray(image.crop((0, start, image.width, end))).astype(np.float64)
        yield slice(start, end), np.nan_to_num(samples, posinf=0.0, neginf=0.0).clip(min=0)

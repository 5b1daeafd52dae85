"""Upload -> pixels, mask -> PNG, WebP or JPEG. All of it is synchronous, for threads of a pool.

Limits are read from the header before any pixel is decoded. Decoding itself is `purnet.imaging`,
which the command line shares, so both give the same mask for a photo.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from purnet.imaging import (
    WEBP_MAX_SIDE,
    Format,
    Header,
    UInt8Array,
    cutout,
    encode_png,
    encode_webp,
    open_image,
    read_pixels,
    resize_mask,
)
from purnet_serve.errors import SideTooLongError
from purnet_serve.images.header import (
    BYTES_PER_PIXEL,
    service_errors,
)
from purnet_serve.images.postprocess import (
    POSTPROCESS_BYTES_PER_PIXEL,
    Postprocessing,
    encode_jpeg,
    postprocess,
    smooth_mask,
)

FOREGROUND_THRESHOLD = 128
# While encoding: the mask, whether each pixel is foreground, the thresholded copy, and its minimum
# with the photo's own alpha.
MASK_BYTES_PER_PIXEL = 4
# What an encoder takes, the picture itself included: PNG is written a few rows at a time, libwebp
# copies the picture into planes or ARGB and works on both.
ENCODER_BYTES_PER_PIXEL = {"png": 4, "webp": 28, "jpeg": 8}
WIDENED_BYTES_PER_PIXEL = 12  # three arrays of float32
MAX_SIDE = {"webp": WEBP_MAX_SIDE, "jpeg": 65_500}
"""Pixels; PNG has no such limit."""

# Our own limit is checked first, but it is a setting; above 89 megapixels Pillow only warns.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Options:
    """What the client asks for."""

    output: Literal["mask", "cutout"] = "mask"
    size: Literal["original", "model"] = "original"
    threshold: int | None = None
    """0..255: masks become 0 or 255, from this level up; None keeps them soft."""
    format: Literal["png", "webp", "jpeg"] = "png"
    postprocessing: Postprocessing | None = None
    """What else is done to an answer of the original size."""

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
    transparent: UInt8Array | None = None
    """(S, S, 4) uint8 RGBA of a photo that has transparency, which a cutout keeps."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An encoded image, and the box around the object."""

    body: bytes
    media_type: str
    box: Box | None
    """Left, top, right, bottom of the foreground in displayed pixels, right and bottom excluded."""


def encoding_bytes(decoded: Decoded, options: Options) -> int:
    """Most bytes that encoding an answer takes beside the answer itself."""
    decoding = BYTES_PER_PIXEL[decoded.format] if options.needs_upload else 0
    postprocessing = POSTPROCESS_BYTES_PER_PIXEL if options.postprocessing else 0
    encoding = max(postprocessing, ENCODER_BYTES_PER_PIXEL[options.format])
    each = MASK_BYTES_PER_PIXEL + max(decoding, encoding)
    # A mask is first widened, which takes as many rows as the network has, however thin the photo.
    rows: int = decoded.pixels.shape[0]
    return decoded.width * (decoded.height * each + rows * WIDENED_BYTES_PER_PIXEL)


def decode(
    upload: bytes,
    input_size: int,
    header: Header,
    *,
    reduced_jpeg: bool = True,
) -> Decoded:
    """Decode an upload to (S, S, 3) uint8 RGB; `header` is that of `check_header`.

    `reduced_jpeg` is as in `purnet.imaging.read_pixels`.

    Raises `UnsupportedMediaError`, `ImageError` or `TooManyPixelsError`.
    """
    with service_errors():
        photo = read_pixels(upload, input_size, header=header, reduced_jpeg=reduced_jpeg)
    return Decoded(photo.pixels, photo.width, photo.height, header.format, photo.transparent)


def encode(mask: UInt8Array, decoded: Decoded, upload: bytes | None, options: Options) -> Answer:
    """Mask of the network -> the PNG, WebP or JPEG that was asked for.

    `upload` may be None unless `options.needs_upload`. Mode `L` for masks, `RGBA` for cutouts (as
    JPEG `RGB`), at the photo's displayed size or the model's. Raises `SideTooLongError` where that
    is more than the format can hold.
    """
    check_answer_size(decoded, options)
    full = resize_mask(mask, (decoded.width, decoded.height))
    box = _foreground(full)
    alpha = full if options.size == "original" else mask
    if options.threshold is not None:
        alpha = (alpha >= options.threshold).view(np.uint8)
        alpha *= np.uint8(255)
    if options.output == "mask" and options.format == "png" and options.postprocessing is None:
        return Answer(encode_png(alpha), "image/png", box)
    picture = Image.fromarray(alpha)
    if options.postprocessing is not None and options.postprocessing.smooth:
        picture = smooth_mask(picture)
    if options.output == "cutout":
        if not options.needs_upload:
            shown = decoded.pixels if decoded.transparent is None else decoded.transparent
            picture = cutout(Image.fromarray(shown), picture)
        elif upload is None:
            raise ValueError("a cutout of the original size needs the upload")
        else:
            with service_errors():
                picture = cutout(open_image(upload, keep_alpha=True), picture)
    if options.postprocessing is not None:
        picture = postprocess(picture, Image.fromarray(full), options.postprocessing)
    if options.format == "jpeg":
        return Answer(encode_jpeg(picture), "image/jpeg", box)
    if options.format == "webp":
        return Answer(encode_webp(picture), "image/webp", box)
    return Answer(encode_png(picture), "image/png", box)


def check_answer_size(decoded: Decoded, options: Options) -> None:
    """Raise `SideTooLongError` for a photo whose answer its format cannot hold."""
    most = MAX_SIDE.get(options.format)
    if most is None or options.size == "model":
        return
    size = decoded.width, decoded.height
    # What is cropped may be a strip as long as the photo, and few enough pixels to stay so.
    if options.postprocessing is not None and options.postprocessing.crop is None:
        size = options.postprocessing.size_of(*size)
    side = max(size)
    if side > most:
        raise SideTooLongError(
            f"The answer to an image of {decoded.width} by {decoded.height} pixels would have a "
            f"side of {side}; in {options.format.upper()} none may exceed {most}. Ask for PNG.",
            limit=most,
            actual=side,
        )


def _foreground(mask: UInt8Array) -> Box | None:
    rows = np.flatnonzero(mask.max(axis=1) >= FOREGROUND_THRESHOLD)
    columns = np.flatnonzero(mask.max(axis=0) >= FOREGROUND_THRESHOLD)
    if not rows.size:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

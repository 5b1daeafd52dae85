"""A network on an engine: images in, masks of their size out. Loads no torch by itself."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from purnet.errors import CheckpointError, ImageError, NotFiniteError
from purnet.imaging import (
    PhotoPixels,
    UInt8Array,
    as_displayed,
    read_pixels,
    resize_mask,
    to_pixels,
)
from purnet.inference.engine import Engine, EngineOutput
from purnet.inference.parity import mask_difference, self_check_pixels

ImageSource = str | os.PathLike[str] | bytes | Image.Image | UInt8Array
"""An image as a path, an encoded file's bytes, a Pillow image of any mode, or a uint8 array: grey
(H, W), RGB (H, W, 3) or RGBA (H, W, 4)."""


class Predictor:
    """A checkpoint on a device; `purnet.load` makes one.

    Attributes: `engine`, `variant` (name), `sha256` (hex digest of the checkpoint file),
    `input_size` (side S of the square the network sees, in pixels).
    """

    def __init__(
        self,
        engine: Engine,
        *,
        variant: str,
        sha256: str,
        input_size: int,
        reference: UInt8Array,
    ) -> None:
        """`reference` (S, S) is the bundled photo's mask by eager float32."""
        self.engine = engine
        self.variant = variant
        self.sha256 = sha256
        self.input_size = input_size
        self._reference = reference

    def predict(self, image: ImageSource) -> UInt8Array:
        """Find the salient object of one image: its mask, (H, W) uint8, 255 = salient.

        H and W are those of the image as displayed: its EXIF orientation is applied. Transparent
        pixels are seen on white. Raises `ImageError` for what cannot be read, `TypeError` for what
        is no `ImageSource`, `NotFiniteError` when the network gave a NaN or an infinity, and
        `OutOfMemoryError`.
        """
        return next(self.predict_many([image], batch_size=1))

    def predict_many(
        self, images: Iterable[ImageSource], *, batch_size: int = 8
    ) -> Iterator[UInt8Array]:
        """Find the salient objects of many images: their masks, in order.

        Images are read when their batch of `batch_size` is due, and of a batch only what the
        network sees is kept. Raises as `predict` does, after the masks of the images before.
        """
        if batch_size < 1:
            raise ValueError(f"a batch holds at least one image, not {batch_size}")
        photos: list[PhotoPixels] = []
        for source in images:
            try:
                photo = _seen(source, self.input_size)
            except (ImageError, TypeError):
                yield from self._masks(photos)
                raise
            photos.append(photo)
            if len(photos) == batch_size:
                yield from self._masks(photos)
                photos = []
        yield from self._masks(photos)

    def predict_pixels(self, photo: PhotoPixels) -> UInt8Array:
        """As `predict`, for an image that `purnet.imaging.read_pixels` has read at `input_size`."""
        return next(self._masks([photo]))

    def run(self, pixels: UInt8Array) -> EngineOutput:
        """(N, S, S, 3) uint8 RGB, N >= 1 -> masks with a finite flag per image.

        Raises `ValueError` for another shape or dtype, `OutOfMemoryError` when the batch does not
        fit the device.
        """
        size = self.input_size
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
            raise ValueError(
                f"pixels must be uint8 (N, {size}, {size}, 3), got {pixels.dtype} {pixels.shape}"
            )
        if not len(pixels):
            raise ValueError("a batch holds at least one image")
        return self.engine(np.ascontiguousarray(pixels))

    def measure(self, pixels: UInt8Array) -> float:
        """Seconds that `run` takes for (N, S, S, 3) uint8 pixels.

        The lesser of two runs, after one that is not timed. Raises as `run` does.
        """
        self.run(pixels)
        seconds = math.inf
        for _ in range(2):
            began_s = time.perf_counter()
            self.run(pixels)
            seconds = min(seconds, time.perf_counter() - began_s)
        return seconds

    def self_check(self) -> None:
        """Try the engine on the bundled photo against eager float32: one copy, then one a stream.

        Raises `CheckpointError` when they are further apart than the parity gate allows.
        """
        pixels = self_check_pixels(self.input_size)
        for images in {1, self.engine.streams}:
            output = self.run(np.repeat(pixels, images, axis=0))
            if not output.finite.all():
                raise CheckpointError("self-check failed: the network's output is not finite")
            for mask in output.masks:
                difference = mask_difference(mask, self._reference)
                if not difference.passes:
                    raise CheckpointError(
                        f"self-check failed: {self.engine.name} on {self.engine.device} differs "
                        f"from eager float32 by {difference}"
                    )

    def _masks(self, photos: list[PhotoPixels]) -> Iterator[UInt8Array]:
        """Masks of a batch, at their images' sizes."""
        if not photos:
            return
        output = self.run(np.stack([photo.pixels for photo in photos]))
        for mask, finite, photo in zip(output.masks, output.finite, photos, strict=True):
            if not finite:
                raise NotFiniteError("the network's output is not finite")
            yield resize_mask(mask, (photo.width, photo.height))


def _seen(source: ImageSource, size: int) -> PhotoPixels:
    """What a network of that size sees. Raises `ImageError`, and `TypeError` for another type."""
    name = "the image"
    try:
        if isinstance(source, bytes):
            return read_pixels(source, size)
        if not isinstance(source, np.ndarray | Image.Image):
            path = Path(source)
            name = str(path)
            return read_pixels(path, size)
        image = source if isinstance(source, Image.Image) else _from_array(source)
        image = as_displayed(image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise ImageError(f"{name} cannot be read: {reason}") from error
    if 0 in image.size:
        raise ImageError(f"{name} has no pixels")
    return PhotoPixels(to_pixels(image, size), *image.size)


def _from_array(array: UInt8Array) -> Image.Image:
    shape = array.shape
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or shape[2:] not in ((), (3,), (4,)):
        raise ValueError(
            "an array must be uint8 (H, W), (H, W, 3) or (H, W, 4), "
            f"not {array.dtype} {array.shape}"
        )
    return Image.fromarray(array)

"""A network on an engine: pixels of its input size in, masks out. Loads no torch by itself."""

from __future__ import annotations

import numpy as np
from PIL import Image

from purnet.errors import CheckpointError
from purnet.imaging import UInt8Array, resize_mask, to_pixels
from purnet.inference.engine import Engine, EngineOutput
from purnet.inference.parity import agreement, self_check_pixels


class Predictor:
    """A checkpoint on a device; `purnet.inference.factory.load` picks the engine.

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

    def predict(self, pixels: UInt8Array) -> UInt8Array:
        """(N, S, S, 3) uint8 RGB -> (N, S, S) uint8 masks, 255 = salient.

        Raises as `run` does, and `FloatingPointError` when the network gave a NaN or an infinity.
        """
        output = self.run(pixels)
        if not output.finite.all():
            bad = ", ".join(str(index) for index in np.flatnonzero(~output.finite))
            raise FloatingPointError(f"the network's output is not finite for image {bad}")
        return output.masks

    def mask(self, image: Image.Image) -> Image.Image:
        """Displayed RGB image (see `purnet.imaging.open_image`) -> `L` mask of the same size."""
        pixels = to_pixels(image, self.input_size)
        return resize_mask(self.predict(pixels[None])[0], image.size)

    def self_check(self) -> None:
        """Try the engine on the bundled photo against eager float32.

        Raises `CheckpointError` when they are further apart than the parity gate allows.
        """
        try:
            found = agreement(self.predict(self_check_pixels(self.input_size))[0], self._reference)
        except FloatingPointError as error:
            raise CheckpointError(f"self-check failed: {error}") from error
        if not found.holds:
            raise CheckpointError(
                f"self-check failed: {self.engine.name} on {self.engine.device} differs from "
                f"eager float32 by {found}"
            )

"""The only door to the model: uint8 pixels in, uint8 masks out. Loads no torch by itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from purnet.errors import CheckpointError
from purnet.imaging import resize_mask, to_pixels

UInt8Array = NDArray[np.uint8]

SELF_CHECK_PHOTO = Path(__file__).parent.parent / "weights" / "self_check.png"
"""A photo every engine is tried on before it serves."""


class OutOfMemoryError(RuntimeError):
    """The device has no room for this batch; a smaller one may fit."""


@dataclass(frozen=True, slots=True)
class EngineOutput:
    """What an engine answers for a batch of N images."""

    masks: UInt8Array
    """(N, S, S) uint8, 255 = salient; all 0 where `finite` is false."""
    finite: NDArray[np.bool_]
    """(N,): false where the network's output held a NaN or an infinity."""


class Engine(Protocol):
    """A network made ready to run on one device."""

    @property
    def name(self) -> str:
        """`eager`, `cuda` or `openvino`."""
        ...

    @property
    def device(self) -> str:
        """`cpu`, `cuda:0`, ..."""
        ...

    def __call__(self, pixels: UInt8Array) -> EngineOutput:
        """Predict (N, S, S, 3) uint8 RGB. Raises `OutOfMemoryError` when the batch is too big."""
        ...


class Predictor:
    """A checkpoint on a device; `Predictor.load` picks the engine.

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
        self.engine = engine
        self.variant = variant
        self.sha256 = sha256
        self.input_size = input_size
        self._reference = reference

    @classmethod
    def load(
        cls, checkpoint: Path | None = None, *, device: str = "auto", convert: bool = False
    ) -> Predictor:
        """Load a checkpoint or an export (None: the shipped weights), strictly, onto one device.

        `convert` takes the time to bring a checkpoint into the form that runs fastest on the
        device. Raises `CheckpointError` for a bad file and `DeviceError` for a device that was
        demanded and is not there.
        """
        from purnet.inference.factory import load_engine

        loaded = load_engine(checkpoint, device=device, convert=convert)
        return cls(
            loaded.engine,
            variant=loaded.variant,
            sha256=loaded.sha256,
            input_size=loaded.input_size,
            reference=loaded.reference,
        )

    @classmethod
    def load_to_serve(cls, checkpoint: Path | None = None, *, device: str = "auto") -> Predictor:
        """Load for many predictions to come: conversion pays for itself. Raises as `load` does."""
        return cls.load(checkpoint, device=device, convert=True)

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
        maps = self.run(pixels)
        if not maps.finite.all():
            bad = ", ".join(str(index) for index in np.flatnonzero(~maps.finite))
            raise FloatingPointError(f"the network's output is not finite for image {bad}")
        return maps.masks

    def mask(self, image: Image.Image) -> Image.Image:
        """Displayed RGB image (see `purnet.imaging.open_image`) -> `L` mask of the same size."""
        pixels = to_pixels(image, self.input_size)
        return resize_mask(self.predict(pixels[None])[0], image.size)

    def self_check(self) -> None:
        """Try the engine on the bundled photo against eager float32.

        Raises `CheckpointError` when they are further apart than the parity gate allows.
        """
        from purnet.inference.parity import agreement, self_check_pixels

        try:
            found = agreement(self.predict(self_check_pixels(self.input_size))[0], self._reference)
        except FloatingPointError as error:
            raise CheckpointError(f"self-check failed: {error}") from error
        if not found.holds:
            raise CheckpointError(
                f"self-check failed: {self.engine.name} on {self.engine.device} differs from "
                f"eager float32 by {found}"
            )

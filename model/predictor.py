"""The only door to the model: uint8 pixels in, uint8 masks out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

UInt8Array = NDArray[np.uint8]


class OutOfMemoryError(RuntimeError):
    """The device has no room for this batch; a smaller one may fit."""


@dataclass(frozen=True, slots=True)
class Maps:
    """What an engine answers for a batch of N images."""

    masks: UInt8Array
    """(N, S, S) uint8, 255 = salient; undefined where `finite` is false."""
    finite: NDArray[np.bool_]
    """(N,): false where the network's output held a NaN or an infinity."""


class Engine(Protocol):
    """A network made ready to run on one device."""

    name: str
    """`eager`, `cuda` or `openvino`."""
    device: str
    """`cpu`, `cuda:0`, ..."""

    def __call__(self, pixels: UInt8Array) -> Maps:
        """Predict (N, S, S, 3) uint8 RGB. Raises `OutOfMemoryError` when the batch is too big."""
        ...


class Predictor:
    """A checkpoint on a device.

    `Predictor.load(checkpoint, device=...)` picks the engine. Attributes: `variant` (name),
    `sha256` (hex digest of the checkpoint file), `input_size` (S), `engine`.
    """

    def __init__(self, engine: Engine, *, variant: str, sha256: str, input_size: int) -> None:
        self.engine = engine
        self.variant = variant
        self.sha256 = sha256
        self.input_size = input_size

    @classmethod
    def load(cls, checkpoint: Path | None = None, *, device: str = "auto") -> Predictor:
        """Load a checkpoint (None: the shipped weights), strictly, onto one device.

        Raises `model.errors.CheckpointError` for a bad file and `model.errors.DeviceError` for a
        device that was demanded and is not there.
        """
        raise NotImplementedError

    def run(self, pixels: UInt8Array) -> Maps:
        """(N, S, S, 3) uint8 RGB -> masks with a finite flag per image. Raises `ValueError` on
        another shape or dtype and `OutOfMemoryError` when the batch does not fit."""
        raise NotImplementedError

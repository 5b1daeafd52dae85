"""What an engine is: a network on one device, uint8 pixels in, uint8 masks out.

Loads neither torch nor OpenVINO.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from purnet.imaging import UInt8Array


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

    @property
    def streams(self) -> int:
        """Single images it computes at the same time: threads that may call it at one time.

        Where there are several, a batch is computed as single images: a larger one gains nothing.
        """
        ...

    def __call__(self, pixels: UInt8Array) -> EngineOutput:
        """Predict (N, S, S, 3) uint8 RGB. Raises `OutOfMemoryError` when the batch is too big."""
        ...

"""The only door to the model: uint8 pixels in, uint8 masks out."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """A network made ready to run on one device."""

    name: str
    """`eager`, `cuda` or `openvino`."""
    device: str
    """`cpu`, `cuda:0`, ..."""

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Predict a batch: (N, S, S, 3) uint8 RGB -> (N, S, S) uint8, 255 = salient."""
        ...

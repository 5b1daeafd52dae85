"""The parity gate: how close an engine must come to eager float32, and the photo it is tried on.

Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from purnet.imaging import UInt8Array, open_image, to_pixels

SELF_CHECK_PHOTO = Path(__file__).parents[1] / "weights" / "self_check.png"
"""A photo every engine is tried on before it serves."""

MAX_MEAN = 1.0
"""Largest mean difference, in grey levels of 255."""
MAX_TAIL = 4.0
"""Largest difference at `TAIL_QUANTILE` of the pixels, in grey levels of 255."""
TAIL_QUANTILE = 0.999


@dataclass(frozen=True, slots=True)
class MaskDifference:
    """How far two sets of masks are apart, in grey levels of 255."""

    mean: float
    tail: float
    """Difference that `TAIL_QUANTILE` of the pixels do not exceed."""

    @property
    def passes(self) -> bool:
        """Whether the parity gate is passed."""
        return self.mean <= MAX_MEAN and self.tail <= MAX_TAIL

    def __str__(self) -> str:
        return f"mean {self.mean:.4f}/255, {self.tail:.2f}/255 at {TAIL_QUANTILE:.1%} of pixels"


def mask_difference(masks: UInt8Array, reference: UInt8Array) -> MaskDifference:
    """Compare masks of one shape. Raises `ValueError` when shapes differ."""
    if masks.shape != reference.shape:
        raise ValueError(f"masks of shape {masks.shape} against {reference.shape}")
    difference = np.abs(masks.astype(np.int16) - reference.astype(np.int16))
    return MaskDifference(
        mean=float(difference.mean()), tail=float(np.quantile(difference, TAIL_QUANTILE))
    )


def self_check_pixels(input_size: int) -> UInt8Array:
    """The bundled photo as a batch of one: (1, S, S, 3) uint8."""
    return np.ascontiguousarray(to_pixels(open_image(SELF_CHECK_PHOTO), input_size)[None])

"""Scores of a network over the held-out pairs, while it is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from purnet.data.dataset import Sample
from purnet.data.pairs import TRUTH_ABOVE
from purnet.network.purnet import PurNet

BETA2 = 0.3
"""β² of the F-measure: precision counts more than recall."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores over a validation set, at the size of its samples."""

    mae: float
    """Mean absolute error of maps in [0, 1] against grey masks."""
    max_f: float
    """Largest F (beta^2 = 0.3) over thresholds of the maps, averaged over images; masks are cut
    as evaluation cuts them (PySODMetrics)."""


@torch.inference_mode()
def validate(network: PurNet, batches: Iterable[Sample], device: torch.device) -> Scores:
    """Score a network in evaluation mode over batches of samples."""
    errors: list[float] = []
    curves: list[NDArray[np.float64]] = []
    for batch in batches:
        images = batch.image.to(device, non_blocking=True).float() / 255
        maps = network.predict(images.contiguous(memory_format=torch.channels_last)).sigmoid()
        truth = batch.mask.to(device, non_blocking=True).float() / 255
        errors += (maps - truth).abs().mean(dim=(1, 2, 3)).tolist()
        for saliency, mask in zip((maps * 255).byte().cpu().numpy(), batch.mask, strict=True):
            curves.append(f_curve(saliency[0], mask[0].numpy() > TRUTH_ABOVE))
    return Scores(mae=float(np.mean(errors)), max_f=float(np.mean(curves, axis=0).max()))


def f_curve(saliency: NDArray[np.uint8], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """F (beta^2 = 0.3) of one map (H, W) at thresholds 255 down to 0 -> (256,).

    The map is first brought to 0..255, unless it is constant. As PySODMetrics counts.
    """
    levels = np.arange(256) / 255
    low, high = levels[saliency.min()], levels[saliency.max()]
    if low != high:
        levels = (levels - low) / (high - low)
    scaled = (levels.clip(0, 1) * 255).astype(np.uint8)

    def taken(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
        """How many pixels are at or above each threshold."""
        counts = np.zeros(256, np.int64)
        np.add.at(counts, scaled, np.bincount(pixels, minlength=256))
        return counts[::-1].cumsum()

    hits = taken(saliency[truth])
    # With P = hits / taken and R = hits / salient, (1 + β²)PR / (β²P + R) is this.
    below = BETA2 * truth.sum() + taken(saliency.ravel())
    curve: NDArray[np.float64] = np.divide(
        (1 + BETA2) * hits, below, out=np.zeros(256), where=below > 0
    )
    return curve

"""How good the weights are so far: MAE and maximal F over the held-out pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from purnet.data.dataset import Sample
from purnet.network.purnet import PurNet


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
    from py_sod_metrics import FmeasureHandler, FmeasureV2

    from purnet.evaluation.metrics import TRUTH_ABOVE

    fmeasure = FmeasureV2({"f": FmeasureHandler(True, False, beta=0.3)})
    errors: list[float] = []
    network.eval()
    for batch in batches:
        maps = network.predict(batch.image.to(device).float() / 255).sigmoid()
        truth = batch.mask.to(device).float() / 255
        errors += (maps - truth).abs().mean(dim=(1, 2, 3)).tolist()
        for saliency, mask in zip((maps * 255).byte().cpu().numpy(), batch.mask, strict=True):
            fmeasure.step(
                saliency[0], np.where(mask[0].numpy() > TRUTH_ABOVE, 255, 0).astype(np.uint8)
            )
    curve = fmeasure.get_results()["f"]["dynamic"]
    return Scores(mae=float(np.mean(errors)), max_f=float(np.max(curve)))

"""The paper's losses, as one criterion that returns named terms.

Where we differ from the released training code, on purpose, a recipe can switch back: see
`purnet.training.corrections`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from purnet.data.ranges import NotNegative
from purnet.data.superpixels import IGNORE
from purnet.network.purnet import PurNetOutput

LOG_FLOOR = 1e-6
"""1 + s_i - s_j is clamped here before its logarithm, which keeps gradients finite."""


def region_means(values: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """Mean value of each region, by scatter-add.

    values (N, 1, H, W) float, regions (N, 1, H, W) int64 from 0, `IGNORE` for pixels of none ->
    means (N, K) float, 0 where absent, and present (N, K) bool; K is one more than the largest
    label.
    """
    labels = regions.flatten(1)
    valid = labels != IGNORE
    labels = torch.where(valid, labels, 0)
    count = int(labels.max()) + 1
    weights = valid.to(values.dtype)
    shape = (values.shape[0], count)
    sums = values.new_zeros(shape).scatter_add(1, labels, values.flatten(1) * weights)
    sizes = values.new_zeros(shape).scatter_add(1, labels, weights)
    return sums / sizes.clamp(min=1), sizes > 0


def structural_similarity_loss(saliency: Tensor, truth: Tensor, regions: Tensor) -> Tensor:
    """Kullback-Leibler divergence between how truth and prediction tell regions apart.

    saliency and truth (N, 1, H, W) in [0, 1], regions (N, 1, H, W) int64 -> scalar >= 0, the mean
    over images. With g and s the region means of truth and prediction over R present regions, the
    matrices (g_i - g_j + 1) / 2 and (s_i - s_j + 1) / 2 both sum to R^2 / 2, since differences
    are antisymmetric; normalised, their divergence is

        1 / R^2 * sum_ij (1 + g_ij) * (log(1 + g_ij) - log(1 + s_ij)).

    Paper, section III-D.
    """
    s, present = region_means(saliency, regions)
    g, _ = region_means(truth, regions)
    s_pairs = 1 + s.unsqueeze(2) - s.unsqueeze(1)
    g_pairs = 1 + g.unsqueeze(2) - g.unsqueeze(1)
    divergence = torch.xlogy(g_pairs, g_pairs) - g_pairs * s_pairs.clamp(min=LOG_FLOOR).log()
    both = present.unsqueeze(2) & present.unsqueeze(1)
    total = torch.where(both, divergence, 0).sum(dim=(1, 2))
    return (total / present.sum(dim=1).square().clamp(min=1)).mean()


def iou_loss(saliency: Tensor, truth: Tensor) -> Tensor:
    """1 - intersection over union of soft maps (N, 1, H, W) in [0, 1], averaged over images.

    One pixel is added to both, so that an empty prediction of an empty truth costs nothing.
    """
    both = (saliency * truth).sum(dim=(1, 2, 3))
    either = (saliency + truth - saliency * truth).sum(dim=(1, 2, 3))
    return (1 - (both + 1) / (either + 1)).mean()


@dataclass(frozen=True, slots=True)
class LossWeights:
    """What each term counts in the sum; a term of weight 0 is not computed."""

    saliency: NotNegative = 1.0
    structure: NotNegative = 0.0
    iou: NotNegative = 0.0
    promotion: NotNegative = 0.0
    object: NotNegative = 0.0
    error: NotNegative = 0.0


class Criterion:
    """The training losses of one stage.

    Each term is the sum over levels, weighted by `levels` (finest first). Targets are brought to
    each map's own size: the truth by averaging, regions by nearest neighbour. Without
    `single_sigmoid` the structure term sees the sigmoid of saliency, as released.
    """

    def __init__(
        self, *, weights: LossWeights, levels: Sequence[float], single_sigmoid: bool = True
    ) -> None:
        self.weights = weights
        self.levels = tuple(levels)
        self.single_sigmoid = single_sigmoid

    def __call__(self, output: PurNetOutput, truth: Tensor, regions: Tensor) -> dict[str, Tensor]:
        """Compute the terms whose weight is not 0, not yet weighted.

        truth (N, 1, H, W) float in [0, 1]; regions (N, 1, H, W) int64.
        """
        losses: dict[str, Tensor] = {}
        for level, factor in enumerate(self.levels):
            for name, loss in self._level(output, level, truth, regions).items():
                losses[name] = losses.get(name, truth.new_zeros(())) + factor * loss
        return losses

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms: what is minimised."""
        weights = asdict(self.weights)
        return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()

    def _level(
        self, output: PurNetOutput, level: int, truth: Tensor, regions: Tensor
    ) -> dict[str, Tensor]:
        logits = output.saliency[level]
        height, width = logits.shape[-2:]
        truth = F.adaptive_avg_pool2d(truth, (height, width))
        saliency = logits.sigmoid()
        weights = self.weights
        losses: dict[str, Tensor] = {}
        if weights.saliency:
            losses["saliency"] = self._saliency(output, level, truth)
        if weights.structure:
            nearest = F.interpolate(regions.to(truth.dtype), size=(height, width))
            compared = saliency if self.single_sigmoid else saliency.sigmoid()
            losses["structure"] = structural_similarity_loss(compared, truth, nearest.long())
        if weights.iou:
            losses["iou"] = iou_loss(saliency, truth)
        if weights.promotion:
            losses["promotion"] = F.binary_cross_entropy_with_logits(output.promotion[level], truth)
        if weights.object:
            losses["object"] = F.binary_cross_entropy_with_logits(output.object[level], truth)
        if weights.error:
            residual = truth - output.object[level].detach().sigmoid()
            # (tanh(x) + 1) / 2 = sigmoid(2 x): cross-entropy over [-1, 1] carried to [0, 1].
            losses["error"] = F.binary_cross_entropy_with_logits(
                2 * output.error[level], (residual + 1) / 2
            )
        return losses

    @staticmethod
    def _saliency(output: PurNetOutput, level: int, truth: Tensor) -> Tensor:
        """Cross-entropy, weighted by 1 + |predicted error| where there is an error head."""
        weight = 1 + output.error[level].detach().tanh().abs() if output.error else None
        return F.binary_cross_entropy_with_logits(output.saliency[level], truth, weight=weight)

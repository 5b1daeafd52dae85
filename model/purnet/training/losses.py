"""The paper's losses, as one criterion that returns named terms.

Where we differ from the released training code, on purpose, a recipe can switch back: see
`purnet.training.recipe.Corrections`. No loss reads a value back from the device, so that a step on
a GPU need not wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from purnet.data.superpixels import IGNORE
from purnet.network.purnet import PurNetOutput
from purnet.training.recipe import LossWeights

LOG_FLOOR = 1e-6
"""1 + s_i - s_j is clamped here before its logarithm, which keeps gradients finite."""


BOUNDARY_REACH = 0.09
"""Side of the square that a pixel's boundary weight looks at, relative to the map's side."""

SMALL = 1e-8
"""Added where the S-measure takes a root or divides, which keeps gradients finite; an empty part of
a map costs something until it is darker than 1e-3."""


def region_means(values: Tensor, regions: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean value of each region, by scatter-add.

    values (N, 1, H, W) float, regions (N, 1, H, W) int64 below `count`, `IGNORE` for pixels of
    none -> means (N, count) float, 0 where absent, and present (N, count) bool.
    """
    labels = regions.flatten(1)
    valid = labels != IGNORE
    labels = torch.where(valid, labels, 0)
    weights = valid.to(values.dtype)
    shape = (values.shape[0], count)
    sums = values.new_zeros(shape).scatter_add(1, labels, values.flatten(1) * weights)
    sizes = values.new_zeros(shape).scatter_add(1, labels, weights)
    return sums / sizes.clamp(min=1), sizes > 0


def structural_similarity_loss(
    saliency: Tensor, truth: Tensor, regions: Tensor, count: int
) -> Tensor:
    """Kullback-Leibler divergence between the differences of regions in truth and prediction.

    saliency and truth (N, 1, H, W) in [0, 1], regions (N, 1, H, W) int64 below `count` -> scalar
    >= 0, the mean over images. With g and s the region means of truth and prediction over R
    present regions, the matrices (g_i - g_j + 1) / 2 and (s_i - s_j + 1) / 2 both sum to R^2 / 2,
    since differences are antisymmetric; normalised, their divergence is

        1 / R^2 * sum_ij (1 + g_ij) * (log(1 + g_ij) - log(1 + s_ij)).

    Paper, section III-D.
    """
    s, present = region_means(saliency, regions, count)
    g, _ = region_means(truth, regions, count)
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


def s_measure_loss(saliency: Tensor, truth: Tensor) -> Tensor:
    """1 - S-measure of soft maps (N, 1, H, W) in [0, 1], averaged over images.

    S is the mean of two similarities: of the object and of its background, each by mean and spread;
    and of the four regions around the object's centre, each by its structural similarity, weighted
    by area. Cross-entropy and IoU make a map decide where it cannot know; S costs less for a grey
    object than for one that is missed. It costs most for an uneven one: of an object that is grey,
    a single bright pixel lowers S. Grey truth counts by its level. Source: Fan et al.,
    "Structure-measure", ICCV 2017, alpha = 0.5; as PySODMetrics computes it, for a binary truth.
    """
    saliency, truth = saliency.squeeze(1), truth.squeeze(1)
    part = truth.mean(dim=(1, 2))
    of_object = part * _object_similarity(saliency, truth)
    of_background = (1 - part) * _object_similarity(1 - saliency, 1 - truth)
    score = (of_object + of_background + _region_similarity(saliency, truth)) / 2
    bright = saliency.mean(dim=(1, 2))
    empty, full = (~(each > 0).any(dim=2).any(dim=1) for each in (truth, 1 - truth))
    score = torch.where(empty, 1 - bright, torch.where(full, bright, score))
    return (1 - score).mean()


def _object_similarity(values: Tensor, inside: Tensor) -> Tensor:
    """How bright and even the values are inside; both (N, H, W) in [0, 1] -> (N,)."""
    count = inside.sum(dim=(1, 2))
    mean = (values * inside).sum(dim=(1, 2)) / count.clamp(min=SMALL)
    deviations = (values - mean[:, None, None]).square() * inside
    spread = (deviations.sum(dim=(1, 2)) / (count - 1).clamp(min=1) + SMALL).sqrt()
    return 2 * mean / (mean.square() + 1 + spread)


def _region_similarity(saliency: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of the regions around the object's centre; (N, H, W) each -> (N,)."""
    rows, columns = (
        _halves(truth.sum(dim=dim), side)
        for dim, side in ((2, truth.shape[1]), (1, truth.shape[2]))
    )

    def sums(values: Tensor) -> Tensor:
        """Over each region; (N, H, W) -> (N, 2, 2)."""
        return rows @ values @ columns.transpose(1, 2)

    area = sums(torch.ones_like(truth))
    s, g, s_square, g_square, product = (
        sums(values) / area.clamp(min=1)
        for values in (saliency, truth, saliency.square(), truth.square(), saliency * truth)
    )
    variances = (s_square - s.square()).clamp(min=0) + (g_square - g.square()).clamp(min=0)
    likeness = (4 * s * g * (product - s * g) + SMALL) / (
        (s.square() + g.square()) * variances + SMALL
    )
    return (area * likeness).sum(dim=(1, 2)) / truth[0].numel()


def _halves(counts: Tensor, side: int) -> Tensor:
    """Which positions lie before and after the centre of mass; counts (N, side) -> (N, 2, side).

    The centre itself counts to those before it.
    """
    at = torch.arange(side, dtype=counts.dtype, device=counts.device)
    centre = (counts * at).sum(dim=1) / counts.sum(dim=1).clamp(min=SMALL)
    before = (at <= centre.round().unsqueeze(1)).to(counts.dtype)
    return torch.stack([before, 1 - before], dim=1)


def boundary_weights(truth: Tensor, boundary: float) -> Tensor:
    """How much each pixel counts: more near the object's boundary, 1 on average.

    truth (N, 1, H, W) in [0, 1] -> 1 + boundary * |local mean - truth| over its mean, same shape.
    """
    height, width = truth.shape[-2:]
    rows, columns = (max(1, round(side * BOUNDARY_REACH / 2)) for side in (height, width))
    # The mean over a square, as a mean over rows of means over columns.
    mean = truth
    for kernel, padding in (((2 * rows + 1, 1), (rows, 0)), ((1, 2 * columns + 1), (0, columns))):
        mean = F.avg_pool2d(mean, kernel, stride=1, padding=padding, count_include_pad=False)
    weights = 1 + boundary * (mean - truth).abs()
    return weights / weights.mean()


class Criterion:
    """The training losses of one stage.

    Each term is the sum over levels, weighted by `levels` (finest first). Where the network refines
    edges, its refined map counts in saliency, IoU and S-measure as much as that of the finest
    level, and without the weights of expected errors. Targets are brought to each map's own size:
    the truth by averaging, regions by nearest neighbour. `boundary` is how much more the saliency
    term counts pixels near the object's boundary. Without `single_sigmoid` the structure term sees
    the sigmoid of saliency, as released.
    """

    def __init__(
        self,
        *,
        weights: LossWeights,
        levels: Sequence[float],
        boundary: float = 0.0,
        single_sigmoid: bool = True,
    ) -> None:
        self.weights = weights
        self.level_weights = tuple(levels)
        self.boundary = boundary
        self.single_sigmoid = single_sigmoid

    def __call__(
        self, output: PurNetOutput, truth: Tensor, regions: Tensor, region_count: int
    ) -> dict[str, Tensor]:
        """Compute the terms whose weight is not 0, not yet weighted, in float32.

        truth (N, 1, H, W) float32 in [0, 1]; regions (N, 1, H, W) int64 below `region_count`, of
        which nothing is asked without the structure term. `output` has as many levels as there are
        weights, and in `saliency` at most the refined map beside them.
        """
        refined_maps = len(output.saliency) - len(self.level_weights)
        of_levels = replace(output, saliency=output.saliency[refined_maps:])
        found = [
            (weight, self._level_terms(of_levels, level, truth, regions, region_count))
            for level, weight in enumerate(self.level_weights)
        ]
        found += [
            (
                self.level_weights[0],
                self._saliency_terms(logits.float(), _pooled(truth, logits), None),
            )
            for logits in output.saliency[:refined_maps]
        ]
        losses: dict[str, Tensor] = {}
        for weight, terms in found:
            for name, loss in terms.items():
                losses[name] = losses.get(name, truth.new_zeros(())) + weight * loss
        return losses

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the terms: what is minimised."""
        return torch.stack(
            [getattr(self.weights, name) * loss for name, loss in losses.items()]
        ).sum()

    def _level_terms(
        self, output: PurNetOutput, level: int, truth: Tensor, regions: Tensor, region_count: int
    ) -> dict[str, Tensor]:
        logits = output.saliency[level].float()
        truth = _pooled(truth, logits)
        weights = self.weights
        # An error head without a loss of its own predicts nothing.
        error = output.error[level].detach().float() if output.error and weights.error else None
        losses = self._saliency_terms(logits, truth, error)
        if weights.structure:
            nearest = F.interpolate(regions.to(truth.dtype), size=logits.shape[-2:])
            saliency = logits.sigmoid()
            compared = saliency if self.single_sigmoid else saliency.sigmoid()
            losses["structure"] = structural_similarity_loss(
                compared, truth, nearest.long(), region_count
            )
        if weights.promotion:
            losses["promotion"] = F.binary_cross_entropy_with_logits(
                output.promotion[level].float(), truth
            )
        if weights.object:
            losses["object"] = F.binary_cross_entropy_with_logits(
                output.object[level].float(), truth
            )
        if weights.error:
            residual = truth - output.object[level].detach().float().sigmoid()
            # (tanh(x) + 1) / 2 = sigmoid(2 x): cross-entropy over [-1, 1] carried to [0, 1].
            losses["error"] = F.binary_cross_entropy_with_logits(
                2 * output.error[level].float(), (residual + 1) / 2
            )
        return losses

    def _saliency_terms(
        self, logits: Tensor, truth: Tensor, error: Tensor | None
    ) -> dict[str, Tensor]:
        """Of a saliency map and the truth at its size; `error` is as for `_cross_entropy`."""
        saliency = logits.sigmoid()
        losses: dict[str, Tensor] = {}
        if self.weights.saliency:
            losses["saliency"] = self._cross_entropy(logits, truth, error)
        if self.weights.iou:
            losses["iou"] = iou_loss(saliency, truth)
        if self.weights.s_measure:
            losses["s_measure"] = s_measure_loss(saliency, truth)
        return losses

    def _cross_entropy(self, logits: Tensor, truth: Tensor, error: Tensor | None) -> Tensor:
        """Cross-entropy, weighted by 1 + |predicted error| where there are error logits."""
        weight = boundary_weights(truth, self.boundary) if self.boundary else None
        if error is not None:
            expected = 1 + error.tanh().abs()
            weight = expected if weight is None else weight * expected
        return F.binary_cross_entropy_with_logits(logits, truth, weight=weight)


def _pooled(truth: Tensor, logits: Tensor) -> Tensor:
    """The truth at the size of a map, by averaging."""
    height, width = logits.shape[-2:]
    return F.adaptive_avg_pool2d(truth, (height, width))

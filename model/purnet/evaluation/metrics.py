"""Scores of saliency maps: the field's by PySODMetrics, and PurNet's own convention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import py_sod_metrics
from numpy.typing import NDArray

from purnet.data.pairs import TRUTH_ABOVE
from purnet.imaging import UInt8Array

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

BETA2 = 0.3
"""β² of every F-measure but the weighted one: precision counts more than recall."""

SOFT = (26, 229)
"""Pixels of these grey levels and between, of 0..255, are soft: neither bright nor dark."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of the report and how it is computed."""

    key: str
    label: str
    better: Literal["lower", "higher"]
    convention: str


METRICS = (
    Metric("mae", "MAE", "lower", "mean of |map - truth|, mean of the images"),
    Metric(
        "weighted_f", "weighted F", "higher", "Margolin et al. 2014, β² = 1, mean of the images"
    ),
    Metric(
        "purnet_f",
        "F (PurNet)",
        "higher",
        "threshold ⌊2·mean⌋ of 0..255; F of the set's mean precision and recall, β² = 0.3",
    ),
    Metric(
        "purnet_precision", "precision (PurNet)", "higher", "threshold ⌊2·mean⌋, mean of the images"
    ),
    Metric("purnet_recall", "recall (PurNet)", "higher", "threshold ⌊2·mean⌋, mean of the images"),
    Metric("max_f", "max F", "higher", "best of 256 thresholds of the images' mean F, β² = 0.3"),
    Metric("mean_f", "mean F", "higher", "mean of 256 thresholds of the images' mean F, β² = 0.3"),
    Metric(
        "adaptive_f",
        "adaptive F",
        "higher",
        "threshold min(2·mean, 1) per image, mean of the images' F, β² = 0.3",
    ),
    Metric("s_measure", "S", "higher", "Fan et al. 2017, alpha 0.5, mean of the images"),
    Metric("max_e", "max E", "higher", "Fan et al. 2018, best of 256 thresholds"),
    Metric("mean_e", "mean E", "higher", "Fan et al. 2018, mean of 256 thresholds"),
    Metric(
        "adaptive_e", "adaptive E", "higher", "Fan et al. 2018, threshold min(2·mean, 1) per image"
    ),
)
"""In the order they are printed: the three of the paper's table come first."""

PREPARATION = (
    f"Truth: salient above {TRUTH_ABOVE}. Maps: min-max scaled per image, a constant map left as "
    "it is (PurNet's convention takes nothing from it)."
)


class ImageScore(NamedTuple):
    """Scores of one map against its truth; arrays are (256,), at thresholds 255 down to 0."""

    mae: float
    weighted_f: float
    s_measure: float
    purnet_precision: float
    purnet_recall: float
    adaptive_f: float
    adaptive_e: float
    f: FloatArray
    precision: FloatArray
    recall: FloatArray
    e: FloatArray
    empty_truth: bool
    """Whether nothing is salient in the truth."""
    soft: float
    """Part of the map's pixels, as they come, that are `SOFT`: what a sharp map has few of."""
    truth_soft: float
    """That of its truth."""


class SetScore(NamedTuple):
    """Scores of a set of images."""

    metrics: dict[str, float]
    """Value of each of `METRICS` by key."""
    precision: list[float]
    """Mean of the images' precision at thresholds 0..255: a pixel is taken at `map >= t`."""
    recall: list[float]
    """Mean of the images' recall at thresholds 0..255."""
    soft: float
    """Mean of the images' part of soft pixels (`SOFT`)."""
    truth_soft: float
    """That of their truths."""


def score_image(saliency: UInt8Array, truth: UInt8Array) -> ImageScore:
    """Score one map (H, W) uint8, 255 = salient, against its truth (H, W) uint8.

    Raises `ValueError` when the two differ in size.
    """
    salient = truth > TRUTH_ABOVE
    # As PySODMetrics normalises by itself, but once for all measures.
    scaled = saliency / 255
    if scaled.max() != scaled.min():
        scaled = (scaled - scaled.min()) / (scaled.max() - scaled.min())
    mae, weighted_f = py_sod_metrics.MAE(), py_sod_metrics.WeightedFmeasure(beta=1)
    s, e = _Smeasure(alpha=0.5), py_sod_metrics.Emeasure()
    handlers = {
        "f": py_sod_metrics.FmeasureHandler(True, True, beta=BETA2),
        "precision": py_sod_metrics.PrecisionHandler(True, False),
        "recall": py_sod_metrics.RecallHandler(True, False),
    }
    f = py_sod_metrics.FmeasureV2(handlers)
    for measure in (mae, weighted_f, s, e, f):
        measure.step(scaled, salient, normalize=False)
    curves, alignment = f.get_results(), e.get_results()["em"]
    precision, recall = purnet_precision_recall(saliency, salient)
    return ImageScore(
        mae=float(mae.get_results()["mae"]),
        weighted_f=float(weighted_f.get_results()["wfm"]),
        s_measure=float(s.get_results()["sm"]),
        purnet_precision=precision,
        purnet_recall=recall,
        adaptive_f=float(curves["f"]["adaptive"]),
        adaptive_e=float(alignment["adp"]),
        f=curves["f"]["dynamic"],
        precision=curves["precision"]["dynamic"],
        recall=curves["recall"]["dynamic"],
        e=alignment["curve"],
        empty_truth=not salient.any(),
        soft=soft_part(saliency),
        truth_soft=soft_part(truth),
    )


def score_set(images: Sequence[ImageScore]) -> SetScore:
    """Scores of a set from those of its images; there must be at least one."""

    def mean(name: str) -> Any:
        return np.mean([getattr(image, name) for image in images], axis=0)

    precision, recall, f, e = map(mean, ("purnet_precision", "purnet_recall", "f", "e"))
    of_curves = {
        "purnet_f": f_measure(precision, recall),
        "max_f": f.max(),
        "mean_f": f.mean(),
        "max_e": e.max(),
        "mean_e": e.mean(),
    }
    means = {metric.key: mean(metric.key) for metric in METRICS if metric.key not in of_curves}
    return SetScore(
        {metric.key: float((of_curves | means)[metric.key]) for metric in METRICS},
        precision=np.flip(mean("precision")).tolist(),
        recall=np.flip(mean("recall")).tolist(),
        soft=float(mean("soft")),
        truth_soft=float(mean("truth_soft")),
    )


def soft_part(levels: UInt8Array) -> float:
    """Part of the pixels of a map or truth, uint8, whose level lies within `SOFT`."""
    low, high = SOFT
    return float(((levels >= low) & (levels <= high)).mean())


def purnet_precision_recall(saliency: UInt8Array, truth: BoolArray) -> tuple[float, float]:
    """Precision and recall of one map by PurNet's convention.

    The map is min-max scaled to 0..255 and pixels at or above ⌊2·mean⌋ (at most 255) are taken.
    All of it is done in whole numbers, so a mean that falls on a whole threshold is never
    rounded to the wrong side.

    Three cases the formulas leave open are decided as in the authors' script, since its numbers
    are what one compares with: a constant map takes nothing (scaling it is 0/0 there, and no pixel
    is at or above NaN), so precision and recall are 0; an empty truth gives recall 0, and precision
    0 because nothing taken is right; a nearly empty map, whose threshold is ⌊2·mean⌋ = 0, takes the
    whole image.
    """
    low, high = int(saliency.min()), int(saliency.max())
    if low == high:
        return 0.0, 0.0
    above = saliency.astype(np.int64) - low
    span = high - low
    threshold = min(2 * 255 * int(above.sum()) // (saliency.size * span), 255)
    taken = above * 255 >= threshold * span
    hits = np.count_nonzero(taken & truth)
    salient = np.count_nonzero(truth)
    # The brightest pixel is always at or above the threshold: something is taken.
    return hits / np.count_nonzero(taken), hits / salient if salient else 0.0


def f_measure(precision: float, recall: float) -> float:
    """(1 + β²)·P·R / (β²·P + R) with β² = 0.3; 0 when both are 0."""
    if precision == recall == 0:
        return 0.0
    return (1 + BETA2) * precision * recall / (BETA2 * precision + recall)


class _Smeasure(py_sod_metrics.Smeasure):  # type: ignore[misc]  # the library is not typed
    """S-measure that stays finite when the truth's centre lies in the last row or column.

    Two of the four regions are empty there. They weigh nothing, but their mean is NaN.
    """

    def ssim(self, pred: NDArray[np.float64], gt: BoolArray) -> float:
        return float(super().ssim(pred, gt)) if pred.size else 0.0

"""Scores of saliency maps: the field's by PySODMetrics, and PurNet's own convention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import py_sod_metrics
from numpy.typing import NDArray

UInt8Array = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]

BETA2 = 0.3
"""β² of every F-measure but the weighted one: precision counts more than recall."""

TRUTH_ABOVE = 128
"""A truth pixel is salient above this grey level, as in PySODMetrics; so for every metric here."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of the report and how it comes about."""

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
    """Scores that exist for a single image, to rank images by."""

    mae: float
    weighted_f: float
    s_measure: float


class SetScore(NamedTuple):
    """Scores of a set of images."""

    metrics: dict[str, float]
    """Value of each of `METRICS` by key."""
    precision: list[float]
    """Mean of the images' precision at thresholds 0..255: a pixel is taken at `map >= t`."""
    recall: list[float]
    """Mean of the images' recall at thresholds 0..255."""


class Scorer:
    """Takes images one by one; then says how good the set is."""

    def __init__(self) -> None:
        self._mae: Any = py_sod_metrics.MAE()
        self._weighted_f: Any = py_sod_metrics.WeightedFmeasure(beta=1)
        self._s: Any = _Smeasure(alpha=0.5)
        self._e: Any = py_sod_metrics.Emeasure()
        self._f: Any = py_sod_metrics.FmeasureV2(
            {
                "f": py_sod_metrics.FmeasureHandler(True, True, beta=BETA2),
                "precision": py_sod_metrics.PrecisionHandler(True, False),
                "recall": py_sod_metrics.RecallHandler(True, False),
            }
        )
        self._purnet: list[tuple[float, float]] = []

    def add(self, saliency: UInt8Array, truth: UInt8Array) -> ImageScore:
        """Score one map (H, W) uint8, 255 = salient, against its truth (H, W) uint8.

        Raises `ValueError` when the two differ in size.
        """
        for metric in (self._mae, self._weighted_f, self._s, self._e, self._f):
            metric.step(saliency, truth)
        self._purnet.append(purnet_precision_recall(saliency, truth > TRUTH_ABOVE))
        return ImageScore(
            mae=float(self._mae.maes[-1]),
            weighted_f=float(self._weighted_f.weighted_fms[-1]),
            s_measure=float(self._s.sms[-1]),
        )

    def result(self) -> SetScore:
        """Scores of all images so far; there must be at least one."""
        f = self._f.get_results()
        e = self._e.get_results()["em"]
        precision, recall = np.mean(self._purnet, axis=0)
        metrics = {
            "mae": self._mae.get_results()["mae"],
            "weighted_f": self._weighted_f.get_results()["wfm"],
            "purnet_f": f_measure(precision, recall),
            "purnet_precision": precision,
            "purnet_recall": recall,
            "max_f": f["f"]["dynamic"].max(),
            "mean_f": f["f"]["dynamic"].mean(),
            "adaptive_f": f["f"]["adaptive"],
            "s_measure": self._s.get_results()["sm"],
            "max_e": e["curve"].max(),
            "mean_e": e["curve"].mean(),
            "adaptive_e": e["adp"],
        }
        # PySODMetrics lists thresholds from 255 down.
        return SetScore(
            {metric.key: float(metrics[metric.key]) for metric in METRICS},
            precision=np.flip(f["precision"]["dynamic"]).tolist(),
            recall=np.flip(f["recall"]["dynamic"]).tolist(),
        )


def purnet_precision_recall(saliency: UInt8Array, truth: BoolArray) -> tuple[float, float]:
    """Precision and recall of one map by PurNet's convention.

    The map is min-max scaled to 0..255 and pixels at or above ⌊2·mean⌋ (at most 255) are taken.
    All of it is done in whole numbers, so a mean that falls on a whole threshold is never
    rounded to the wrong side.

    Three cases the formulas leave open, decided as the authors' script falls out on them, since
    its numbers are what one compares with: a constant map takes nothing (scaling it is 0/0 there,
    and no pixel is at or above NaN), so precision and recall are 0; an empty truth gives recall 0,
    and precision 0 because nothing taken is right, whatever the map says; a nearly empty map,
    whose threshold is ⌊2·mean⌋ = 0, takes the whole image.
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

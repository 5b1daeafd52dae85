"""The table of the PurNet paper, as published, to stand beside our own numbers."""

from __future__ import annotations

from typing import NamedTuple

SOURCE = (
    "Li, Su, Xia, Ma, Tian: Salient Object Detection with Purificatory Mechanism and Structural "
    "Similarity Loss, IEEE Transactions on Image Processing 30 (2021); trained on DUTS-TR"
)

KEYS = ("mae", "weighted_f", "purnet_f")
"""Which of our metrics the paper's columns MAE, wF and F are."""


class PublishedScore(NamedTuple):
    """One cell of the table; its fields are in the order of `KEYS`."""

    mae: float
    weighted_f: float
    purnet_f: float


PUBLISHED: dict[str, dict[str, PublishedScore]] = {
    "ResNet-50": {
        "ECSSD": PublishedScore(0.035, 0.907, 0.928),
        "DUT-OMRON": PublishedScore(0.051, 0.747, 0.776),
        "PASCAL-S": PublishedScore(0.070, 0.805, 0.847),
        "HKU-IS": PublishedScore(0.031, 0.889, 0.904),
        "DUTS-TE": PublishedScore(0.039, 0.817, 0.829),
        "XPIE": PublishedScore(0.041, 0.843, 0.876),
    },
    "VGG-16": {
        "ECSSD": PublishedScore(0.040, 0.892, 0.920),
        "DUT-OMRON": PublishedScore(0.054, 0.730, 0.768),
        "PASCAL-S": PublishedScore(0.076, 0.798, 0.841),
        "HKU-IS": PublishedScore(0.036, 0.870, 0.894),
        "DUTS-TE": PublishedScore(0.043, 0.797, 0.816),
        "XPIE": PublishedScore(0.044, 0.830, 0.868),
    },
}
"""Backbone -> data set -> score."""

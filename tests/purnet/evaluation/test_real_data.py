"""On human masks of real photos, where `PURNET_DATA` says they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from purnet.data.pairs import Layout, find_pairs, read_truth
from purnet.evaluation.metrics import score_image, score_set


@pytest.fixture(scope="module")
def sod226(require):
    data = os.environ.get("PURNET_DATA")
    require(data, "PURNET_DATA names the data folder")
    return find_pairs(Path(data or "") / "test" / "sod226")


def test_every_pair_is_found_and_whole(sod226):
    assert sod226.layout == Layout("image", "mask")
    assert len(sod226.pairs) == 226
    assert sod226.skipped == []


def test_the_truth_scores_perfectly_and_its_opposite_not_at_all(sod226):
    right, wrong = [], []
    for pair in sod226.pairs[::40]:
        truth = read_truth(pair.mask)
        assert set(np.unique(truth)) == {0, 255}
        right.append(score_image(truth, truth))
        wrong.append(score_image(255 - truth, truth))
    best, worst = score_set(right).metrics, score_set(wrong).metrics
    assert best["mae"] == 0
    assert worst["mae"] == 1
    for key in ("weighted_f", "purnet_f", "max_f", "adaptive_f", "s_measure"):
        assert best[key] == pytest.approx(1, abs=1e-6), key
        assert worst[key] < 0.5, key

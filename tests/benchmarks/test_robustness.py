from __future__ import annotations

import numpy as np
import pytest
from benchmarks.robustness import (
    CHANGES,
    Scored,
    by_object,
    iou,
    is_found,
    mean_scores,
    table_row,
)
from photos import scene

from purnet.evaluation.metrics import score_image
from purnet.imaging import read_pixels

pytestmark = pytest.mark.needs_torch


def scored(part: float, mae: float = 0.1) -> Scored:
    truth = np.zeros((8, 8), np.uint8)
    score = score_image(truth, truth)._replace(mae=mae, weighted_f=0.5, s_measure=0.25)
    return Scored(score, iou=0.75, found=True, object_part=part)


def test_each_photo_is_in_one_class_of_object_sizes() -> None:
    rows = [scored(part) for part in (0.001, 0.05, 0.051, 0.15, 0.3, 0.5, 0.9, 1.0)]
    classes = by_object(rows)
    assert [len(those) for those in classes.values()] == [2, 2, 1, 1, 2]
    assert [row for those in classes.values() for row in those] == rows
    assert next(iter(classes)) == "object of 0% to 5% of the photo (2)"


def test_a_row_has_means_or_nothing() -> None:
    rows = [scored(0.1, 0.1), scored(0.1, 0.2)]
    assert mean_scores(rows) == (np.mean([0.1, 0.2]), 0.5, 0.25)
    assert table_row("two", rows) == "| two | 0.1500 | 0.5000 | 0.2500 | 0.7500 | 100.0% |"
    assert table_row("none", []) == "| none | | | | | |"


def test_masks_are_cut_before_they_overlap_the_truth() -> None:
    truth = np.zeros((2, 4), np.uint8)
    truth[:, :2] = 255
    mask = np.array([[255, 127, 128, 0], [200, 0, 0, 0]], np.uint8)
    assert iou(mask, truth) == 2 / 5
    assert iou(truth, truth) == 1
    assert iou(mask * 0, truth) == 0
    assert iou(mask * 0, truth * 0) == 1


def test_something_is_found_from_a_hundredth_of_the_pixels_on() -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[:9, :11] = 128
    assert not is_found(mask)
    mask[9, 0] = 128
    assert is_found(mask)


def test_every_changed_photo_can_still_be_read_and_is_turned_back() -> None:
    photo = scene(96, 64)
    for name, change in CHANGES.items():
        read = read_pixels(change(photo), 320)
        wide = read.width / read.height
        assert abs(wide - 1.5) < 0.02, name

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.robustness import CHANGES, Scored, by_object, is_found, mean_scores, table_row
from photos import scene

from purnet.imaging import read_pixels

pytestmark = pytest.mark.needs_torch


def scored(part: float, mae: float = 0.1) -> Scored:
    return Scored(mae, 0.5, 0.25, True, part)


def test_each_photo_is_in_one_class_of_object_sizes() -> None:
    rows = [scored(part) for part in (0.001, 0.05, 0.051, 0.15, 0.3, 0.5, 0.9, 1.0)]
    classes = by_object(rows)
    assert [len(those) for those in classes.values()] == [2, 2, 1, 1, 2]
    assert [row for those in classes.values() for row in those] == rows
    assert next(iter(classes)) == "object of 0% to 5% of the photo (2)"


def test_a_row_has_means_or_nothing() -> None:
    rows = [scored(0.1, 0.1), scored(0.1, 0.2)]
    assert mean_scores(rows) == (np.mean([0.1, 0.2]), 0.5, 0.25)
    assert table_row("two", rows) == "| two | 0.1500 | 0.5000 | 0.2500 | 100.0% |"
    assert table_row("none", []) == "| none | | | | |"


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

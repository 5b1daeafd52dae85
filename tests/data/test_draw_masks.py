from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

HERE = Path(__file__).parent
DRAW = runpy.run_path(str(HERE / "draw_masks.py"))["draw"]


@pytest.mark.parametrize("name", ["chelsea", "coffee", "rocket"])
def test_masks_are_what_the_outlines_draw_at_the_size_of_the_photo(name):
    height, width, _ = getattr(skimage.data, name)().shape
    with Image.open(HERE / "masks" / f"{name}.png") as mask:
        assert mask.mode == "L"
        assert mask.size == (width, height)
        drawn = DRAW(HERE / "masks" / f"{name}.json")
        np.testing.assert_array_equal(np.asarray(mask), np.asarray(drawn))
        assert set(np.unique(np.asarray(mask))) == {0, 255}


def test_a_square_is_drawn_where_its_points_say(tmp_path):
    outline = tmp_path / "square.json"
    outline.write_text(
        '{"width": 6, "height": 5, "outlines": [[[0.5, 0.5], [3.5, 0.5], [3.5, 2.5], [0.5, 2.5]]]}'
    )
    expected = np.zeros((5, 6), np.uint8)
    expected[1:3, 1:4] = 255
    np.testing.assert_array_equal(np.asarray(DRAW(outline)), expected)

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from model.errors import DatasetError
from model.evaluation.maps import UnreadableError, grey_levels, read_map, read_truth, size_of

RAMP = np.array([[0, 85], [170, 255]], np.uint8)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "LA"])
def test_grey_levels_survive_every_way_of_saving_them(tmp_path, mode):
    path = tmp_path / "map.png"
    Image.fromarray(RAMP).convert(mode).save(path)
    np.testing.assert_array_equal(read_map(path), RAMP)


def test_sixteen_bits_are_scaled(tmp_path):
    path = tmp_path / "map.png"
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(path)
    np.testing.assert_array_equal(read_map(path), RAMP)


def test_one_bit_is_black_and_white(tmp_path):
    path = tmp_path / "map.png"
    Image.fromarray(RAMP > 100).save(path)
    np.testing.assert_array_equal(read_map(path), np.where(RAMP > 100, 255, 0))


def test_a_cutout_is_refused(tmp_path):
    path = tmp_path / "cutout.png"
    image = Image.new("RGB", (2, 2))
    image.putalpha(Image.fromarray(RAMP))
    image.save(path)
    with pytest.raises(UnreadableError, match="cutout") as refused:
        read_map(path)
    assert refused.value.path == path


def test_a_truth_of_zeros_and_ones_is_stretched(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray((RAMP > 100).astype(np.uint8)).save(path)
    np.testing.assert_array_equal(read_truth(path), np.where(RAMP > 100, 255, 0))


def test_any_other_truth_is_left_as_it_is(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(RAMP).save(path)
    np.testing.assert_array_equal(read_truth(path), RAMP)


def test_a_broken_file_is_named_with_the_reason(tmp_path):
    path = tmp_path / "map.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DatasetError, match=r"map.png cannot be read: "):
        read_map(path)
    with pytest.raises(UnreadableError):
        size_of(path)


def test_an_image_in_memory_will_do():
    np.testing.assert_array_equal(grey_levels(Image.fromarray(RAMP)), RAMP)

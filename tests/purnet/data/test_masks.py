from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from image_files import raw_png
from photos import scene, unknown_pixel_format, with_orientation
from PIL import Image

from purnet.data.pairs import UnreadableError, grey_levels, read_map, read_truth, size_of
from purnet.errors import DatasetError

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


@pytest.mark.parametrize("value", [1, 6])
@pytest.mark.parametrize(
    "kind", ["1", "L", "P", "I;16", "I", "F", "RGB", "2 bits", "4 bits", "TIFF of 4 bits"]
)
def test_zeros_and_ones_of_any_depth_are_black_and_white(tmp_path, kind, value):
    path, exif = tmp_path / "mask.png", with_orientation(value)
    marks = np.array([[0, 1, 0], [1, 1, 0]], np.uint8)
    if kind in ("2 bits", "4 bits"):
        depth = int(kind[0])
        bits = marks[..., None] >> np.arange(depth)[::-1] & 1
        rows = np.packbits(bits.reshape(2, -1), axis=1).tobytes()
        block = (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        path.write_bytes(raw_png(3, 2, depth, 0, rows, block))
    elif kind == "TIFF of 4 bits":
        tags = [(256, 3), (257, 2), (258, 4), (259, 1), (262, 1), (273, 8), (274, value), (278, 2)]
        tags.append((279, 4))
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, number) for tag, number in tags)
        head = struct.pack("<4sI", b"II*\0", 12) + b"\x01\x00\x11\x00"
        path.write_bytes(head + struct.pack("<H", len(tags)) + entries + bytes(4))
    else:
        types = {"1": bool, "I;16": np.uint16, "I": np.int32, "F": np.float32}
        mask = Image.fromarray(marks.astype(types.get(kind, np.uint8)))
        if kind == "P":
            mask.putpalette([0, 0, 0, 1, 1, 1])
        path = path.with_suffix(".tif" if kind in ("I", "F") else ".png")
        (mask.convert("RGB") if kind == "RGB" else mask).save(path, exif=exif)
    truth = marks * 255 if value == 1 else np.rot90(marks * 255, -1)
    np.testing.assert_array_equal(read_truth(path), truth)


def test_a_soft_mask_of_two_low_levels_is_left_as_it_is(tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(raw_png(4, 1, 2, 0, b"\x1b"))
    np.testing.assert_array_equal(read_truth(path), [[0, 85, 170, 255]])


def test_any_other_truth_is_left_as_it_is(tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(RAMP).save(path)
    np.testing.assert_array_equal(read_truth(path), RAMP)


VOC = list(bytes.fromhex("000000 800000 008000 808000 000080 800080 008080 808080"))
"""The first colours of PASCAL VOC's palette: black, dark red, dark green, ... and a grey."""


def palette_mask(path, numbers, palette):
    mask = Image.fromarray(np.array(numbers, np.uint8)).convert("L")
    mask.putpalette(palette)
    assert mask.mode == "P"
    mask.save(path)
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "gif", "bmp"])
@pytest.mark.parametrize("label", range(1, 8))
def test_a_palette_of_black_and_one_other_colour_is_a_mask(tmp_path, label, suffix):
    path = palette_mask(tmp_path / f"mask.{suffix}", [[0, label], [0, 0]], VOC)
    np.testing.assert_array_equal(read_truth(path), [[0, 255], [0, 0]])


def test_a_palette_of_black_and_several_colours_holds_labels(tmp_path):
    path = palette_mask(tmp_path / "mask.png", [[0, 1, 2], [0, 7, 4]], VOC)
    np.testing.assert_array_equal(read_truth(path), [[0, 255, 255], [0, 255, 255]])


def test_a_palette_of_black_alone_is_an_empty_truth(tmp_path):
    path = palette_mask(tmp_path / "mask.png", [[0, 0], [0, 0]], VOC)
    assert not read_truth(path).any()


def test_a_palette_of_greys_holds_grey_levels(tmp_path):
    path = palette_mask(tmp_path / "mask.png", RAMP, [level for level in range(256) for _ in "RGB"])
    np.testing.assert_array_equal(read_truth(path), RAMP)


def test_a_palette_without_black_is_read_by_its_luminance(tmp_path):
    path = palette_mask(tmp_path / "mask.png", [[0, 1]], [0, 0, 255, 255, 255, 255])
    np.testing.assert_array_equal(read_truth(path), [[29, 255]])


def test_a_saliency_map_is_never_taken_for_labels(tmp_path):
    path = palette_mask(tmp_path / "map.png", [[0, 1]], VOC)
    np.testing.assert_array_equal(read_map(path), [[0, 38]])


def test_labels_are_upright(tmp_path):
    mask = Image.fromarray(np.array([[0, 1, 0]], np.uint8)).convert("L")
    mask.putpalette(VOC)
    mask.save(tmp_path / "mask.tif", exif=with_orientation(6))
    np.testing.assert_array_equal(read_truth(tmp_path / "mask.tif"), [[0], [255], [0]])


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_size_is_the_one_it_is_read_at(tmp_path, mode, suffix, value):
    path = tmp_path / f"map.{suffix}"
    scene(60, 40).convert(mode).save(path, exif=with_orientation(value))
    width, height = size_of(path)
    assert (width, height) == ((40, 60) if value >= 5 else (60, 40))
    assert read_map(path).shape == (height, width)


def test_a_file_that_pillow_fails_on_in_its_own_way_is_named(tmp_path):
    path = tmp_path / "map.png"
    path.write_bytes(unknown_pixel_format())
    with pytest.raises(UnreadableError, match=r"map\.png cannot be read: the image is broken"):
        read_map(path)


def test_a_broken_file_is_named_with_the_reason(tmp_path):
    path = tmp_path / "map.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(DatasetError, match=r"map.png cannot be read: "):
        read_map(path)
    with pytest.raises(UnreadableError):
        size_of(path)


def test_an_image_in_memory_will_do():
    np.testing.assert_array_equal(grey_levels(Image.fromarray(RAMP)), RAMP)


def test_a_mask_of_0_and_1_at_16_bits_is_stretched():
    path = Path(__file__).parent / "cases" / "mask16-of-0-and-1.png"
    with Image.open(path) as image:
        stored = np.asarray(image)
    assert set(np.unique(stored)) == {0, 1}
    np.testing.assert_array_equal(read_truth(path), stored * 255)


@pytest.mark.parametrize("colour_type", [2, 6], ids=["RGB", "RGBA"])
def test_colours_of_16_bits_of_0_and_1_are_stretched(tmp_path, colour_type):
    marks = np.array([[0, 1, 0], [1, 1, 0]], np.uint16)
    samples = np.repeat(marks[..., None], 3, axis=2)
    if colour_type == 6:
        samples = np.concatenate([samples, np.full((2, 3, 1), 65535, np.uint16)], axis=2)
    path = tmp_path / "mask.png"
    path.write_bytes(raw_png(3, 2, 16, colour_type, samples.astype(">u2").tobytes()))
    np.testing.assert_array_equal(read_truth(path), marks * 255)

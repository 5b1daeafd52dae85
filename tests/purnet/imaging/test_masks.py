from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import pytest
from photos import encoded, opened, scene
from PIL import Image

from purnet.imaging import (
    cutout,
    encode_png,
    encode_webp,
    resize_mask,
    to_pixels,
)

SCENE = np.asarray(scene()).astype(int)


def test_pixels_are_antialiased_and_contiguous() -> None:
    fine = Image.fromarray((np.indices((640, 640)).sum(0) % 2 * 255).astype(np.uint8))
    pixels = to_pixels(fine.convert("RGB"), 320)
    assert (pixels.shape, pixels.dtype) == ((320, 320, 3), np.uint8)
    assert pixels.flags.c_contiguous
    assert pixels.std() < 2, "a checkerboard must become grey"


@pytest.mark.parametrize("smooth", [True, False])
@pytest.mark.parametrize(
    "size",
    [
        (320, 320),
        (640, 480),
        (200, 150),
        (100, 700),
        (319, 321),
        (1, 1),
        (37, 5),
        (1999, 3),
        (1, 900),
    ],
)
def test_masks_are_resized_as_opencv_does(size: tuple[int, int], smooth: bool) -> None:
    mask = np.random.default_rng(7).integers(0, 256, (320, 320), dtype=np.uint8)
    if smooth:
        mask = cv2.GaussianBlur(mask, (0, 0), 5).astype(np.uint8)
    ours = resize_mask(mask, size).astype(int)
    theirs = cv2.resize(mask, size, interpolation=cv2.INTER_LINEAR).astype(int)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= 1


def test_a_mask_of_its_own_size_is_unchanged() -> None:
    mask = np.random.default_rng(1).integers(0, 256, (40, 40), dtype=np.uint8)
    assert np.array_equal(resize_mask(mask, (40, 40)), mask)
    assert resize_mask(mask[:1, :1], (9, 3)).tolist() == [[int(mask[0, 0])] * 9] * 3


def test_a_cutout_keeps_colours_and_takes_the_mask_as_alpha() -> None:
    mask = Image.linear_gradient("L").resize((96, 64))
    out = cutout(scene(), mask)
    alpha = np.asarray(mask)
    assert out.mode == "RGBA"
    assert np.array_equal(np.asarray(out)[..., :3], np.where(alpha[..., None] > 0, SCENE, 0))
    assert np.array_equal(np.asarray(out)[..., 3], alpha)
    assert opened(encoded(out)).mode == "RGBA"


def test_a_cutout_keeps_the_transparency_of_its_picture() -> None:
    own, mask = np.zeros((64, 96), np.uint8), np.full((64, 96), 100, np.uint8)
    own[:, 30:60], own[:, 60:], mask[40:] = 70, 255, 0
    picture = scene()
    picture.putalpha(Image.fromarray(own))
    out = np.asarray(cutout(picture, Image.fromarray(mask)))
    assert np.array_equal(out[..., 3], np.minimum(own, mask))
    assert np.array_equal(out[:40, 30:, :3], SCENE[:40, 30:])
    assert not out[out[..., 3] == 0].any(), "nothing of the background is left"


@pytest.mark.parametrize("mode", ["L", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (97, 61), (3, 2000), (5000, 2), (700, 800)])
def test_png_holds_the_same_pixels(mode: str, size: tuple[int, int]) -> None:
    picture = scene(*size).convert(mode)
    if mode == "RGBA":
        picture.putalpha(scene(*size).convert("L"))
    data = encode_png(picture)
    if mode == "L":
        assert encode_png(np.asarray(picture)) == data
    read = opened(data)
    assert read.mode == mode
    assert np.array_equal(np.asarray(read), np.asarray(picture))
    at = 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        assert zlib.crc32(data[at + 4 : at + 8 + length]) == checksum
        at += 12 + length


def test_png_is_no_larger_than_pillow_s_fast_one() -> None:
    noise = np.random.default_rng(0).normal(0, 4, (600, 800, 3))
    photo = Image.fromarray(np.clip(np.asarray(scene(800, 600)) + noise, 0, 255).astype(np.uint8))
    photo.putalpha(255)
    assert len(encode_png(photo)) <= 1.1 * len(encoded(photo, compress_level=1))


def test_webp_masks_are_exact_and_cutouts_have_exact_alpha() -> None:
    mask = scene(300, 200).convert("L")
    assert np.array_equal(np.asarray(opened(encode_webp(mask)).convert("L")), np.asarray(mask))
    cut = cutout(scene(300, 200), mask)
    read = np.asarray(opened(encode_webp(cut))).astype(int)
    assert np.array_equal(read[..., 3], np.asarray(mask))
    solid = np.asarray(mask) > 0
    assert np.abs(read[..., :3] - np.asarray(cut)[..., :3])[solid].mean() <= 4

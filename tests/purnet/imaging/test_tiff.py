from __future__ import annotations

import struct
import time
import tracemalloc

import numpy as np
import pytest
from photos import encoded, scene, with_orientation
from PIL import Image

from purnet.imaging import ImageError, open_image, read_header
from purnet.imaging.tiff import exif_orientation

SCENE = np.asarray(scene())


def tags_of(data: bytes) -> tuple[int, int]:
    """Where the directory of a little-endian TIFF begins, and the number of its tags."""
    (at,) = struct.unpack_from("<I", data, 4)
    return at, struct.unpack_from("<H", data, at)[0]


def with_tags(data: bytes, *extra: tuple[int, int, int, int]) -> bytes:
    """The TIFF with more tags (number, type, count, value) in a new directory at its end."""
    at, count = tags_of(data)
    own = [data[at + 2 + 12 * i : at + 14 + 12 * i] for i in range(count)]
    entries = [*own, *(struct.pack("<HHII", *tag) for tag in extra)]
    entries = sorted({entry[:2]: entry for entry in entries}.values(), key=lambda e: e[1::-1])
    end = len(data) + len(data) % 2
    table = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return data[:4] + struct.pack("<I", end) + data[8:].ljust(end - 8, b"\0") + table


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "code"), [(3, "H"), (4, "I")])
def test_orientation_of_an_exif_block(order: str, kind: int, code: str) -> None:
    head = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + code, 7).ljust(4, b"\0")
    block = head + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1) + value
    assert exif_orientation(block) == exif_orientation(b"Exif\0\0" + block) == 7
    for length in range(len(block) - 1):
        assert exif_orientation(block[:length]) in (1, 7)


@pytest.mark.parametrize(
    "compression", [None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "1", "P", "CMYK"])
def test_a_tiff_without_its_metadata_is_the_same_picture(
    mode: str, compression: str | None
) -> None:
    if compression == "jpeg" and mode in ("1", "P", "RGBA"):
        return
    picture = scene().convert(mode)
    data = encoded(picture, "TIFF", compression=compression, software="x" * 5000, dpi=(72, 72))
    found = np.asarray(open_image(data)).astype(int)
    limit = 40 if compression == "jpeg" else 0
    assert np.abs(found - np.asarray(picture.convert("RGB"))).max() <= limit


def test_metadata_of_gigabytes_costs_nothing() -> None:
    data = encoded(scene(), "TIFF") + bytes(1_000_000)
    tags = [(40_000 + number, 7, 1_000_000, 8) for number in range(900)]
    tracemalloc.start()
    started = time.process_time()
    try:
        assert np.array_equal(np.asarray(open_image(with_tags(data, *tags))), SCENE)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < 5


def test_a_broken_exif_directory_costs_nothing() -> None:
    data = with_tags(encoded(scene(), "TIFF"), (34_665, 4, 1, 0xFFFF_FF00), (34_853, 4, 1, 7))
    assert np.array_equal(np.asarray(open_image(data)), SCENE)


def test_xmp_says_nothing_of_the_orientation() -> None:
    xmp = b"<x:xmpmeta tiff:Orientation='6'/>"
    data = encoded(scene(), "TIFF")
    end = len(data)
    assert np.array_equal(
        np.asarray(open_image(with_tags(data + xmp, (700, 1, len(xmp), end)))), SCENE
    )


@pytest.mark.parametrize(
    "tags",
    [
        ((322, 4, 1, 1 << 30), (323, 4, 1, 16)),
        ((322, 4, 1, 60_000), (323, 4, 1, 60_000)),
        tuple((45_000 + number, 3, 1, 0) for number in range(1100)),
    ],
)
def test_tiles_and_tags_beyond_reason_are_refused(
    tags: tuple[tuple[int, int, int, int], ...],
) -> None:
    with pytest.raises(ImageError):
        read_header(with_tags(encoded(scene(), "TIFF"), *tags))


def test_tags_that_hold_more_than_the_file_are_refused() -> None:
    with pytest.raises(ImageError):
        open_image(with_tags(encoded(scene(), "TIFF"), (320, 3, 1 << 30, 8)))


def test_a_second_page_is_left_alone() -> None:
    second = Image.new("RGB", (2000, 1000), "red")
    data = encoded(scene(), "TIFF", save_all=True, append_images=[second])
    assert np.array_equal(np.asarray(open_image(data)), SCENE)


@pytest.mark.parametrize("value", range(1, 9))
def test_big_and_little_files_are_turned(value: int) -> None:
    for big in (False, True):
        data = encoded(scene(), "TIFF", exif=with_orientation(value), big_tiff=big)
        size = (64, 96) if value >= 5 else (96, 64)
        assert read_header(data).displayed_size == open_image(data).size == size

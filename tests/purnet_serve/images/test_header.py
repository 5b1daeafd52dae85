from __future__ import annotations

import zlib
from contextlib import suppress

import pytest
from photos import encoded, scene
from PIL import Image

from purnet_serve.errors import ImageError, TooManyScansError, UnsupportedMediaError
from purnet_serve.images.header import (
    MAX_CHUNKS,
    MAX_FILL_BYTES,
    MAX_SCANS,
    MAX_SEGMENTS,
    Header,
    read_header,
)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"comment": b"c" * 60000, "icc_profile": bytes(200_000)}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\x00\x00"}),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (96, 64), (3, 1000), (4097, 2)])
def test_reads_what_pillow_reads(
    kind: str, options: dict[str, object], size: tuple[int, int]
) -> None:
    data = encoded(Image.new("RGB", size, "teal"), kind, **options)
    assert read_header(data) == Header(kind, *size)  # type: ignore[arg-type]


def test_webp_with_alpha_and_animation() -> None:
    rgba = scene().convert("RGBA")
    assert read_header(encoded(rgba, "WEBP")) == Header("WEBP", 96, 64)
    moving = encoded(rgba, "WEBP", save_all=True, append_images=[rgba.rotate(90)])
    assert read_header(moving) == Header("WEBP", 96, 64)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"GIF89a", b"BM", b"<svg>", b"RIFF1234WAVE"])
def test_other_magic_bytes_are_not_taken(data: bytes) -> None:
    with pytest.raises(UnsupportedMediaError):
        read_header(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_no_prefix_of_a_header_crashes(kind: str) -> None:
    data = encoded(scene(), kind)
    for length in range(12, 60):
        with suppress(ImageError):
            assert read_header(data[:length]).format == kind


def test_a_side_of_zero_is_broken() -> None:
    data = bytearray(encoded(scene()))
    data[16:20] = bytes(4)
    with pytest.raises(ImageError, match="0 pixels"):
        read_header(bytes(data))


def test_two_frame_headers_are_broken() -> None:
    data = encoded(scene(), "JPEG")
    at = data.index(b"\xff\xc0")
    frame = data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
    with pytest.raises(ImageError):
        read_header(data[:at] + frame + data[at:])


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = encoded(scene(), "JPEG", progressive=True)
    scan = data[data.index(b"\xff\xda") : -2]
    with pytest.raises(TooManyScansError) as caught:
        read_header(data[:-2] + scan * MAX_SCANS + data[-2:])
    assert caught.value.limit == MAX_SCANS


def test_a_jpeg_of_endless_segments_is_refused() -> None:
    data = encoded(scene(), "JPEG")
    with pytest.raises(ImageError, match="segments"):
        read_header(data[:2] + b"\xff\xfe\x00\x02" * (MAX_SEGMENTS + 1) + data[2:])


@pytest.mark.parametrize("fill", [b"\xff", b"\x00", b"\x00\xff"])
def test_some_fill_between_segments_is_skipped_and_megabytes_are_refused(fill: bytes) -> None:
    data = encoded(scene(), "JPEG")
    at = 2 + 2 + int.from_bytes(data[4:6], "big")  # behind the first segment
    assert read_header(data[:at] + b"\xff" * 100 + data[at:]) == Header("JPEG", 96, 64)
    with pytest.raises(ImageError):
        read_header(data[:at] + fill * MAX_FILL_BYTES * 2 + data[at:])


def test_a_png_of_endless_chunks_is_refused_wherever_they_are() -> None:
    data = encoded(scene())
    empty = b"\0\0\0\0abCd" + zlib.crc32(b"abCd").to_bytes(4, "big")
    for at in (33, len(data) - 12):
        assert read_header(data[:at] + empty * 1000 + data[at:]) == Header("PNG", 96, 64)
        with pytest.raises(ImageError, match="chunks"):
            read_header(data[:at] + empty * MAX_CHUNKS + data[at:])

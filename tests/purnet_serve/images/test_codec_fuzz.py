"""Damaged uploads: each decodes or is refused with a 4xx, within bounded memory."""

from __future__ import annotations

import tracemalloc
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_files import SIGNATURE, apng, heic
from photos import encoded, scene, with_orientation
from PIL import Image

from purnet.imaging import FORMATS
from purnet_serve.errors import ServiceError
from purnet_serve.images.codec import Options, decode, encode
from purnet_serve.images.header import Limits, check_header

LIMITS = Limits(max_pixels=200_000, max_side=2000, formats=FORMATS)
SIZE = 32

ORIGINALS = [
    encoded(scene(), "JPEG", exif=with_orientation(6)),
    encoded(scene(), "JPEG", progressive=True),
    encoded(scene().convert("CMYK"), "JPEG"),
    encoded(scene(), "PNG", exif=with_orientation(3)),
    encoded(scene().quantize(16), "PNG", transparency=3),
    encoded(Image.new("I;16", (40, 30), 300), "PNG"),
    encoded(scene(), "PNG", save_all=True, append_images=[scene().rotate(180)]),
    encoded(scene(), "WEBP"),
    encoded(scene().convert("RGBA"), "WEBP", lossless=True),
    encoded(scene(), "WEBP", save_all=True, append_images=[scene().rotate(180)]),
    encoded(Image.new("RGB", (40, 30), "red"), "PNG", transparency=(255, 0, 0)),
    apng([(scene(40, 20), 7, 5), (scene(), 0, 0)], default=scene()),
    encoded(scene(), "JPEG", progressive=True)[:-2],
    encoded(scene(), "MPO", save_all=True, append_images=[scene()]),
    encoded(scene(), "AVIF", exif=with_orientation(5)),
    encoded(scene().convert("RGBA"), "AVIF"),
    encoded(scene(), "AVIF", save_all=True, append_images=[scene().rotate(180)]),
    heic(),
    heic("scene-alpha"),
    encoded(scene().quantize(16), "GIF", transparency=3, comment=b"c" * 300),
    encoded(scene(), "BMP"),
    encoded(scene().quantize(16), "BMP"),
    encoded(scene(), "TIFF", compression="tiff_lzw", exif=with_orientation(6)),
    encoded(scene(), "TIFF", compression="jpeg"),
    encoded(scene().convert("F"), "TIFF", big_tiff=True),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good file with bytes changed, removed, repeated or put in; its first 12 mostly kept."""
    data = bytearray(draw(st.sampled_from(ORIGINALS)))
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(min(12, len(data)), len(data)))
        end = min(len(data), at + draw(st.sampled_from([1, 1, 1, 2, 4, 40, 400])))
        match draw(st.sampled_from(["change", "change", "remove", "repeat", "insert", "cut"])):
            case "change":
                data[at:end] = draw(st.binary(min_size=end - at, max_size=end - at))
            case "remove":
                del data[at:end]
            case "repeat":
                data[end:end] = data[at:end]
            case "insert":
                data[at:at] = draw(st.binary(max_size=8))
            case "cut":
                del data[at:]
    return with_checksums(bytes(data)) if draw(st.booleans()) else bytes(data)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the right checksums again; any other file as it is."""
    if not data.startswith(SIGNATURE):
        return data
    out, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        out[end : end + 4] = zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


def process(upload: bytes) -> None:
    """Decode and encode as a request does; every error but a 4xx is raised."""
    try:
        decoded = decode(upload, SIZE, check_header(upload, LIMITS))
        mask = decoded.pixels[..., 0].copy()
        answer = encode(mask, decoded, upload, Options(output="cutout"))
    except ServiceError as error:
        if error.status >= 500:
            raise
    else:
        assert answer.body.startswith(b"\x89PNG")


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damaged())
def test_damaged_files_are_answered_or_refused(upload: bytes) -> None:
    process(upload)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(
        [
            b"\xff\xd8\xff",
            b"\x89PNG\r\n\x1a\n",
            b"RIFF\x00\x00\x00\x00WEBPVP8 ",
            b"\x00\x00\x00\x18ftypheic",
            b"\x00\x00\x00\x18ftypavif",
            b"GIF89a",
            b"II*\x00",
            b"MM\x00+",
            b"BM",
        ]
    ),
    st.binary(max_size=400),
)
def test_garbage_behind_magic_bytes_is_answered_or_refused(magic: bytes, rest: bytes) -> None:
    process(magic + rest)


@pytest.mark.slow
@settings(max_examples=20_000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(damaged())
def test_many_damaged_files(upload: bytes) -> None:
    process(upload)


def test_damage_allocates_no_more_than_the_limits_allow() -> None:
    """Python's own allocations; Pillow's pixels are bounded by the header check before them."""
    tracemalloc.start()
    try:
        for original in ORIGINALS:
            for at in range(12, len(original), max(1, len(original) // 40)):
                process(original[:at] + b"\xff\xff\xff\xff" + original[at + 4 :])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * LIMITS.max_pixels

from __future__ import annotations

import pytest
from image_files import heic, png_with
from photos import encoded, scene

from purnet.imaging import FORMATS, Format, Header
from purnet.imaging.jpeg import MAX_SCANS
from purnet.imaging.png import MAX_CHUNKS
from purnet_serve.errors import (
    ImageError,
    SideTooLongError,
    TooManyPixelsError,
    TooManyScansError,
    UnsupportedMediaError,
)
from purnet_serve.images.header import BYTES_PER_PIXEL, Limits, check_header, decoding_bytes

LIMITS = Limits(40_000_000, 16_384)


def test_limits_are_read_from_the_header() -> None:
    header_only = png_with(width=20_000, height=20_000)[:40]
    with pytest.raises(SideTooLongError) as side:
        check_header(header_only, LIMITS)
    assert (side.value.limit, side.value.actual) == (16_384, 20_000)
    with pytest.raises(TooManyPixelsError) as pixels:
        check_header(png_with(width=8000, height=5001)[:40], LIMITS)
    assert (pixels.value.limit, pixels.value.actual) == (40_000_000, 40_008_000)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_held_to_the_limits_and_has_its_memory(kind: Format) -> None:
    data = heic() if kind == "HEIF" else encoded(scene(), kind)
    header = check_header(data, Limits(96 * 64, 96, FORMATS))
    assert header == Header(kind, 96, 64)
    assert decoding_bytes(header) == 96 * 64 * BYTES_PER_PIXEL[kind]
    with pytest.raises(SideTooLongError):
        check_header(data, Limits(96 * 64, 95, FORMATS))
    with pytest.raises(TooManyPixelsError):
        check_header(data, Limits(96 * 64 - 1, 96, FORMATS))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_some_formats_are_taken_only_where_they_are_asked_for(kind: str) -> None:
    with pytest.raises(UnsupportedMediaError) as caught:
        check_header(encoded(scene(), kind), LIMITS)
    assert caught.value.detail == (
        f"It is a {kind} image; taken are JPEG, PNG, WebP, AVIF and HEIC/HEIF images."
    )


def test_errors_are_those_that_clients_know() -> None:
    with pytest.raises(ImageError, match=r"^The JPEG header is broken or cut short\.$"):
        check_header(encoded(scene(), "JPEG")[:30], LIMITS)
    data = encoded(scene(), "JPEG", progressive=True)
    scan = data[data.index(b"\xff\xda") : -2]
    with pytest.raises(TooManyScansError) as scans:
        check_header(data[:-2] + scan * MAX_SCANS + data[-2:], LIMITS)
    assert scans.value.limit == MAX_SCANS
    with pytest.raises(ImageError) as chunks:
        check_header(png_with(b"\0\0\0\0abCd\0\0\0\0" * MAX_CHUNKS), LIMITS)
    assert chunks.value.limit == MAX_CHUNKS

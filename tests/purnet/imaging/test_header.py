from __future__ import annotations

import base64
import json
import zlib
from contextlib import suppress

import pytest
from image_files import heic, png_chunk
from photos import encoded, opened, scene, with_orientation
from PIL import Image

from purnet.imaging import FORMATS, Format, Header, ImageError, UnknownFormatError, read_header
from purnet.imaging.jpeg import MAX_FILL_BYTES, MAX_SCANS, MAX_SEGMENTS
from purnet.imaging.png import MAX_CHUNKS
from purnet.imaging.simple_headers import MAX_RUN_LENGTH_BYTES


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
        ("AVIF", {}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"big_tiff": True}),
    ],
)
@pytest.mark.parametrize("size", [(1, 1), (96, 64), (3, 1000), (4097, 2)])
def test_reads_what_pillow_reads(
    kind: Format, options: dict[str, object], size: tuple[int, int]
) -> None:
    data = encoded(Image.new("RGB", size, "teal"), kind, **options)
    assert read_header(data) == Header(kind, *size)
    assert opened(data).size == size


def test_webp_with_alpha_and_animation() -> None:
    rgba = scene().convert("RGBA")
    assert read_header(encoded(rgba, "WEBP")) == Header("WEBP", 96, 64)
    moving = encoded(rgba, "WEBP", save_all=True, append_images=[rgba.rotate(90)])
    assert read_header(moving) == Header("WEBP", 96, 64)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_orientation_is_known_before_anything_is_decoded(kind: Format, value: int) -> None:
    data = encoded(scene(), kind, exif=with_orientation(value))
    assert read_header(data) == Header(kind, 96, 64, value)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
OTHERS: dict[str, bytes] = {
    "empty": b"",
    "a PDF": b"%PDF-1.7\n",
    "JSON": json.dumps({"image": "x"}).encode(),
    "an HTML page": b"\xef\xbb\xbf\n<!DOCTYPE html><html>",
    "an SVG drawing": b"<?xml version='1.0'?>\n<!-- made by hand -->\n<svg xmlns='x'>",
    "XML": b"<?xml version='1.0'?><rss>",
    "a Git LFS pointer": LFS,
    "base64 text": base64.b64encode(encoded(scene())),
    "a data URL": b"data:image/png;base64,iVBORw0KGgo=",
    "a URL": b"https://example.org/photo.jpg",
    "a multipart form": b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n',
    "text": "Grüße, this is no image.".encode(),
    "a ZIP archive": b"PK\x03\x04\x14\x00",
    "a gzip file": b"\x1f\x8b\x08\x00",
    "an MP4 video": b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isommp42",
    "a QuickTime video": b"\x00\x00\x00\x14ftypqt  \x00\x00\x00\x00qt  ",
    "a WebM or Matroska video": b"\x1aE\xdf\xa3\x9f",
    "an AVI video": b"RIFF\x00\x00\x00\x00AVI LIST",
    "a WAV file": b"RIFF\x00\x00\x00\x00WAVEfmt ",
    "a JPEG XL image": b"\xff\x0a\xff\x00",
    "a JPEG 2000 image": b"\x00\x00\x00\x0cjP  \r\n\x87\n",
    "a Photoshop document": b"8BPS\x00\x01",
    "a camera's raw file": b"\x00\x00\x00\x18ftypcrx \x00\x00\x00\x01crx isom",
    "an icon": b"\x00\x00\x01\x00\x01\x00",
    "a netpbm image": b"P6\n3 2\n255\n",
    "of no known kind": bytes(range(200, 256)) + bytes(40),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_taken_is_named(name: str) -> None:
    with pytest.raises(UnknownFormatError) as caught:
        read_header(OTHERS[name], ("JPEG", "PNG", "WEBP"))
    assert str(caught.value) == f"it is {name}; taken are JPEG, PNG and WebP images"


@pytest.mark.parametrize(
    "unit", [b"<!---->", b"<!doctype svg>", b"<?x?>", b"<!--", b"A ", b"--a\r\n"]
)
def test_no_text_takes_long_to_name(unit: bytes) -> None:
    with pytest.raises(UnknownFormatError):
        read_header(b"<?xml?>" + unit * 5000)
    with pytest.raises(UnknownFormatError):
        read_header(unit * 5000)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("GIF", "a GIF"),
        ("BMP", "a BMP"),
        ("TIFF", "a TIFF"),
        ("AVIF", "an AVIF"),
        ("HEIF", "a HEIC"),
    ],
)
def test_a_format_that_is_not_asked_for_is_named(kind: Format, name: str) -> None:
    data = heic() if kind == "HEIF" else encoded(scene(), kind)
    with pytest.raises(UnknownFormatError) as caught:
        read_header(data, ("JPEG",))
    assert str(caught.value) == f"it is {name} image; taken are JPEG images"
    assert read_header(data, (kind,)).displayed_size == (96, 64)


@pytest.mark.parametrize("kind", FORMATS)
def test_no_prefix_of_a_header_crashes(kind: Format) -> None:
    data = heic() if kind == "HEIF" else encoded(scene(), kind)
    for length in range(400):
        with suppress(ImageError):
            assert read_header(data[:length]).format == kind


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_side_of_zero_is_broken(kind: str) -> None:
    data = bytearray(encoded(scene(), kind))
    if kind == "PNG":
        data[8:33] = png_chunk(b"IHDR", bytes(4) + bytes(data[20:29]))
    elif kind == "GIF":
        at = data.index(b",\0\0\0\0\x60\0") + 5
        data[at : at + 2] = bytes(2)
    elif kind == "BMP":
        data[18:22] = bytes(4)
    else:
        at = data.index(b"\x00\x01\x04\x00\x01\x00\x00\x00") + 8
        data[at : at + 4] = bytes(4)
    with pytest.raises(ImageError, match=r"0 pixels|no size"):
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
    with pytest.raises(ImageError) as caught:
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


def test_a_webp_of_endless_chunks_is_refused() -> None:
    data = encoded(scene(), "WEBP", exif=with_orientation(1))
    with pytest.raises(ImageError, match="chunks"):
        read_header(data[:30] + b"abcd\0\0\0\0" * MAX_CHUNKS + data[30:])


def test_a_gif_of_endless_extensions_is_refused_and_comments_are_dropped() -> None:
    data = encoded(scene().quantize(16), "GIF")
    at = data.index(b",\0\0\0\0\x60\0")
    with pytest.raises(ImageError, match="blocks"):
        read_header(data[:at] + b"!\xfe\0" * 300_000 + data[at:])
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * 40_000 + b"\0"
    assert read_header(data[:at] + comment + data[at:]) == Header("GIF", 96, 64)


def test_a_bmp_of_endless_run_lengths_is_refused() -> None:
    data = bytearray(encoded(scene().quantize(16), "BMP"))
    data[30] = 1
    assert read_header(bytes(data)) == Header("BMP", 96, 64)
    with pytest.raises(ImageError, match="run lengths"):
        read_header(bytes(data) + bytes(MAX_RUN_LENGTH_BYTES))

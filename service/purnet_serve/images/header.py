"""Format and size of an upload, read from its bytes before any decoder sees it.

The first bytes alone decide the format; file names and Content-Types are ignored. Sources: RFC 2083
(PNG), ITU-T T.81 (JPEG), RFC 9649 (WebP).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from purnet_serve.errors import ImageError, TooManyScansError, UnsupportedMediaError

Format = Literal["JPEG", "PNG", "WEBP"]

# Each scan of a progressive JPEG is a pass over the whole picture, for some ten bytes of the file.
# Encoders write about ten scans.
MAX_SCANS = 100
# A 20 MiB colour profile or thumbnail takes 320 segments of 64 KiB; five million empty ones would
# keep a thread busy for seconds.
MAX_SEGMENTS = 4096
# Bytes between segments, which decoders skip one by one. Real files have a few, if any.
MAX_FILL_BYTES = 65_536
# 20 MiB in pieces of 8 KiB are 2,560 chunks, an animation of ten thousand frames has twenty
# thousand. Decoders look at each; a file of empty ones could hold 1.7 million.
MAX_CHUNKS = 65_536

_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_STANDALONE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
_FILL = re.compile(rb"\xff+")
# Within a scan 0xFF is followed by 0x00 (a stuffed byte), a restart marker or a fill byte.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")


@dataclass(frozen=True, slots=True)
class Header:
    """Format and size in pixels as stored, before orientation."""

    format: Format
    width: int
    height: int


def read_header(data: bytes) -> Header:
    """Read format and size. Raises `UnsupportedMediaError`, `ImageError` or `TooManyScansError`."""
    if data.startswith(b"\xff\xd8\xff"):
        kind: Format = "JPEG"
        size = _jpeg_size(data)
    elif data.startswith(b"\x89PNG\r\n\x1a\n"):
        kind, size = "PNG", _png_size(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind, size = "WEBP", _webp_size(data)
    else:
        raise UnsupportedMediaError("The bytes do not begin as a JPEG, PNG or WebP image does.")
    if size is None:
        raise ImageError(f"The {kind} header is broken or cut short.")
    if 0 in size:
        raise ImageError(f"The {kind} header gives a side of 0 pixels.")
    return Header(kind, *size)


def _png_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 24 or data[12:16] != b"IHDR":
        return None
    at = 8
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data) or data[at + 4 : at + 8] == b"IEND":
            break
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    else:
        raise ImageError("The PNG file has too many chunks.", limit=MAX_CHUNKS)
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind, body = data[12:16], data[20:30]
    if kind == b"VP8X" and len(body) == 10:  # the canvas, each side less one in 24 bits
        return int.from_bytes(body[4:7], "little") + 1, int.from_bytes(body[7:10], "little") + 1
    if kind == b"VP8L" and len(body) >= 5:  # each side less one in 14 bits
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and len(body) == 10:  # 14 bits each, 2 more for a scale no decoder applies
        width, height = int.from_bytes(body[6:8], "little"), int.from_bytes(body[8:10], "little")
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Walk the segments; None when the file ends before a frame header."""
    size = None
    scans = fill = 0
    at = 2
    for _ in range(MAX_SEGMENTS):
        if (found := _next_marker(data, at)) is None:
            return size
        marker, begin = found
        fill += begin - at - 2
        if fill > MAX_FILL_BYTES:
            raise ImageError("The JPEG file has too much between its segments.")
        at = begin
        if marker in _STANDALONE_MARKERS:
            continue
        if marker == _END_OF_IMAGE:
            return size
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2:
            return size
        if marker in _FRAME_MARKERS:
            frame = data[at + 3 : at + 7]
            if len(frame) < 4 or size is not None:
                return None
            size = int.from_bytes(frame[2:], "big"), int.from_bytes(frame[:2], "big")
        at += length
        if marker == _START_OF_SCAN:
            scans += 1
            if scans > MAX_SCANS:
                raise TooManyScansError("The progressive JPEG has too many scans.", limit=MAX_SCANS)
            if (scan_end := _NEXT_MARKER.search(data, at)) is None:
                return size
            at = scan_end.start()
    raise ImageError("The JPEG file has too many segments.", limit=MAX_SEGMENTS)


def _next_marker(data: bytes, at: int) -> tuple[int, int] | None:
    """The marker at or after `at`, past fill bytes, and where its segment begins."""
    at = data.find(b"\xff", at)
    if at < 0 or (fill := _FILL.match(data, at)) is None:
        return None
    at = fill.end()
    return (data[at], at + 1) if at < len(data) else None

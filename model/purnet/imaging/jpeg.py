"""JPEG files: size and orientation, and the picture alone, without metadata and what follows it.

Decoders stop at metadata they cannot parse and at files that do not end as they should. They are
given what the picture is made of: tables, frame, scans, and the two markers that say which colours
the components are. A file that lacks its end marker is taken only if its picture is complete.

Sources: ITU-T T.81 annex B (markers), T.871 (JFIF), libjpeg's `jdmarker.c` (Adobe's marker).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from purnet.errors import ImageError
from purnet.imaging.formats import (
    Header,
    TooManyScansError,
    broken,
    cut_short,
)
from purnet.imaging.tiff import exif_orientation

# Each scan of a progressive JPEG is a pass over the whole picture, for some ten bytes of the file.
# Encoders write about ten scans.
MAX_SCANS = 100
# A 20 MiB colour profile or thumbnail takes 320 segments of 64 KiB; five million empty ones would
# keep a thread busy for seconds.
MAX_SEGMENTS = 4096
# Bytes between segments, which decoders skip one by one. Real files have a few, if any.
MAX_FILL_BYTES = 65_536

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_TABLES = frozenset({0xC4, 0xCC, 0xDB, 0xDD})
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_JFIF, _EXIF, _ADOBE = 0xE0, 0xE1, 0xEE
_STANDALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_FILL = re.compile(rb"\xff+")
# Within a scan 0xFF is followed by 0x00 (a stuffed byte), a restart marker or a fill byte.
_ENDS_SCAN = np.ones(256, np.bool_)
_ENDS_SCAN[[0x00, *range(0xD0, 0xD8), 0xFF]] = False
_SEARCHED_BYTES = 1 << 18

_PLAIN_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_END = b"\xff\xd9"


@dataclass(slots=True)
class _Jpeg:
    """What the walk over the segments found."""

    size: tuple[int, int] | None = None
    orientation: int | None = None
    progressive: bool = False
    missing: dict[int, np.ndarray[tuple[int], np.dtype[np.bool_]]] = field(default_factory=dict)
    """By component: which of its 64 coefficients still lack their last bit."""
    parts: list[bytes | memoryview] = field(default_factory=list)
    """The picture: header segments, scans."""
    scans: int = 0
    complete_parts: int = 0
    """How many parts there were when no coefficient was missing any more; 0 if never."""
    ended: bool = False
    """Whether the end marker directly follows the last scan."""

    @property
    def components(self) -> int:
        return len(self.missing)


def read_jpeg(data: bytes) -> Header:
    """Size and EXIF orientation. Raises `ImageError` or `TooManyScansError`."""
    jpeg = _walk(data)
    if jpeg.size is None:
        raise ImageError("the JPEG header is broken or cut short")
    return Header("JPEG", *jpeg.size, jpeg.orientation or 1)


def picture_of_jpeg(data: bytes) -> bytes:
    """The file reduced to its picture. Raises `ImageError` if that is not complete."""
    jpeg = _walk(data)
    if jpeg.size is None or not jpeg.scans:
        raise cut_short("JPEG")
    if jpeg.ended:
        return b"".join((*jpeg.parts, _END))
    if not jpeg.complete_parts:
        raise cut_short("JPEG")
    picture = b"".join((*jpeg.parts[: jpeg.complete_parts], _END))
    _check_every_block(picture, jpeg.components)
    return picture


def _check_every_block(picture: bytes, components: int) -> None:
    """Raise `ImageError` unless libjpeg decodes every block without running out of data.

    Pillow hides libjpeg's warnings, simplejpeg raises them. One is harmless: bytes between the last
    block and the end marker, such as a camera's trailer.
    """
    import simplejpeg  # few files need it

    colours = "CMYK" if components == 4 else "GRAY"
    try:  # the least size: an eighth
        simplejpeg.decode_jpeg(picture, colours, min_height=1, min_width=1, strict=True)
    except ValueError as error:
        if not re.search(r"extraneous bytes before marker 0xd9", str(error)):
            raise cut_short("JPEG") from error


def _walk(data: bytes) -> _Jpeg:
    """Read the segments up to the end marker, or as far as they can be followed."""
    jpeg = _Jpeg(parts=[data[:2]])
    view = memoryview(data)
    fill, at = 0, 2
    for _ in range(MAX_SEGMENTS):
        if (found := _next_marker(data, at)) is None:
            return jpeg
        marker, begin = found
        fill += begin - at - 2
        if fill > MAX_FILL_BYTES:
            if jpeg.scans:  # a trailer
                return jpeg
            raise ImageError("the JPEG file has too much between its segments")
        if marker in _STANDALONE:
            at = begin
            continue
        if marker == _END_OF_IMAGE:
            return jpeg
        end = begin + int.from_bytes(data[begin : begin + 2], "big")
        if marker == _START_OF_IMAGE or end < begin + 2 or end > len(data):
            return jpeg
        if marker in _FRAMES:
            if jpeg.size is not None:
                if not jpeg.scans:
                    raise broken("JPEG", "it has two frame headers")
                return jpeg
            _read_frame(jpeg, marker, data[begin + 2 : end])
            jpeg.parts.append(view[begin - 2 : end])
        elif marker == _START_OF_SCAN:
            jpeg.scans += 1
            if jpeg.scans > MAX_SCANS:
                raise TooManyScansError("the progressive JPEG has too many scans", limit=MAX_SCANS)
            header, end = data[begin + 2 : end], _scan_end(data, end)
            jpeg.parts.append(view[begin - 2 : end])
            _read_scan(jpeg, header)
            jpeg.ended = data[end : end + 2] == _END
            at = end
            continue
        elif marker == _EXIF and data.startswith(b"Exif\x00\x00", begin + 2):
            if jpeg.orientation is None:
                jpeg.orientation = exif_orientation(data[begin + 2 : end])
        else:
            jpeg.parts += _needed(marker, data[begin + 2 : end])
        at = end
    if jpeg.scans and jpeg.complete_parts:  # a trailer
        return jpeg
    raise ImageError("the JPEG file has too many segments", limit=MAX_SEGMENTS)


def _read_frame(jpeg: _Jpeg, marker: int, body: bytes) -> None:
    if len(body) < 6:
        raise broken("JPEG", "its frame header is too short")
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    jpeg.size = width, height
    jpeg.progressive = marker in _PROGRESSIVE
    jpeg.missing = {component: np.ones(64, np.bool_) for component in body[6 : 6 + 3 * body[5] : 3]}


def _read_scan(jpeg: _Jpeg, body: bytes) -> None:
    """Note which coefficients of which components have come with their last bit."""
    count = body[0] if body else 0
    parameters = body[1 + 2 * count : 4 + 2 * count]
    if len(parameters) < 3:
        return
    first, last, low_bit = parameters[0], parameters[1], parameters[2] & 15
    for component in body[1 : 1 + 2 * count : 2]:
        if component in jpeg.missing and low_bit == 0:
            coefficients = slice(first, last + 1) if jpeg.progressive else slice(None)
            jpeg.missing[component][coefficients] = False
    if not jpeg.complete_parts and not any(left.any() for left in jpeg.missing.values()):
        jpeg.complete_parts = len(jpeg.parts)


def _needed(marker: int, body: bytes) -> list[bytes | memoryview]:
    """A segment other than frame and scan, as the decoder gets it: whole, plain or not at all."""
    if marker in _TABLES:
        return [bytes((0xFF, marker)), (len(body) + 2).to_bytes(2, "big"), body]
    if marker == _JFIF and body.startswith(b"JFIF\x00"):
        return [_PLAIN_JFIF]
    if marker == _ADOBE and body.startswith(b"Adobe") and len(body) >= 12:
        return [b"\xff\xee\x00\x0e", body[:12]]
    return []


def _scan_end(data: bytes, at: int) -> int:
    """Where the marker after the scan at `at` begins; the file's length when there is none."""
    samples = np.frombuffer(data, np.uint8)
    for start in range(at, len(data) - 1, _SEARCHED_BYTES):
        block = samples[start : start + _SEARCHED_BYTES + 1]
        escapes = np.flatnonzero(block[:-1] == 0xFF)
        ends = escapes[_ENDS_SCAN[block[escapes + 1]]]
        if ends.size:
            return start + int(ends[0])
    return len(data)


def _next_marker(data: bytes, at: int) -> tuple[int, int] | None:
    """The marker at or after `at`, past fill bytes, and where its segment begins."""
    at = data.find(b"\xff", at)
    if at < 0 or (fill := _FILL.match(data, at)) is None:
        return None
    at = fill.end()
    return (data[at], at + 1) if at < len(data) else None

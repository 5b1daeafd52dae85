"""Headers of WebP, GIF and BMP, and a GIF's first frame alone.

Sources: RFC 9649 (WebP), GIF89a (CompuServe, 1990), Microsoft's BITMAPINFOHEADER.
"""

from __future__ import annotations

import struct

from purnet.errors import ImageError
from purnet.imaging.formats import Header, broken, cut_short
from purnet.imaging.tiff import exif_orientation

# An animation of ten thousand frames has that many chunks; a file of empty ones, 2.5 million.
MAX_CHUNKS = 65_536
# A GIF has a block for every 255 bytes: 32 MiB are 132,000.
MAX_BLOCKS = 262_144
# Pillow decodes run lengths in Python, a run for every two bytes.
MAX_RUN_LENGTH_BYTES = 4 << 20


def read_webp(data: bytes) -> Header:
    """Canvas size, and orientation from the EXIF chunk. Raises `ImageError`."""
    kind, body = data[12:16], data[20:30]
    width = height = 0
    if kind == b"VP8X" and len(body) == 10:  # each side less one in 24 bits
        width = int.from_bytes(body[4:7], "little") + 1
        height = int.from_bytes(body[7:10], "little") + 1
    elif kind == b"VP8L" and len(body) >= 5:  # each side less one in 14 bits
        bits = int.from_bytes(body[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 " and len(body) == 10:  # 14 bits each, 2 more for a scale nobody applies
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", body[6:10]))
    else:
        raise ImageError("the WebP header is broken or cut short")
    return Header("WEBP", width, height, _webp_orientation(data) if kind == b"VP8X" else 1)


def _webp_orientation(data: bytes) -> int:
    at = 12
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            return 1
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        if data[at : at + 4] == b"EXIF":
            return exif_orientation(data[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    raise ImageError("the WebP file has too many chunks", limit=MAX_CHUNKS)


def read_gif(data: bytes) -> Header:
    """The canvas, which holds the screen and the first frame. Raises `ImageError`."""
    frame, _ = _gif_frame(data)
    screen = struct.unpack_from("<HH", data, 6)
    left, top, width, height = struct.unpack_from("<4H", data, frame + 1)
    if not width or not height:
        raise broken("GIF", "its first frame has a side of 0 pixels")
    return Header("GIF", max(screen[0], left + width), max(screen[1], top + height))


def first_frame_of_gif(data: bytes) -> bytes:
    """The file without comments and later frames. Raises `ImageError`."""
    frame, control = _gif_frame(data)
    pixels = frame + 10 + _table_bytes(data[frame + 9]) + 1
    end, _ = _skip_blocks(data, pixels, MAX_BLOCKS)
    head = data[: 13 + _table_bytes(data[10])]
    return b"".join((head, control, memoryview(data)[frame:end], b";"))


def _gif_frame(data: bytes) -> tuple[int, bytes]:
    """Where the first image descriptor is, and the graphic control extension before it."""
    if len(data) < 13:
        raise cut_short("GIF")
    at, control, left = 13 + _table_bytes(data[10]), b"", MAX_BLOCKS
    while left > 0:
        match data[at : at + 1]:
            case b"," if at + 10 <= len(data):
                return at, control
            case b"!":
                end, used = _skip_blocks(data, at + 2, left)
                left -= used
                if data[at + 1 : at + 3] == b"\xf9\x04":
                    control = data[at:end]
                at = end
            case b"" | b",":
                raise cut_short("GIF")
            case _:
                raise broken("GIF", "it has no frame")
    raise _too_many_blocks()


def _table_bytes(flags: int) -> int:
    """Bytes of a colour table whose descriptor has these flags."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _skip_blocks(data: bytes, at: int, most: int) -> tuple[int, int]:
    """The end of the data blocks that begin at `at`, and their number, which is at most `most`."""
    for used in range(1, most + 1):
        if at >= len(data):
            raise cut_short("GIF")
        size = data[at]
        at += 1 + size
        if not size:
            return at, used
    raise _too_many_blocks()


def _too_many_blocks() -> ImageError:
    return ImageError("the GIF file has too many blocks", limit=MAX_BLOCKS)


def read_bmp(data: bytes) -> Header:
    """Size; a negative height means rows from the top. Raises `ImageError`."""
    if len(data) < 34:
        raise cut_short("BMP")
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == 12:
        width, height = struct.unpack_from("<HH", data, 18)
        return Header("BMP", width, height)
    width, height = struct.unpack_from("<ii", data, 18)
    (compression,) = struct.unpack_from("<I", data, 30)
    if width < 0:
        raise broken("BMP", "it has a negative width")
    if compression in (1, 2) and len(data) > MAX_RUN_LENGTH_BYTES:
        raise ImageError(
            "the BMP image has too many bytes for one compressed by run lengths",
            limit=MAX_RUN_LENGTH_BYTES,
        )
    return Header("BMP", width, abs(height))

"""Image files taken apart and put together, to damage them in one place."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from photos import encoded, scene
from PIL import Image

PICTURES = Path(__file__).parent.parent / "data" / "pictures"
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def heic(name: str = "scene") -> bytes:
    """A file of `tests/data/pictures`."""
    return (PICTURES / f"{name}.heic").read_bytes()


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kind and body of every chunk."""
    found, at = [], 8
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def png(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    return SIGNATURE + b"".join(png_chunk(kind, body) for kind, body in chunks)


def png_with(*chunks: bytes, width: int = 96, height: int = 64, late: bool = False) -> bytes:
    """A PNG of the scene, claiming any size, with chunks put in before its pixels or behind."""
    data = encoded(scene())
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    extra = b"".join(chunks)
    if late:
        return data[:8] + header + data[33:-12] + extra + data[-12:]
    return data[:8] + header + extra + data[33:]


def raw_png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]
) -> bytes:
    """A PNG of unfiltered rows, packed as `depth` and `colour` say."""
    stride = len(rows) // height
    lines = b"".join(b"\0" + rows[y * stride : (y + 1) * stride] for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = (b"IDAT", zlib.compress(lines))
    return png([(b"IHDR", header), *chunks, pixels, (b"IEND", b"")])


def apng(frames: list[tuple[Image.Image, int, int]], default: Image.Image | None = None) -> bytes:
    """An animation of frames at (left, top); with `default` as an image that is not part of it."""
    canvas = (default or frames[0][0]).size
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *canvas, 8, 2, 0, 0, 0))]
    chunks.append((b"acTL", struct.pack(">II", len(frames), 0)))
    number = 0
    if default is not None:
        chunks += _pixels(default)
    for frame, left, top in frames:
        control = struct.pack(">5IHHBB", number, *frame.size, left, top, 1, 10, 0, 0)
        chunks.append((b"fcTL", control))
        number += 1
        if default is None and number == 1:
            chunks += _pixels(frame)
            continue
        for _, body in _pixels(frame):
            chunks.append((b"fdAT", struct.pack(">I", number) + body))
            number += 1
    return png([*chunks, (b"IEND", b"")])


def _pixels(image: Image.Image) -> list[tuple[bytes, bytes]]:
    return [chunk for chunk in png_chunks(encoded(image.convert("RGB"))) if chunk[0] == b"IDAT"]


def box(kind: bytes, *bodies: bytes) -> bytes:
    body = b"".join(bodies)
    return struct.pack(">I", 8 + len(body)) + kind + body


def box_body(data: bytes, kind: bytes) -> bytes:
    """The body of the first box of a kind, found by its name."""
    at = data.index(kind)
    (size,) = struct.unpack_from(">I", data, at - 4)
    return data[at + 4 : at - 4 + size]


def without_adobe_marker(data: bytes) -> bytes:
    at = data.index(b"\xff\xee")
    length = int.from_bytes(data[at + 2 : at + 4], "big")
    return data[:at] + data[at + 2 + length :]


def exif_segment(block: bytes) -> bytes:
    """A JPEG's APP1 segment with an EXIF block."""
    body = b"Exif\x00\x00" + block
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body

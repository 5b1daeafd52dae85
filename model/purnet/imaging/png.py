"""PNG files: size and orientation, and the picture alone, without the chunks it does not need.

Decoders stop at metadata with a bad checksum, a wrong length or too much in it, which no viewer
shows. They are given the chunks the picture is made of, whose checksums are verified here. Of an
animation that is the first frame, as a still picture.

Source: PNG, third edition (W3C, 2025), with APNG and eXIf; ImageMagick's `Raw profile type` texts.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from purnet.errors import ImageError
from purnet.imaging.formats import Header, broken, cut_short
from purnet.imaging.tiff import exif_orientation

# 20 MiB in pieces of 8 KiB are 2,560 chunks, an animation of ten thousand frames has twenty
# thousand. A file of empty ones could hold 1.7 million.
MAX_CHUNKS = 65_536
# A thumbnail in EXIF takes some ten KB, which a text spells in hexadecimal digits.
MAX_EXIF_BYTES = 1 << 20

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE = 0, 2, 3
_DEPTHS = {_GREY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PROFILES = (b"Raw profile type exif", b"Raw profile type APP1")


@dataclass(frozen=True, slots=True)
class _Chunk:
    kind: bytes
    begin: int
    """Where its body begins; its length and kind are the eight bytes before."""
    end: int
    """Where its body ends; its checksum is the four bytes behind."""


@dataclass(frozen=True, slots=True)
class PngPicture:
    """What a decoder needs, and what is left to do when it has decoded it."""

    data: bytes
    """A PNG file of critical chunks and a palette's transparency."""
    depth: int
    """Bits of a sample."""
    clear: tuple[int, ...] | None
    """The one grey level or RGB colour that is transparent, as samples of `depth` bits."""
    offset: tuple[int, int]
    """Where the picture lies on the canvas of the header's size: left, top."""


@dataclass(slots=True)
class _Png:
    width: int
    height: int
    depth: int
    colour: int
    interlaced: bool
    palette: _Chunk | None = None
    clear: _Chunk | None = None
    exif: _Chunk | None = None
    text: _Chunk | None = None
    """The first text that is named as one that holds an EXIF block."""
    animated: bool = False
    frame: _Chunk | None = None
    """The first frame control chunk."""
    frame_pixels: list[_Chunk] = field(default_factory=list)
    pixels: list[_Chunk] = field(default_factory=list)
    pixels_end: bool = False
    """Whether something else follows the last pixels: they are not cut short."""


def read_png(data: bytes) -> Header:
    """Size and orientation. Raises `ImageError`."""
    png = _walk(data)
    return Header("PNG", png.width, png.height, _orientation(data, png))


def picture_of_png(data: bytes) -> PngPicture:
    """The file reduced to its picture. Raises `ImageError` if that is damaged or incomplete."""
    png = _walk(data)
    if png.depth not in _DEPTHS.get(png.colour, ()):
        raise broken("PNG", "no PNG has its kind of pixels")
    if png.palette is None and png.colour == _PALETTE:
        raise broken("PNG", "it has no palette")
    if not png.pixels:
        raise cut_short("PNG")
    view = memoryview(data)
    size, offset, pixels, skipped = (png.width, png.height), (0, 0), png.pixels, 0
    # The first frame of an animation is the default image, unless its control chunk comes later.
    if png.frame is not None and png.frame_pixels and png.frame.begin > png.pixels[0].begin:
        _, *size_and_offset = struct.unpack(">5I", view[png.frame.begin : png.frame.begin + 20])
        size, offset = tuple(size_and_offset[:2]), tuple(size_and_offset[2:])
        pixels, skipped = png.frame_pixels, 4  # a sequence number
    elif not png.pixels_end:
        raise cut_short("PNG")
    header = struct.pack(">IIBBBBB", *size, png.depth, png.colour, 0, 0, png.interlaced)
    parts: list[bytes | memoryview] = [_SIGNATURE, _encoded(b"IHDR", header)]
    tables = (png.palette, png.clear) if png.colour == _PALETTE else ()
    parts += [_encoded(table.kind, view[table.begin : table.end]) for table in tables if table]
    for chunk in pixels:
        if not _is_intact(view, chunk):
            raise broken("PNG", "the checksum of its pixels is wrong")
        if skipped:
            parts.append(_encoded(b"IDAT", view[chunk.begin + skipped : chunk.end]))
        else:
            parts.append(view[chunk.begin - 8 : chunk.end + 4])
    parts.append(_encoded(b"IEND", b""))
    return PngPicture(b"".join(parts), png.depth, _clear_samples(data, png), offset)


def _walk(data: bytes) -> _Png:
    """Sort the chunks up to the end of the picture, or as far as they can be followed."""
    view = memoryview(data)
    chunks = _chunks(data)
    first = next(chunks, None)
    if first is None or first.kind != b"IHDR" or first.end - first.begin != 13:
        raise ImageError("the PNG header is broken or cut short")
    if not _is_intact(view, first):
        raise broken("PNG", "the checksum of its header is wrong")
    width, height, depth, colour, compression, filters, interlace = struct.unpack(
        ">IIBBBBB", view[first.begin : first.end]
    )
    if compression or filters or interlace > 1:
        raise broken("PNG", "its header asks for what no PNG has")
    png = _Png(width, height, depth, colour, bool(interlace))
    for chunk in chunks:
        png.pixels_end = png.pixels_end or bool(png.pixels and chunk.kind != b"IDAT")
        _sort(png, chunk, view)
    return png


def _chunks(data: bytes) -> Iterator[_Chunk]:
    """Every whole chunk and IEND, even if it is missing, unless the file ends within pixels."""
    at = len(_SIGNATURE)
    for _ in range(MAX_CHUNKS):
        kind, begin = data[at + 4 : at + 8], at + 8
        end = begin + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data) or kind == b"IEND" or not kind.isalpha():
            if kind != b"IDAT":
                yield _Chunk(b"IEND", at, at)
            return
        yield _Chunk(kind, begin, end)
        at = end + 4
    raise ImageError("the PNG file has too many chunks", limit=MAX_CHUNKS)


def _sort(png: _Png, chunk: _Chunk, view: memoryview) -> None:
    """Keep a chunk if it is of use. An ancillary one that is damaged is of none."""
    size = chunk.end - chunk.begin
    match chunk.kind:
        case b"IDAT":
            if not png.pixels_end:
                png.pixels.append(chunk)
        case b"PLTE":
            if png.palette is None and not png.pixels:
                if size % 3 or not 3 <= size <= 768:
                    raise broken("PNG", "its palette has a wrong length")
                if not _is_intact(view, chunk):
                    raise broken("PNG", "the checksum of its palette is wrong")
                png.palette = chunk
        case b"tRNS":
            if (
                png.clear is None
                and not png.pixels
                and _fits(png, size)
                and _is_intact(view, chunk)
            ):
                png.clear = chunk
        case b"eXIf":
            if png.exif is None and _is_intact(view, chunk):
                png.exif = chunk
        case b"acTL":
            png.animated = png.animated or (
                not png.pixels
                and size == 8
                and _is_intact(view, chunk)
                and bytes(view[chunk.begin : chunk.begin + 4]) != bytes(4)
            )
        case b"fcTL":
            if png.animated and png.frame is None:
                png.frame = chunk if _is_frame(png, chunk, view) else None
                png.animated = png.frame is not None
            else:
                png.animated = False  # the second frame begins
        case b"fdAT":
            if png.animated and png.frame is not None and size >= 4:
                png.frame_pixels.append(chunk)
        case kind if kind in _TEXTS:
            keyword = bytes(view[chunk.begin : min(chunk.end, chunk.begin + 80)])
            is_profile = png.text is None and keyword.split(b"\0")[0] in _PROFILES
            if is_profile and _is_intact(view, chunk):
                png.text = chunk
        case kind if kind[:1].isupper() and kind != b"IEND":
            raise broken("PNG", "it has a critical chunk that no PNG has")


def _is_intact(view: memoryview, chunk: _Chunk) -> bool:
    checksum = int.from_bytes(view[chunk.end : chunk.end + 4], "big")
    return zlib.crc32(view[chunk.begin - 4 : chunk.end]) == checksum


def _fits(png: _Png, size: int) -> bool:
    """Whether a tRNS chunk of `size` bytes says something of such pixels."""
    if png.colour == _PALETTE:
        return png.palette is not None and 1 <= size <= (png.palette.end - png.palette.begin) // 3
    return size == {_GREY: 2, _RGB: 6}.get(png.colour)


def _is_frame(png: _Png, chunk: _Chunk, view: memoryview) -> bool:
    """Whether an fcTL chunk describes a frame within the canvas."""
    if chunk.end - chunk.begin != 26 or not _is_intact(view, chunk):
        return False
    _, width, height, left, top = struct.unpack(">5I", view[chunk.begin : chunk.begin + 20])
    return bool(width and height and left + width <= png.width and top + height <= png.height)


def _clear_samples(data: bytes, png: _Png) -> tuple[int, ...] | None:
    if png.clear is None or png.colour == _PALETTE:
        return None
    samples = struct.unpack_from(">H" if png.colour == _GREY else ">3H", data, png.clear.begin)
    return tuple(sample & ((1 << png.depth) - 1) for sample in samples)


def _orientation(data: bytes, png: _Png) -> int:
    """From the eXIf chunk, or else from the text that spells an EXIF block."""
    if png.exif is not None:
        return exif_orientation(data[png.exif.begin : png.exif.end])
    if png.text is not None:
        return exif_orientation(_profile(png.text.kind, data[png.text.begin : png.text.end]))
    return 1


def _profile(kind: bytes, body: bytes) -> bytes:
    """The block that a `Raw profile` text spells: a line of its name, one of its length, hex."""
    _, _, rest = body.partition(b"\0")
    compressed = kind == b"zTXt"
    if kind == b"iTXt":
        compressed, rest = rest[:1] == b"\x01", b"".join(rest[2:].split(b"\0", 2)[2:])
    elif compressed:
        rest = rest[1:]
    if compressed:
        try:
            rest = zlib.decompressobj().decompress(rest, 2 * MAX_EXIF_BYTES)
        except zlib.error:
            return b""
    lines = rest[: 2 * MAX_EXIF_BYTES].split(None, 2)
    try:
        return bytes.fromhex(lines[2].decode("ascii"))
    except (IndexError, ValueError):
        return b""


def _encoded(kind: bytes, body: bytes | memoryview) -> bytes:
    checksum = zlib.crc32(body, zlib.crc32(kind))
    return b"".join((len(body).to_bytes(4, "big"), kind, body, checksum.to_bytes(4, "big")))

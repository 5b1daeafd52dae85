"""TIFF's directory of tags, which EXIF shares: orientation, and TIFF files made safe to decode.

Source: TIFF 6.0, Adobe 1992, section 2; BigTIFF (libtiff); EXIF 2.32, section 4.6.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from purnet.errors import ImageError
from purnet.imaging.formats import QUARTER_TURNS, Header, broken

ORIENTATION_TAG = 0x0112
_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323
_NEEDED_TAGS = frozenset(
    # Geometry, samples and compression; the rest is metadata.
    {254, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320}
    | {*range(322, 326), 332, 338, 339, 347, *range(512, 522), *range(529, 533)}
)
# Real files have some twenty; the format allows 65,535.
MAX_TAGS = 1024
_BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8} | {
    13: 4,
    16: 8,
    17: 8,
    18: 8,
}
_WHOLE_NUMBERS = frozenset({1, 3, 4, 16})


@dataclass(frozen=True, slots=True)
class _Tag:
    number: int
    raw: bytes
    """The directory entry as it is in the file."""
    size: int
    """Bytes of its values."""
    value: int | None
    """The first value, where it is a whole number."""


@dataclass(frozen=True, slots=True)
class _Directory:
    order: str
    """`big` or `little`, as `int.from_bytes` takes it."""
    at: int
    """Where the number of its entries is."""
    count_bytes: int
    offset_bytes: int
    tags: tuple[_Tag, ...]


def exif_orientation(block: bytes) -> int:
    """Orientation, 1 to 8, of an EXIF block with or without its `Exif` prefix; 1 if it has none."""
    directory = _read_directory(block.removeprefix(b"Exif\x00\x00"))
    for tag in directory.tags if directory else ():
        if tag.number == ORIENTATION_TAG and tag.value is not None and 1 <= tag.value <= 8:
            return tag.value
    return 1


def read_tiff(data: bytes) -> Header:
    """Header of the first page. Its sides are as displayed: Pillow turns a TIFF upright itself.

    Raises `ImageError`.
    """
    directory = _directory_of(data)
    values = {tag.number: tag.value for tag in directory.tags}
    width, height = values.get(_WIDTH), values.get(_HEIGHT)
    if not width or not height:
        raise broken("TIFF", "it has no size")
    tile = values.get(_TILE_WIDTH) or 0, values.get(_TILE_HEIGHT) or 0
    # A tile is decoded whole; the least is 16 by 16.
    if tile[0] > max(2 * width, 4096) or tile[1] > max(2 * height, 4096):
        raise broken("TIFF", "its tiles are larger than the image")
    if values.get(ORIENTATION_TAG) in QUARTER_TURNS:
        width, height = height, width
    return Header("TIFF", width, height)


def strip_tiff(data: bytes) -> bytes:
    """The first page with the tags that decoding needs and no others. Raises `ImageError`."""
    directory = _directory_of(data)
    kept = [tag for tag in directory.tags if tag.number in _NEEDED_TAGS]
    if sum(tag.size for tag in kept) > len(data):
        raise broken("TIFF", "its tags hold more than the file does")
    order, at = directory.order, directory.at
    entries = b"".join(tag.raw for tag in kept) + bytes(directory.offset_bytes)  # no next page
    count = len(kept).to_bytes(directory.count_bytes, order)  # type: ignore[arg-type]
    end = at + len(count) + len(entries)
    return b"".join((data[:at], count, entries, data[end:]))


def _directory_of(data: bytes) -> _Directory:
    directory = _read_directory(data)
    if directory is None or not directory.tags:
        raise broken("TIFF", "it has no directory")
    if len(directory.tags) > MAX_TAGS:
        raise ImageError("the TIFF image has too many tags", limit=MAX_TAGS)
    return directory


def _read_directory(data: bytes) -> _Directory | None:
    """The first directory as far as the file holds it, or None."""
    match data[:4]:
        case b"II*\x00" | b"MM\x00*":
            count_bytes, offset_bytes, entry_bytes, at = 2, 4, 12, 4
        case b"II+\x00" | b"MM\x00+":
            count_bytes, offset_bytes, entry_bytes, at = 8, 8, 20, 8
        case _:
            return None
    order = "little" if data[:1] == b"I" else "big"

    def number(start: int, size: int) -> int:
        return int.from_bytes(data[start : start + size], order)  # type: ignore[arg-type]

    def tags(start: int, count: int) -> Iterator[_Tag]:
        for entry in range(start, start + count * entry_bytes, entry_bytes):
            raw = data[entry : entry + entry_bytes]
            if len(raw) < entry_bytes:
                return
            kind, values = number(entry + 2, 2), number(entry + 4, offset_bytes)
            each = _BYTES_OF_TYPE.get(kind, 1)
            value = None
            if kind in _WHOLE_NUMBERS and values and each <= offset_bytes:
                at_value = entry + 4 + offset_bytes
                if values * each > offset_bytes:
                    at_value = number(at_value, offset_bytes)
                value = number(at_value, each)
            yield _Tag(number(entry, 2), raw, each * values, value)

    at = number(at, offset_bytes)
    count = min(number(at, count_bytes), MAX_TAGS + 1)
    found = tuple(tags(at + count_bytes, count))
    return _Directory(order, at, count_bytes, offset_bytes, found)

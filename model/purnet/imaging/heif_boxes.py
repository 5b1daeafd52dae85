"""The boxes of AVIF and HEIC/HEIF files: items, their properties and what ties them together.

Sources: ISO/IEC 14496-12 (boxes), 23008-12 (items).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from purnet.errors import ImageError
from purnet.imaging.formats import Format, broken, cut_short

# A photo of 50 megapixels has some two hundred tiles, one of 200 eight hundred.
MAX_ITEMS = 1024
MAX_BOXES = 16_384
# Pieces of items, and references between items: a few for each.
MAX_LINKS = 16_384
# Real images have some ten.
MAX_PROPERTIES = 64

Span = tuple[int, int]


@dataclass(slots=True)
class Item:
    """A coded image, a grid of such, or metadata."""

    kind: bytes = b""
    extents: list[Span] = field(default_factory=list)
    properties: list[int] = field(default_factory=list)
    """Numbers, from 1, of the properties in their order."""
    parts: list[int] = field(default_factory=list)
    """Items that a grid is put together from."""


@dataclass(slots=True)
class Meta:
    """What the `meta` box says."""

    primary: int | None = None
    items: dict[int, Item] = field(default_factory=dict)
    properties: list[tuple[bytes, Span]] = field(default_factory=list)
    auxiliaries: dict[int, list[int]] = field(default_factory=dict)
    """By item: those that carry its alpha, depth, ..."""
    unneeded: list[int] = field(default_factory=list)
    """Where the kinds of boxes are that tie metadata and profiles to items."""
    idat: int = 0


def read_meta(data: bytes, image_format: Format) -> Meta:
    """Items, properties and references of the file's `meta` box. Raises `ImageError`."""
    top = dict(_boxes(data, 0, len(data), image_format, whole=False))
    if b"meta" not in top:
        raise cut_short(image_format)
    begin, end = top[b"meta"]
    if end > len(data):
        raise cut_short(image_format)
    meta, boxes = Meta(), dict(_boxes(data, begin + 4, end, image_format))
    readers = {
        b"pitm": _read_primary,
        b"iinf": _read_kinds,
        b"idat": _read_idat,
        b"iloc": _read_extents,
        b"iprp": _read_properties,
        b"iref": _read_references,
    }
    for kind, read in readers.items():
        if kind in boxes:
            read(data, meta, boxes[kind], image_format)
    return meta


def _read_primary(data: bytes, meta: Meta, span: Span, image_format: Format) -> None:
    meta.primary = number_at(data, span[0] + 4, 4 if number_at(data, span[0], 1) else 2)


def _read_kinds(data: bytes, meta: Meta, span: Span, image_format: Format) -> None:
    begin, end = span
    entries = begin + (8 if number_at(data, begin, 1) else 6)
    for kind, (at, stop) in _boxes(data, entries, end, image_format):
        if kind == b"infe" and stop - at >= 12 and data[at] >= 2:
            wide = 4 if data[at] > 2 else 2
            item = meta.items.setdefault(number_at(data, at + 4, wide), Item())
            item.kind = data[at + 6 + wide : at + 10 + wide]
    if len(meta.items) > MAX_ITEMS:
        raise ImageError(f"the {image_format} file has too many items", limit=MAX_ITEMS)


def _read_idat(data: bytes, meta: Meta, span: Span, image_format: Format) -> None:
    meta.idat = span[0]


def _read_extents(data: bytes, meta: Meta, span: Span, image_format: Format) -> None:
    at, end = span
    version, sizes = number_at(data, at, 1), number_at(data, at + 4, 2)
    offset_size, length_size = sizes >> 12 & 15, sizes >> 8 & 15
    base_size, index_size = sizes >> 4 & 15, sizes & 15
    wide = 4 if version == 2 else 2
    at += 6
    count, at = number_at(data, at, wide), at + wide
    total = pieces = 0
    for _ in range(min(count, MAX_ITEMS)):
        item, at = meta.items.get(number_at(data, at, wide)), at + wide
        in_idat = False
        if version:
            in_idat, at = number_at(data, at, 2) & 15 == 1, at + 2
        base = number_at(data, at + 2, base_size) + (meta.idat if in_idat else 0)
        at += 2 + base_size
        extents, at = number_at(data, at, 2), at + 2
        pieces += extents
        if pieces > MAX_LINKS:
            raise ImageError(f"the {image_format} file has too many pieces", limit=MAX_LINKS)
        for _ in range(extents):
            at += index_size if version else 0
            start = base + number_at(data, at, offset_size)
            length = number_at(data, at + offset_size, length_size)
            at += offset_size + length_size
            total += length
            if at > end or start + length > len(data) or total > len(data):
                raise cut_short(image_format)
            if item is not None:
                item.extents.append((start, start + length if length else len(data)))


def _read_properties(data: bytes, meta: Meta, span: Span, image_format: Format) -> None:
    for kind, (begin, end) in _boxes(data, *span, image_format):
        if kind == b"ipco":
            for name, (at, stop) in _boxes(data, begin, end, image_format):
                meta.properties.append((name, (at, stop)))
                if name == b"colr" and data[at : at + 4] in (b"prof", b"rICC"):
                    meta.unneeded.append(at - 4)
        elif kind == b"ipma":
            _read_associations(data, meta, (begin, end))
    if any(len(item.properties) > MAX_PROPERTIES for item in meta.items.values()):
        raise ImageError(f"the {image_format} file has too many properties", limit=MAX_PROPERTIES)


def _read_associations(data: bytes, meta: Meta, span: Span) -> None:
    at, end = span
    id_size, index_size = 4 if number_at(data, at, 1) else 2, 1 + (number_at(data, at + 3, 1) & 1)
    count, at = number_at(data, at + 4, 4), at + 8
    for _ in range(min(count, MAX_ITEMS)):
        item, at = meta.items.get(number_at(data, at, id_size)), at + id_size
        for _ in range(number_at(data, at, 1)):
            number = number_at(data, at + 1, index_size) & (0x7FFF if index_size == 2 else 0x7F)
            at += index_size
            if item is not None and number:
                item.properties.append(number)
        at += 1
        if at > end:
            return


def _read_references(data: bytes, meta: Meta, span: Span, image_format: Format) -> None:
    begin, end = span
    wide, total = 4 if number_at(data, begin, 1) else 2, 0
    for kind, (at, stop) in _boxes(data, begin + 4, end, image_format):
        count = min(number_at(data, at + wide, 2), MAX_ITEMS, (stop - at) // wide)
        total += count
        if total > MAX_LINKS:
            raise ImageError(f"the {image_format} file has too many references", limit=MAX_LINKS)
        source = number_at(data, at, wide)
        targets = [number_at(data, at + 2 + wide * (i + 1), wide) for i in range(count)]
        if kind == b"dimg" and source in meta.items:
            meta.items[source].parts = targets
        elif kind == b"auxl":
            for target in targets:
                meta.auxiliaries.setdefault(target, []).append(source)
        elif kind == b"cdsc":
            meta.unneeded.append(at - 4)


def _boxes(
    data: bytes, begin: int, end: int, image_format: Format, *, whole: bool = True
) -> Iterator[tuple[bytes, Span]]:
    """Kind and body of every box from `begin` to `end`; a box need not be `whole` at the top."""
    for _ in range(MAX_BOXES):
        if begin + 8 > end:
            return
        size, body = number_at(data, begin, 4), begin + 8
        if size == 1:
            size, body = number_at(data, begin + 8, 8), begin + 16
        stop = begin + size if size else end
        if stop < body or (whole and stop > end):
            raise broken(image_format, "its boxes do not fit each other")
        yield data[begin + 4 : begin + 8], (body, stop)
        begin = stop
    raise ImageError(f"the {image_format} file has too many boxes", limit=MAX_BOXES)


def number_at(data: bytes, at: int, size: int) -> int:
    """A number of `size` bytes, 0 bytes counting as 0."""
    return int.from_bytes(data[at : at + size], "big")

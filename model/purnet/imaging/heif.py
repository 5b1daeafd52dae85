"""AVIF and HEIC/HEIF files: size and transforms, and their boxes made safe to decode.

Both are boxes around coded images. The size that counts is written three times: as a property of
the item, in the codec's own headers, and in the grid that puts tiles together. A decoder allocates
by the codec's, so all are compared here.

Sources: ISO/IEC 14496-12 (boxes), 23008-12 (HEIF), 23000-22 (MIAF), AVIF 1.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from purnet.errors import ImageError
from purnet.imaging.coded_size import CodedSizeError, av1_sizes, hevc_sizes
from purnet.imaging.formats import (
    Format,
    Header,
    UnknownFormatError,
    broken,
    cut_short,
)

# A photo of 50 megapixels has some two hundred tiles, one of 200 eight hundred.
MAX_ITEMS = 1024
MAX_BOXES = 16_384
# Pieces of items, and references between items: a few for each.
MAX_LINKS = 16_384
# Real images have some ten.
MAX_PROPERTIES = 64
# Codecs pad their pictures to whole blocks, of 64 pixels and less, and AV1 superblocks to 128.
_PADDING = 128
_LEAST_TILE_PIXELS = 1 << 22
"""A small picture may be cut from one tile of an encoder's usual size."""

_HEIC_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_BRANDS = dict.fromkeys(_HEIC_BRANDS, "a HEIC image") | {
    b"avif": "an AVIF image",
    b"avis": "an AVIF image",
    b"mif1": "a HEIC image",
    b"msf1": "a HEIC image",
    b"qt  ": "a QuickTime video",
    b"crx ": "a camera's raw file",
    b"jxl ": "a JPEG XL image",
    b"jp2 ": "a JPEG 2000 image",
    b"3gp4": "a 3GP video",
    b"3gp5": "a 3GP video",
    b"M4A ": "an M4A audio file",
}
_CODECS: dict[Format, bytes] = {"AVIF": b"av01", "HEIF": b"hvc1"}
_ORIENTATIONS = {
    # Quarter turns against the clock, then the mirror: none, top and bottom, left and right.
    0: {None: 1, 0: 4, 1: 2},
    1: {None: 8, 0: 5, 1: 7},
    2: {None: 3, 0: 2, 1: 4},
    3: {None: 6, 0: 7, 1: 5},
}

_Span = tuple[int, int]


@dataclass(slots=True)
class _Item:
    kind: bytes = b""
    extents: list[_Span] = field(default_factory=list)
    properties: list[int] = field(default_factory=list)
    """Numbers, from 1, of the properties in their order."""
    parts: list[int] = field(default_factory=list)
    """Items that a grid is put together from."""


@dataclass(slots=True)
class _Meta:
    primary: int | None = None
    items: dict[int, _Item] = field(default_factory=dict)
    properties: list[tuple[bytes, _Span]] = field(default_factory=list)
    auxiliaries: dict[int, list[int]] = field(default_factory=dict)
    """By item: those that carry its alpha, depth, ..."""
    unneeded: list[int] = field(default_factory=list)
    """Where the kinds of boxes are that tie metadata and profiles to items."""
    idat: int = 0


def brand_name(data: bytes) -> str:
    """What a file of ISO boxes is, by its brands."""
    brands = [data[8:12], *(data[at : at + 4] for at in range(16, min(_ftyp_end(data), 512), 4))]
    if brands[0] in (b"mif1", b"msf1") and not _HEIC_BRANDS.intersection(brands):
        return next((_BRANDS[b] for b in brands if b in (b"avif", b"avis")), "a HEIC image")
    return _BRANDS.get(brands[0], "an MP4 video")


def read_avif(data: bytes) -> Header:
    """Size of the primary item, and its rotation and mirror as an orientation.

    Raises `ImageError`.
    """
    meta = _read_meta(data, "AVIF")
    width, height, turns, mirror = _check(data, meta, "AVIF")
    return Header("AVIF", width, height, _ORIENTATIONS[turns][mirror])


def read_heif(data: bytes) -> Header:
    """Size of the primary item as displayed: the decoder turns it itself. Raises `ImageError`."""
    meta = _read_meta(data, "HEIF")
    width, height, turns, _ = _check(data, meta, "HEIF")
    return Header("HEIF", *((height, width) if turns % 2 else (width, height)))


def strip_heif(data: bytes, image_format: Format) -> bytes:
    """The file without metadata and profiles, and a sequence as its still image.

    Raises `ImageError`.
    """
    changes = dict.fromkeys(_read_meta(data, image_format).unneeded, b"free")
    if image_format == "AVIF":
        changes[8] = b"avif"  # a decoder would show the sequence of one that says `avis`
    view, begin = memoryview(data), 0
    parts: list[bytes | memoryview] = []
    for at in sorted(changes):
        parts += [view[begin:at], changes[at]]
        begin = at + 4
    return b"".join((*parts, view[begin:]))


def _check(data: bytes, meta: _Meta, image_format: Format) -> tuple[int, int, int, int | None]:
    """Width and height, quarter turns and mirror of the primary item, all sizes compared."""
    primary = meta.items.get(meta.primary or -1)
    if primary is None:
        raise broken(image_format, "it has no primary image")
    codec, parts = _CODECS[image_format], [meta.items.get(part) for part in primary.parts]
    kinds = {primary.kind} if primary.kind != b"grid" else {part.kind for part in parts if part}
    if kinds != {codec} or None in parts:
        raise UnknownFormatError(f"it is a {image_format} image of a coding that is not taken")
    width, height = _size(data, meta, primary, image_format)
    _check_pixels(data, meta, primary, image_format)
    for number in meta.auxiliaries.get(meta.primary or -1, []):
        alpha = meta.items.get(number)
        if alpha is not None and _is_alpha(data, meta, alpha, image_format):
            shape = _size(data, meta, alpha, image_format)
            if shape[0] > width or shape[1] > height:
                raise broken(image_format, "its transparency is larger than the image")
            _check_pixels(data, meta, alpha, image_format)
    turns, mirror = 0, None
    for number in primary.properties:
        kind, (begin, end) = _property(meta, number, image_format)
        if kind == b"irot" and end > begin:
            turns = data[begin] & 3
        elif kind == b"imir" and end > begin:
            mirror = data[begin] & 1
    return width, height, turns, mirror


def _check_pixels(data: bytes, meta: _Meta, item: _Item, image_format: Format) -> None:
    """Compare the sizes of an item, of the grid that it may be, and of the grid's tiles."""
    if item.kind != b"grid":
        _check_coded(data, meta, item, image_format)
        return
    width, height = _size(data, meta, item, image_format)
    grid = _coded(data, item, image_format)
    side = 4 if _number(grid, 1, 1) & 1 else 2
    if _number(grid, 4, side) > width or _number(grid, 4 + side, side) > height:
        raise broken(image_format, "its grid is larger than the image")
    tiles = [meta.items[part] for part in item.parts if part in meta.items]
    sizes = [_size(data, meta, tile, image_format) for tile in tiles]
    if sum(w * h for w, h in sizes) > 2 * width * height + _LEAST_TILE_PIXELS:
        raise broken(image_format, "its tiles are larger than the image")
    for tile in {id(tile): tile for tile in tiles}.values():
        _check_coded(data, meta, tile, image_format)


def _check_coded(data: bytes, meta: _Meta, item: _Item, image_format: Format) -> None:
    """Compare an item's size with that in the codec's own headers."""
    width, height = _size(data, meta, item, image_format)
    coded = _coded(data, item, image_format)
    try:
        if image_format == "AVIF":
            sizes = list(av1_sizes(coded))
        else:
            kinds = (_property(meta, number, image_format) for number in item.properties)
            begin, end = next((span for kind, span in kinds if kind == b"hvcC"), (0, 0))
            sizes = list(hevc_sizes(data[begin:end], coded))
    except CodedSizeError as error:
        raise broken(image_format, str(error)) from error
    if not sizes:
        raise broken(image_format, "its pixels have no header")
    if any(w > width + _PADDING or h > height + _PADDING for w, h in sizes):
        raise broken(image_format, "it contradicts itself about its size")


def _coded(data: bytes, item: _Item, image_format: Format) -> bytes:
    if not item.extents:
        raise cut_short(image_format)
    return b"".join(data[begin:end] for begin, end in item.extents)


def _is_alpha(data: bytes, meta: _Meta, item: _Item, image_format: Format) -> bool:
    """Whether an auxiliary image is transparency, and not depth or a gain map."""
    for number in item.properties:
        kind, (begin, end) = _property(meta, number, image_format)
        if kind == b"auxC":
            return data[begin + 4 : end].split(b"\0")[0].endswith((b":alpha", b"auxid:1"))
    return False


def _size(data: bytes, meta: _Meta, item: _Item, image_format: Format) -> tuple[int, int]:
    for number in item.properties:
        kind, (begin, end) = _property(meta, number, image_format)
        if kind == b"ispe" and end - begin >= 12:
            return _number(data, begin + 4, 4), _number(data, begin + 8, 4)
    raise broken(image_format, "one of its images has no size")


def _property(meta: _Meta, number: int, image_format: Format) -> tuple[bytes, _Span]:
    if not 1 <= number <= len(meta.properties):
        raise broken(image_format, "it lacks a property")
    return meta.properties[number - 1]


def _read_meta(data: bytes, image_format: Format) -> _Meta:
    """Items, properties and references of the file's `meta` box."""
    top = dict(_boxes(data, 0, len(data), image_format, whole=False))
    if b"meta" not in top:
        raise cut_short(image_format)
    begin, end = top[b"meta"]
    if end > len(data):
        raise cut_short(image_format)
    meta, boxes = _Meta(), dict(_boxes(data, begin + 4, end, image_format))
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


def _read_primary(data: bytes, meta: _Meta, span: _Span, image_format: Format) -> None:
    meta.primary = _number(data, span[0] + 4, 4 if _number(data, span[0], 1) else 2)


def _read_kinds(data: bytes, meta: _Meta, span: _Span, image_format: Format) -> None:
    begin, end = span
    entries = begin + (8 if _number(data, begin, 1) else 6)
    for kind, (at, stop) in _boxes(data, entries, end, image_format):
        if kind == b"infe" and stop - at >= 12 and data[at] >= 2:
            wide = 4 if data[at] > 2 else 2
            item = meta.items.setdefault(_number(data, at + 4, wide), _Item())
            item.kind = data[at + 6 + wide : at + 10 + wide]
    if len(meta.items) > MAX_ITEMS:
        raise ImageError(f"the {image_format} file has too many items", limit=MAX_ITEMS)


def _read_idat(data: bytes, meta: _Meta, span: _Span, image_format: Format) -> None:
    meta.idat = span[0]


def _read_extents(data: bytes, meta: _Meta, span: _Span, image_format: Format) -> None:
    at, end = span
    version, sizes = _number(data, at, 1), _number(data, at + 4, 2)
    offset_size, length_size = sizes >> 12 & 15, sizes >> 8 & 15
    base_size, index_size = sizes >> 4 & 15, sizes & 15
    wide = 4 if version == 2 else 2
    at += 6
    count, at = _number(data, at, wide), at + wide
    total = pieces = 0
    for _ in range(min(count, MAX_ITEMS)):
        item, at = meta.items.get(_number(data, at, wide)), at + wide
        in_idat = False
        if version:
            in_idat, at = _number(data, at, 2) & 15 == 1, at + 2
        base = _number(data, at + 2, base_size) + (meta.idat if in_idat else 0)
        at += 2 + base_size
        extents, at = _number(data, at, 2), at + 2
        pieces += extents
        if pieces > MAX_LINKS:
            raise ImageError(f"the {image_format} file has too many pieces", limit=MAX_LINKS)
        for _ in range(extents):
            at += index_size if version else 0
            start = base + _number(data, at, offset_size)
            length = _number(data, at + offset_size, length_size)
            at += offset_size + length_size
            total += length
            if at > end or start + length > len(data) or total > len(data):
                raise cut_short(image_format)
            if item is not None:
                item.extents.append((start, start + length if length else len(data)))


def _read_properties(data: bytes, meta: _Meta, span: _Span, image_format: Format) -> None:
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


def _read_associations(data: bytes, meta: _Meta, span: _Span) -> None:
    at, end = span
    id_size, index_size = 4 if _number(data, at, 1) else 2, 1 + (_number(data, at + 3, 1) & 1)
    count, at = _number(data, at + 4, 4), at + 8
    for _ in range(min(count, MAX_ITEMS)):
        item, at = meta.items.get(_number(data, at, id_size)), at + id_size
        for _ in range(_number(data, at, 1)):
            number = _number(data, at + 1, index_size) & (0x7FFF if index_size == 2 else 0x7F)
            at += index_size
            if item is not None and number:
                item.properties.append(number)
        at += 1
        if at > end:
            return


def _read_references(data: bytes, meta: _Meta, span: _Span, image_format: Format) -> None:
    begin, end = span
    wide, total = 4 if _number(data, begin, 1) else 2, 0
    for kind, (at, stop) in _boxes(data, begin + 4, end, image_format):
        count = min(_number(data, at + wide, 2), MAX_ITEMS, (stop - at) // wide)
        total += count
        if total > MAX_LINKS:
            raise ImageError(f"the {image_format} file has too many references", limit=MAX_LINKS)
        source = _number(data, at, wide)
        targets = [_number(data, at + 2 + wide * (i + 1), wide) for i in range(count)]
        if kind == b"dimg" and source in meta.items:
            meta.items[source].parts = targets
        elif kind == b"auxl":
            for target in targets:
                meta.auxiliaries.setdefault(target, []).append(source)
        elif kind == b"cdsc":
            meta.unneeded.append(at - 4)


def _boxes(
    data: bytes, begin: int, end: int, image_format: Format, *, whole: bool = True
) -> Iterator[tuple[bytes, _Span]]:
    """Kind and body of every box from `begin` to `end`; a box need not be `whole` at the top."""
    for _ in range(MAX_BOXES):
        if begin + 8 > end:
            return
        size, body = _number(data, begin, 4), begin + 8
        if size == 1:
            size, body = _number(data, begin + 8, 8), begin + 16
        stop = begin + size if size else end
        if stop < body or (whole and stop > end):
            raise broken(image_format, "its boxes do not fit each other")
        yield data[begin + 4 : begin + 8], (body, stop)
        begin = stop
    raise ImageError(f"the {image_format} file has too many boxes", limit=MAX_BOXES)


def _ftyp_end(data: bytes) -> int:
    return min(_number(data, 0, 4), len(data))


def _number(data: bytes, at: int, size: int) -> int:
    """A number of `size` bytes, 0 bytes counting as 0."""
    return int.from_bytes(data[at : at + size], "big")

"""AVIF and HEIC/HEIF files: size and transforms, and their boxes made safe to decode.

Both are boxes around coded images. The size that counts is written three times: as a property of
the item, in the codec's own headers, and in the grid that puts tiles together. A decoder allocates
by the codec's, so all are compared here.

Sources: ISO/IEC 23008-12 (HEIF), 23000-22 (MIAF), AVIF 1.1.
"""

from __future__ import annotations

from purnet.imaging.coded_size import CodedSizeError, av1_sizes, hevc_sizes
from purnet.imaging.formats import Format, Header, UnknownFormatError, broken, cut_short
from purnet.imaging.heif_boxes import Item, Meta, Span, number_at, read_meta

# Codecs pad their pictures to whole blocks, of 64 pixels and less, and AV1 superblocks to 128.
_PADDING = 128
_MIN_TILE_PIXELS = 1 << 22
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
    meta = read_meta(data, "AVIF")
    width, height, turns, mirror = _check(data, meta, "AVIF")
    return Header("AVIF", width, height, _ORIENTATIONS[turns][mirror])


def read_heif(data: bytes) -> Header:
    """Size of the primary item as displayed: the decoder turns it itself. Raises `ImageError`."""
    meta = read_meta(data, "HEIF")
    width, height, turns, _ = _check(data, meta, "HEIF")
    return Header("HEIF", *((height, width) if turns % 2 else (width, height)))


def strip_heif(data: bytes, image_format: Format) -> bytes:
    """The file without metadata and profiles, and a sequence as its still image.

    Raises `ImageError`.
    """
    changes = dict.fromkeys(read_meta(data, image_format).unneeded, b"free")
    if image_format == "AVIF":
        changes[8] = b"avif"  # a decoder would show the sequence of one that says `avis`
    view, begin = memoryview(data), 0
    parts: list[bytes | memoryview] = []
    for at in sorted(changes):
        parts += [view[begin:at], changes[at]]
        begin = at + 4
    return b"".join((*parts, view[begin:]))


def _check(data: bytes, meta: Meta, image_format: Format) -> tuple[int, int, int, int | None]:
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


def _check_pixels(data: bytes, meta: Meta, item: Item, image_format: Format) -> None:
    """Compare the sizes of an item, of the grid that it may be, and of the grid's tiles."""
    if item.kind != b"grid":
        _check_coded(data, meta, item, image_format)
        return
    width, height = _size(data, meta, item, image_format)
    grid = _coded(data, item, image_format)
    side = 4 if number_at(grid, 1, 1) & 1 else 2
    if number_at(grid, 4, side) > width or number_at(grid, 4 + side, side) > height:
        raise broken(image_format, "its grid is larger than the image")
    tiles = [meta.items[part] for part in item.parts if part in meta.items]
    sizes = [_size(data, meta, tile, image_format) for tile in tiles]
    if sum(w * h for w, h in sizes) > 2 * width * height + _MIN_TILE_PIXELS:
        raise broken(image_format, "its tiles are larger than the image")
    for tile in {id(tile): tile for tile in tiles}.values():
        _check_coded(data, meta, tile, image_format)


def _check_coded(data: bytes, meta: Meta, item: Item, image_format: Format) -> None:
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


def _coded(data: bytes, item: Item, image_format: Format) -> bytes:
    if not item.extents:
        raise cut_short(image_format)
    return b"".join(data[begin:end] for begin, end in item.extents)


def _is_alpha(data: bytes, meta: Meta, item: Item, image_format: Format) -> bool:
    """Whether an auxiliary image is transparency, and not depth or a gain map."""
    for number in item.properties:
        kind, (begin, end) = _property(meta, number, image_format)
        if kind == b"auxC":
            return data[begin + 4 : end].split(b"\0")[0].endswith((b":alpha", b"auxid:1"))
    return False


def _size(data: bytes, meta: Meta, item: Item, image_format: Format) -> tuple[int, int]:
    for number in item.properties:
        kind, (begin, end) = _property(meta, number, image_format)
        if kind == b"ispe" and end - begin >= 12:
            return number_at(data, begin + 4, 4), number_at(data, begin + 8, 4)
    raise broken(image_format, "one of its images has no size")


def _property(meta: Meta, number: int, image_format: Format) -> tuple[bytes, Span]:
    if not 1 <= number <= len(meta.properties):
        raise broken(image_format, "it lacks a property")
    return meta.properties[number - 1]


def _ftyp_end(data: bytes) -> int:
    return min(number_at(data, 0, 4), len(data))

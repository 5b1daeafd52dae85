from __future__ import annotations

import struct
import tracemalloc
import zlib
from itertools import product

import numpy as np
import pytest
from image_files import apng, png, png_chunk, png_chunks, png_with, raw_png
from photos import encoded, scene, with_orientation
from PIL import Image

from purnet.imaging import ImageError, open_image, read_header

SCENE = np.asarray(scene())
BOMB = zlib.compress(bytes(50_000_000), 9)
ANCILLARY = {
    "tEXt": b"Comment\0hello",
    "zTXt": b"Comment\0\0" + zlib.compress(b"hello"),
    "iTXt": b"Comment\0\0\0\0\0hello",
    "iCCP": b"profile\0\0" + zlib.compress(b"profile"),
    "gAMA": struct.pack(">I", 45455),
    "pHYs": struct.pack(">IIB", 2835, 2835, 1),
    "sRGB": b"\0",
    "cHRM": struct.pack(">8I", *range(8)),
    "sBIT": b"\x08\x08\x08",
    "eXIf": with_orientation(1).tobytes().removeprefix(b"Exif\0\0"),
    "tRNS": struct.pack(">3H", 1, 2, 3),
    "bKGD": struct.pack(">3H", 1, 2, 3),
    "tIME": bytes(7),
    "hIST": bytes(2),
    "sPLT": b"name\0\x08",
    "acTL": struct.pack(">II", 1, 0),
    "fcTL": bytes(26),
    "fdAT": bytes(10),
    "prVt": b"private",
}


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(open_image(data))


@pytest.mark.parametrize("damage", ["checksum", "empty", "short", "long", "zeros", "letters"])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ANCILLARY)
def test_no_ancillary_chunk_fails_a_picture(kind: str, late: bool, damage: str) -> None:
    body = ANCILLARY[kind]
    damaged = {
        "checksum": body,
        "empty": b"",
        "short": body[:-1],
        "long": body + b"\0" * 1000,
        "zeros": bytes(len(body)),
        "letters": b"\xff" * len(body),
    }[damage]
    chunk = png_chunk(kind.encode(), damaged)
    if damage == "checksum":
        chunk = chunk[:-1] + bytes((chunk[-1] ^ 1,))
    assert np.array_equal(pixels(png_with(chunk, late=late)), SCENE)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("kind", "prefix"),
    [
        ("zTXt", b"k\0\0"),
        ("zTXt", b"Raw profile type exif\0\0"),
        ("iTXt", b"k\0\1\0\0\0"),
        ("iCCP", b"k\0\0"),
    ],
)
def test_what_is_compressed_costs_no_memory(kind: str, prefix: bytes, late: bool) -> None:
    data = png_with(*[png_chunk(kind.encode(), prefix + BOMB)] * 20, late=late)
    tracemalloc.start()
    try:
        assert np.array_equal(pixels(data), SCENE)
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()


def test_much_text_is_harmless() -> None:
    text = np.random.default_rng(0).bytes(1_600_000)
    chunks = [png_chunk(b"zTXt", b"k\0\0" + zlib.compress(text)), png_chunk(b"tEXt", b"k\0" + text)]
    assert np.array_equal(pixels(png_with(*chunks)), SCENE)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT"])
def test_critical_chunks_are_held_to_their_checksum(kind: bytes) -> None:
    data = bytearray(encoded(scene().quantize(16)))
    at = data.index(kind)
    (size,) = struct.unpack_from(">I", data, at - 4)
    data[at + 4 + size] ^= 1
    with pytest.raises(ImageError, match="checksum"):
        open_image(bytes(data))


def test_an_unknown_critical_chunk_is_an_error() -> None:
    with pytest.raises(ImageError, match="critical"):
        open_image(png_with(png_chunk(b"CgBI", bytes(4))))


@pytest.mark.parametrize("tail", [b"", b"\0\0\0\0", b"\0" * 100, png_chunk(b"tEXt", b"k\0v")[:-5]])
def test_a_picture_that_is_whole_needs_no_end(tail: bytes) -> None:
    assert np.array_equal(pixels(encoded(scene())[:-12] + tail), SCENE)


def test_pixels_that_are_cut_are_cut_short() -> None:
    data = encoded(scene())
    for length in (*range(60, len(data) - 20, 53), len(data) - 17):
        with pytest.raises(ImageError, match="cut short"):
            open_image(data[:length])


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_one_transparent_grey_level_is_compared_at_the_file_s_depth(depth: int) -> None:
    levels = 1 << depth
    count = min(levels, 256)
    samples = np.arange(count) * (levels // count)
    clear = int(samples[count // 2])
    rows = np.repeat(samples[None], 2, axis=0)
    if depth == 16:
        packed = rows.astype(">u2").tobytes()
    else:
        bits = rows[..., None] >> np.arange(depth)[::-1] & 1
        packed = np.packbits(bits.reshape(2, -1).astype(np.uint8), axis=1).tobytes()
    # Bits above the depth are to be ignored.
    marker = (b"tRNS", struct.pack(">H", clear | (0 if depth == 16 else 1 << 15)))
    found = pixels(raw_png(count, 2, depth, 0, packed, marker))[0, :, 0]
    expected = np.rint(samples * 255 / (levels - 1))
    expected[samples == clear] = 255
    assert found.tolist() == expected.tolist()
    alpha = np.asarray(open_image(raw_png(count, 2, depth, 0, packed, marker), keep_alpha=True))
    assert np.array_equal(alpha[0, :, 3] == 0, samples == clear)


@pytest.mark.parametrize("depth", [8, 16])
def test_one_transparent_colour_is_compared_at_the_file_s_depth(depth: int) -> None:
    near = [0, 1, 0x1234 >> (16 - depth), (0x1234 >> (16 - depth)) + 1]
    colours = np.array(list(product(near, near, near)))
    clear = (near[2], near[3], near[2])
    kind = ">u2" if depth == 16 else "u1"
    rows = np.repeat(colours[None], 70, axis=0)
    marker = (b"tRNS", struct.pack(">3H", *clear))
    data = raw_png(len(colours), 70, depth, 2, rows.astype(kind).tobytes(), marker)
    is_clear = (colours == clear).all(axis=1)
    assert is_clear.sum() == 1
    found = np.asarray(open_image(data, keep_alpha=True))
    assert np.array_equal(found[..., 3], np.repeat(np.where(is_clear, 0, 255)[None], 70, axis=0))
    shown = np.where(is_clear[:, None], 255, colours >> (depth - 8))
    assert np.abs(pixels(data)[0].astype(int) - shown).max() <= 1


def test_a_palette_may_have_fewer_alphas_than_colours_and_not_more() -> None:
    picture = scene().quantize(8)
    chunks = png_chunks(encoded(picture))
    palette = next(i for i, (kind, _) in enumerate(chunks) if kind == b"PLTE")
    first, plain = np.asarray(picture) == 0, np.asarray(picture.convert("RGB"))
    chunks.insert(palette + 1, (b"tRNS", b"\0"))
    assert np.array_equal(pixels(png(chunks)), np.where(first[..., None], 255, plain))
    chunks[palette + 1] = (b"tRNS", bytes(100))
    assert np.array_equal(pixels(png(chunks)), plain)


def hexed(block: bytes, name: str = "exif") -> bytes:
    return f"\n{name}\n{len(block):8d}\n".encode() + block.hex().encode() + b"\n"


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("how", ["eXIf", "tEXt", "zTXt", "iTXt", "compressed iTXt", "APP1"])
def test_orientation_is_read_wherever_a_png_keeps_exif(how: str, late: bool) -> None:
    block = with_orientation(6).tobytes().removeprefix(b"Exif\0\0")
    name = b"Raw profile type exif\0"
    chunk = {
        "eXIf": (b"eXIf", block),
        "tEXt": (b"tEXt", name + hexed(b"Exif\0\0" + block)),
        "zTXt": (b"zTXt", name + b"\0" + zlib.compress(hexed(b"Exif\0\0" + block))),
        "iTXt": (b"iTXt", name + b"\0\0\0\0" + hexed(block)),
        "compressed iTXt": (b"iTXt", name + b"\1\0\0\0" + zlib.compress(hexed(block))),
        "APP1": (b"tEXt", b"Raw profile type APP1\0" + hexed(b"Exif\0\0" + block, "APP1")),
    }[how]
    data = png_with(png_chunk(*chunk), late=late)
    assert read_header(data).orientation == 6
    assert np.array_equal(pixels(data), np.rot90(SCENE, -1))


@pytest.mark.parametrize("kind", [b"iTXt", b"tEXt", b"zTXt"])
def test_xmp_says_nothing_of_the_orientation(kind: bytes) -> None:
    xmp = b"<x:xmpmeta><stRef:x tiff:Orientation='8'/>tiff:Orientation>6<"
    head = b"XML:com.adobe.xmp\0" + (b"\0\0\0\0" if kind == b"iTXt" else b"")
    data = png_with(png_chunk(kind, head + xmp))
    assert np.array_equal(pixels(data), SCENE)


def test_an_animation_is_its_first_frame() -> None:
    turned = scene().transpose(Image.Transpose.ROTATE_180)
    other = Image.new("RGB", (96, 64), "red")
    frames = [(scene(), 0, 0), (turned, 0, 0)]
    assert np.array_equal(pixels(apng(frames)), SCENE)
    assert np.array_equal(pixels(apng(frames, default=other)), SCENE)


def test_a_first_frame_smaller_than_the_canvas_lies_on_nothing() -> None:
    data = apng([(scene(40, 20), 7, 5)], default=Image.new("RGB", (96, 64), "red"))
    expected = np.full((64, 96, 3), 255)
    expected[5:25, 7:47] = np.asarray(scene(40, 20))
    assert np.array_equal(pixels(data), expected)
    alpha = np.asarray(open_image(data, keep_alpha=True))[..., 3]
    assert alpha.sum() == 255 * 40 * 20


@pytest.mark.parametrize("damage", ["no frames", "frame outside", "no pixels"])
def test_an_animation_that_is_none_is_its_default_image(damage: str) -> None:
    chunks = png_chunks(apng([(scene(40, 20), 7, 5)], default=scene()))
    if damage == "no frames":
        chunks[1] = (b"acTL", bytes(8))
    elif damage == "frame outside":
        chunks = [
            (k, b[:12] + struct.pack(">I", 90) + b[16:]) if k == b"fcTL" else (k, b)
            for k, b in chunks
        ]
    else:
        chunks = [chunk for chunk in chunks if chunk[0] != b"fdAT"]
    assert np.array_equal(pixels(png(chunks)), SCENE)


def test_a_first_frame_that_is_cut_is_cut_short() -> None:
    chunks = png_chunks(apng([(scene(), 0, 0)], default=Image.new("RGB", (96, 64), "red")))
    chunks = [(k, b[:-9] if k == b"fdAT" else b) for k, b in chunks]
    with pytest.raises(ImageError):
        open_image(png(chunks))


@pytest.mark.parametrize("colour", range(8))
@pytest.mark.parametrize("depth", [0, 1, 2, 3, 4, 8, 16, 32])
def test_only_the_kinds_of_pixels_that_png_has(depth: int, colour: int) -> None:
    header = struct.pack(">IIBBBBB", 4, 4, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"PLTE", bytes(6)), (b"IDAT", zlib.compress(bytes(1000)))]
    allowed = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    data = png([*chunks, (b"IEND", b"")])
    if depth in allowed.get(colour, ()):
        assert open_image(data).size == (4, 4)
    else:
        with pytest.raises(ImageError):
            open_image(data)

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

import numpy as np
import pytest
from image_files import box, box_body, heic
from photos import encoded, scene, with_orientation
from PIL import Image

from purnet.imaging import FORMATS, ImageError, UnknownFormatError, open_image, read_header
from purnet.imaging.coded_size import CodedSizeError, av1_sizes, hevc_sizes
from purnet.imaging.heif_boxes import MAX_ITEMS

SCENE = np.asarray(scene()).astype(int)
TILE = (96, 64)


@dataclass(frozen=True)
class Grid:
    """A HEIC of tiles that are all the scene, with whatever it says of itself."""

    columns: int = 2
    rows: int = 2
    width: int = 180
    height: int = 120
    claimed: tuple[int, int] | None = None
    """The size that the grid itself gives, where it is another."""
    tile: tuple[int, int] = TILE
    transforms: bytes = b""
    """Properties of the whole image."""

    def encode(self) -> bytes:
        source = heic()
        coded, numbers = box_body(source, b"mdat"), range(2, 2 + self.columns * self.rows)
        grid = struct.pack(
            ">BBBBHH",
            0,
            0,
            self.rows - 1,
            self.columns - 1,
            *(self.claimed or (self.width, self.height)),
        )
        infos = [box(b"infe", struct.pack(">BxxxHH4sx", 2, 1, 0, b"grid"))]
        infos += [box(b"infe", struct.pack(">BxxxHH4sx", 2, n, 0, b"hvc1")) for n in numbers]
        sizes = [
            box(b"ispe", bytes(4), struct.pack(">II", *s))
            for s in ((self.width, self.height), self.tile)
        ]
        configuration = box(b"hvcC", box_body(source, b"hvcC"))
        transforms = self.transforms.count(b"irot") + self.transforms.count(b"imir")
        whole = bytes((1, *range(4, 4 + transforms)))
        links = [struct.pack(">HB", 1, len(whole)) + whole]
        links += [struct.pack(">HBBB", n, 2, 2, 0x83) for n in numbers]
        properties = box(
            b"iprp",
            box(b"ipco", *sizes, configuration, self.transforms),
            box(b"ipma", bytes(4), struct.pack(">I", len(links)), *links),
        )
        targets = struct.pack(f">{len(numbers)}H", *numbers)
        reference = box(b"dimg", struct.pack(">HH", 1, len(numbers)), targets)

        def file(at: int) -> bytes:
            places = [struct.pack(">HHHHII", 1, 1, 0, 1, 0, len(grid))]
            offsets = (at + len(coded) * n for n in range(len(numbers)))
            places += [
                struct.pack(">HHHHII", n, 0, 0, 1, offset, len(coded))
                for n, offset in zip(numbers, offsets, strict=True)
            ]
            meta = box(
                b"meta",
                bytes(4),
                box(b"hdlr", bytes(8), b"pict", bytes(13)),
                box(b"pitm", bytes(4), struct.pack(">H", 1)),
                box(b"iinf", bytes(4), struct.pack(">H", len(infos)), *infos),
                box(b"iloc", b"\1\0\0\0\x44\0", struct.pack(">H", len(places)), *places),
                box(b"iref", bytes(4), reference),
                properties,
                box(b"idat", grid),
            )
            head = box(b"ftyp", b"heic", bytes(4), b"mif1heic") + meta
            return head + box(b"mdat", coded * len(numbers))

        return file(len(file(0)) - len(coded) * len(numbers))


def with_property(data: bytes, extra: bytes) -> bytes:
    """A HEIC of one image with one more property that applies to it."""
    at, size = data.index(b"ipma"), len(extra)
    association = at + 4 + 4 + 4 + 2  # version and flags, entries, item
    count, number = data[association], box_body(data, b"ipco")
    at_number, kinds = 0, 0
    while at_number < len(number):
        at_number += int.from_bytes(number[at_number : at_number + 4], "big")
        kinds += 1
    data = (
        data[:association]
        + bytes((count + 1,))
        + data[association + 1 : association + 1 + count]
        + bytes((kinds + 1,))
        + data[association + 1 + count :]
    )
    end = data.index(b"ipco") - 4
    end += int.from_bytes(data[end : end + 4], "big")
    data = data[:end] + extra + data[end:]
    for kind, more in ((b"ipma", 1), (b"ipco", size), (b"iprp", size + 1), (b"meta", size + 1)):
        place = data.index(kind) - 4
        value = int.from_bytes(data[place : place + 4], "big") + more
        data = data[:place] + struct.pack(">I", value) + data[place + 4 :]
    return moved(data, size + 1)


def moved(data: bytes, by: int) -> bytes:
    """Add to where the only extent of the only coded item begins."""
    mdat = data.index(b"mdat") + 4
    old = struct.pack(">I", mdat - by)
    assert data.count(old) == 1
    return data.replace(old, struct.pack(">I", mdat))


def rotation(turns: int) -> bytes:
    return box(b"irot", bytes((turns,)))


def mirror(axis: int) -> bytes:
    return box(b"imir", bytes((axis,)))


def off(found: Image.Image, truth: np.ndarray) -> int:
    assert found.size == truth.shape[1::-1]
    return int(np.abs(np.asarray(found).astype(int) - truth).max())


def test_heic_comes_back_as_it_was() -> None:
    assert read_header(heic()).displayed_size == (96, 64)
    assert off(open_image(heic()), SCENE) <= 4


def test_heic_with_transparency() -> None:
    kept = np.asarray(open_image(heic("scene-alpha"), keep_alpha=True)).astype(int)
    ramp = np.asarray(Image.linear_gradient("L").resize((96, 64))).astype(int)
    assert np.abs(kept[..., 3] - ramp).max() <= 4
    shown = SCENE * (ramp[..., None] / 255) + 255 - ramp[..., None]
    assert off(open_image(heic("scene-alpha")), np.rint(shown).astype(int)) <= 8


@pytest.mark.parametrize("turns", range(4))
def test_heic_is_turned_by_its_own_rotation(turns: int) -> None:
    for data in (with_property(heic(), rotation(turns)), Grid(transforms=rotation(turns)).encode()):
        tiles = np.tile(SCENE, (2, 2, 1))[:120, :180] if b"grid" in data else SCENE
        truth = np.rot90(tiles, turns)
        assert read_header(data).displayed_size == truth.shape[1::-1]
        assert off(open_image(data), truth) <= 4


@pytest.mark.parametrize(("axis", "truth"), [(0, SCENE[::-1]), (1, SCENE[:, ::-1])])
def test_heic_is_mirrored_by_its_own_mirror(axis: int, truth: np.ndarray) -> None:
    assert off(open_image(with_property(heic(), mirror(axis))), truth) <= 4


@pytest.mark.parametrize("value", range(1, 9))
def test_avif_is_turned_by_its_own_transforms(value: int) -> None:
    data = encoded(scene(), "AVIF", quality=95, exif=with_orientation(value))
    plain = np.asarray(open_image(encoded(scene(), "AVIF", quality=95))).astype(int)
    stored = Image.fromarray(plain.astype(np.uint8))
    truth = {
        1: plain,
        2: plain[:, ::-1],
        3: np.rot90(plain, 2),
        4: plain[::-1],
        5: plain.transpose(1, 0, 2),
        6: np.rot90(plain, -1),
        7: np.rot90(plain, 2).transpose(1, 0, 2),
        8: np.rot90(plain),
    }[value]
    assert stored.size == (96, 64)
    assert read_header(data).displayed_size == truth.shape[1::-1]
    assert off(open_image(data), truth) <= 1


def test_exif_of_avif_turns_nothing_and_fails_nothing() -> None:
    data = encoded(scene(), "AVIF", exif=with_orientation(6))
    at = data.index(b"irot") + 4
    assert open_image(data[:at] + b"\0" + data[at + 1 :]).size == (96, 64)
    broken = data.replace(b"MM\0*", b"xxxx").replace(b"II*\0", b"xxxx")
    assert open_image(broken).size == (64, 96)


@pytest.mark.parametrize(
    "options", [{"subsampling": "4:4:4"}, {"lossless": True}, {"range": "limited"}]
)
def test_avif_comes_back_as_it_was(options: dict[str, object]) -> None:
    options = {"quality": 100} if "lossless" in options else {"quality": 95, **options}
    found = np.asarray(open_image(encoded(scene(), "AVIF", **options))).astype(int)
    assert np.abs(found - SCENE).mean() <= 3


def test_an_avif_sequence_is_its_first_picture() -> None:
    second = scene().transpose(Image.Transpose.ROTATE_180)
    data = encoded(scene(), "AVIF", quality=95, save_all=True, append_images=[second] * 3)
    assert data[8:12] == b"avis"
    assert np.abs(np.asarray(open_image(data)).astype(int) - SCENE).mean() <= 3


def test_a_grid_of_tiles_is_put_together() -> None:
    data = Grid().encode()
    assert read_header(data).displayed_size == (180, 120)
    assert off(open_image(data), np.tile(SCENE, (2, 2, 1))[:120, :180]) <= 4


@pytest.mark.parametrize(
    "grid",
    [
        Grid(width=18, height=12),
        Grid(claimed=(9000, 9000)),
        Grid(columns=200, rows=200),
    ],
)
def test_a_grid_larger_than_it_says_is_broken(grid: Grid) -> None:
    data = grid.encode()
    if grid == Grid(width=18, height=12):
        assert open_image(data).size == (18, 12), "a picture may be cut from one larger tile"
        data = replace(grid, columns=15, rows=255).encode()
    with pytest.raises(ImageError):
        read_header(data)


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_a_codec_s_own_size_is_compared(kind: str) -> None:
    flat = Image.new("RGB", (600, 400), "teal")
    data = encoded(flat, "AVIF") if kind == "AVIF" else heic("flat")
    assert off(open_image(data), np.asarray(flat).astype(int)) <= 4
    at = data.index(b"ispe") + 8
    lie = data[:at] + struct.pack(">II", 96, 64) + data[at + 8 :]
    with pytest.raises(ImageError, match="contradicts itself"):
        read_header(lie)


def test_sizes_in_the_codecs_own_headers() -> None:
    data = encoded(Image.new("RGB", (701, 503)), "AVIF")
    assert list(av1_sizes(box_body(data, b"mdat"))) == [(701, 503)]
    sizes = set(hevc_sizes(box_body(heic(), b"hvcC"), box_body(heic(), b"mdat")))
    assert sizes
    assert all(96 <= w <= 160 and 64 <= h <= 128 for w, h in sizes)
    sizes = set(hevc_sizes(box_body(heic("flat"), b"hvcC"), b""))
    assert sizes == {(600, 400)}
    for cut in (b"", b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff", b"\x0a\x01\x00"):
        try:
            assert list(av1_sizes(cut)) == []
        except CodedSizeError:
            continue


@pytest.mark.parametrize("name", ["scene", "scene-alpha", "grid", "avif"])
def test_cut_files_are_refused_at_every_length(name: str) -> None:
    data = {"grid": Grid().encode(), "avif": encoded(scene(), "AVIF")}.get(name) or heic(name)
    for length in range(12, len(data) - 1, 7):
        with pytest.raises(ImageError):
            open_image(data[:length])


def test_other_codings_in_the_same_boxes_are_not_taken() -> None:
    data = heic().replace(b"infe\x02\0\0\0\0\1\0\0hvc1", b"infe\x02\0\0\0\0\1\0\0j2k1")
    with pytest.raises(UnknownFormatError, match="coding"):
        read_header(data, FORMATS)


@pytest.mark.parametrize("what", ["pieces", "references", "properties"])
def test_endless_tables_are_refused(what: str) -> None:
    infos = [box(b"infe", struct.pack(">BxxxHH4sx", 2, n, 0, b"hvc1")) for n in range(1, 1000)]
    tables = {
        # 60,000 extents of no bytes for each of 999 items
        "pieces": box(
            b"iloc",
            bytes(6),
            struct.pack(">H", 999),
            *(struct.pack(">HHH", n, 0, 60_000) for n in range(1, 1000)),
        ),
        "references": box(
            b"iref",
            bytes(4),
            *(box(b"auxl", struct.pack(">HH1000H", 1, 1000, *[2] * 1000)) for _ in range(20)),
        ),
        "properties": box(
            b"iprp",
            box(b"ipco"),
            box(b"ipma", bytes(4), struct.pack(">I", 900), (b"\0\1\xff" + b"\1" * 255) * 900),
        ),
    }
    meta = box(
        b"meta",
        bytes(4),
        box(b"pitm", bytes(4), b"\0\1"),
        box(b"iinf", bytes(4), struct.pack(">H", len(infos)), *infos),
        tables[what],
    )
    with pytest.raises(ImageError, match=f"too many {what}"):
        read_header(box(b"ftyp", b"heic", bytes(4)) + meta)


def test_too_many_items_are_refused() -> None:
    infos = [
        box(b"infe", struct.pack(">BxxxHH4sx", 2, n, 0, b"hvc1")) for n in range(MAX_ITEMS + 2)
    ]
    table = box(b"iinf", bytes(4), struct.pack(">H", len(infos)), *infos)
    meta = box(b"meta", bytes(4), box(b"pitm", bytes(4), b"\0\1"), table)
    with pytest.raises(ImageError, match="items"):
        read_header(box(b"ftyp", b"heic", bytes(4)) + meta)

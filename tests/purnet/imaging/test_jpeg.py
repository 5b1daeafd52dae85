from __future__ import annotations

import numpy as np
import pytest
from image_files import exif_segment
from photos import encoded, scene, with_orientation
from PIL import Image

from purnet.imaging import ImageError, TooManyScansError, open_image, read_header
from purnet.imaging.jpeg import MAX_SCANS, MAX_SEGMENTS

KINDS: dict[str, dict[str, object]] = {
    "baseline": {},
    "optimized": {"optimize": True},
    "restarts": {"restart_marker_blocks": 3},
    "progressive": {"progressive": True},
    "progressive grey": {"progressive": True},
    "CMYK": {},
    "progressive CMYK": {"progressive": True},
}
TRAILERS = {
    "none": b"",
    "half an end marker": b"\xff",
    "text": b"SEFH" + bytes(range(1, 100)) + b"SEFT",
    "zeros": bytes(5000),
    "a picture": encoded(scene(40, 30), "JPEG"),
    "segments": b"\xff\xe5\x00\x10" + bytes(14) + encoded(scene(40, 30), "JPEG"),
    "an end marker far behind": b"\xff\xe5\x00\x10" + bytes(14) + b"\xff\xd9",
}


def jpeg(kind: str, size: tuple[int, int] = (203, 155)) -> bytes:
    mode = "CMYK" if "CMYK" in kind else "L" if "grey" in kind else "RGB"
    noise = np.random.default_rng(3).normal(0, 20, (size[1], size[0], 3))
    picture = np.clip(np.asarray(scene(*size)) + noise, 0, 255).astype(np.uint8)
    return encoded(Image.fromarray(picture).convert(mode), "JPEG", quality=90, **KINDS[kind])


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(open_image(data))


@pytest.mark.parametrize("trailer", TRAILERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_complete_picture_needs_no_end_marker(kind: str, trailer: str) -> None:
    whole = jpeg(kind)
    assert np.array_equal(pixels(whole[:-2] + TRAILERS[trailer]), pixels(whole))
    assert np.array_equal(pixels(whole + TRAILERS[trailer]), pixels(whole))


@pytest.mark.parametrize("trailer", ["none", "a picture", "segments", "an end marker far behind"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_is_cut_is_cut_short_whatever_follows(kind: str, trailer: str) -> None:
    whole = jpeg(kind)
    for length in (*range(2, len(whole) - 40, 701), len(whole) - 10, len(whole) - 6):
        with pytest.raises(ImageError):
            open_image(whole[:length] + TRAILERS[trailer])


@pytest.mark.parametrize("kind", ["progressive", "progressive grey", "progressive CMYK"])
def test_a_progressive_picture_that_lacks_a_scan_is_cut_short(kind: str) -> None:
    whole = jpeg(kind)
    at, scans = whole.find(b"\xff\xda"), 0
    while (at := whole.find(b"\xff\xda", at + 2)) > 0:
        scans += 1
        with pytest.raises(ImageError, match="cut short"):
            open_image(whole[:at])
        with pytest.raises(ImageError, match="cut short"):
            open_image(whole[:at] + TRAILERS["a picture"])
    assert scans >= 5


def test_each_component_in_a_scan_of_its_own() -> None:
    """The scans of a grey picture, repeated for three components of a frame."""
    grey = encoded(scene().convert("L"), "JPEG", quality=90)
    frame, scan = grey.index(b"\xff\xc0"), grey.index(b"\xff\xda")
    data = grey[scan + 10 : -2]
    components = b"".join(bytes((number, 0x11, 0)) for number in (1, 2, 3))
    header = grey[frame : frame + 9] + b"\x03" + components
    header = header[:2] + (17).to_bytes(2, "big") + header[4:]
    tables = grey[2:frame] + grey[frame + 13 : scan]
    scans = [b"\xff\xda\x00\x08\x01" + bytes((number, 0, 0, 63, 0)) + data for number in (1, 2, 3)]
    whole = b"\xff\xd8" + tables + header + b"".join(scans)
    assert np.array_equal(pixels(whole), pixels(whole + b"\xff\xd9"))
    with pytest.raises(ImageError, match="cut short"):
        open_image(b"\xff\xd8" + tables + header + b"".join(scans[:2]))


def test_orientation_is_that_of_the_first_exif_block() -> None:
    data = encoded(scene(), "JPEG")
    blocks = [with_orientation(value).tobytes().removeprefix(b"Exif\x00\x00") for value in (6, 3)]
    segments = b"".join(map(exif_segment, blocks))
    assert read_header(data[:2] + segments + data[2:]).orientation == 6


def test_xmp_says_nothing_of_the_orientation() -> None:
    xmp = b"http://ns.adobe.com/xap/1.0/\x00<rdf:li tiff:Orientation='6'/>"
    segment = b"\xff\xe1" + (len(xmp) + 2).to_bytes(2, "big") + xmp
    data = encoded(scene(), "JPEG")
    assert read_header(data[:2] + segment + data[2:]).orientation == 1


def test_the_second_picture_of_an_mpo_is_left_alone() -> None:
    second = scene().transpose(Image.Transpose.ROTATE_180)
    exif = with_orientation(8)
    data = encoded(scene(), "MPO", save_all=True, append_images=[second], exif=exif)
    plain = encoded(scene(), "JPEG", exif=exif)
    assert np.array_equal(pixels(data), pixels(plain))
    assert open_image(data).size == (64, 96)


@pytest.mark.parametrize(
    "segment",
    [
        b"\xff\xe1\x00\x08Exif\x00\x00",
        b"\xff\xe1\x00\x10Exif\x00\x00II*\x00\xff\xff\xff\x7f",
        b"\xff\xe2\x00\x12ICC_PROFILE\x00\x00\x00\x00\x00",
        b"\xff\xe2\x00\x0cMPF\x00garbage"[:14],
        b"\xff\xed\x00\x1aPhotoshop 3.0\x008BIM\x04\x04\xff\xff\xff\xff",
        b"\xff\xe0\x00\x07JFIF\x00",
        b"\xff\xee\x00\x07Adobe",
        b"\xff\xfe\x00\x02",
    ],
)
def test_metadata_that_is_damaged_costs_nothing(segment: bytes) -> None:
    data = encoded(scene(), "JPEG")
    assert np.array_equal(pixels(data[:2] + segment + data[2:]), pixels(data))


@pytest.mark.parametrize("colours", ["RGB", "YCbCr"])
def test_the_markers_that_name_the_colours_are_kept(colours: str) -> None:
    data = encoded(scene(), "JPEG", quality=95, subsampling=0, keep_rgb=colours == "RGB")
    apart = np.abs(pixels(data).astype(int) - np.asarray(scene()).astype(int))
    assert apart.mean() <= 3


def test_endless_scans_and_segments_are_refused() -> None:
    data = encoded(scene(), "JPEG", progressive=True)
    scan = data[data.index(b"\xff\xda") : -2]
    with pytest.raises(TooManyScansError) as caught:
        open_image(data[:-2] + scan * MAX_SCANS + data[-2:])
    assert caught.value.limit == MAX_SCANS
    with pytest.raises(ImageError, match="segments"):
        open_image(data[:2] + b"\xff\xfe\x00\x02" * (MAX_SEGMENTS + 1) + data[2:])

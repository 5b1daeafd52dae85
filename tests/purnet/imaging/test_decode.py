from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from image_files import heic, without_adobe_marker
from photos import encoded, opened, scene, unknown_pixel_format, with_orientation
from PIL import Image, ImageCms

from purnet.imaging import (
    IMAGE_SUFFIXES,
    ImageError,
    TooManyPixelsError,
    UnknownFormatError,
    as_displayed,
    decoding,
    displayed_size,
    on_white,
    open_image,
    orientation,
    read_header,
)

SCENE = np.asarray(scene()).astype(int)


def difference(image: Image.Image, truth: np.ndarray = SCENE) -> int:
    assert image.mode == "RGB"
    assert image.size == truth.shape[1::-1]
    return int(np.abs(np.asarray(image).astype(int) - truth).max())


def grey(image: Image.Image) -> np.ndarray:
    return np.repeat(np.asarray(image.convert("L")).astype(int)[..., None], 3, axis=2)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM", "TGA"])
def test_lossless_formats_come_back_as_they_were(kind: str) -> None:
    picture = scene().quantize(64) if kind == "GIF" else scene()
    data = encoded(picture, kind, **({"lossless": True} if kind == "WEBP" else {}))
    truth = np.asarray(picture.convert("RGB")).astype(int)
    assert difference(open_image(data), truth) == 0


def test_photos_of_every_camera_and_phone_are_found_in_folders() -> None:
    assert {".jfif", ".jpe", ".mpo", ".heic", ".heif", ".avif", ".jpg", ".png"} <= IMAGE_SUFFIXES


def test_a_path_gives_what_its_bytes_give(tmp_path: Path) -> None:
    file = tmp_path / "scene.png"
    file.write_bytes(encoded(scene()))
    assert difference(open_image(file)) == 0


def upright(stored: np.ndarray, value: int) -> np.ndarray:
    """EXIF 2.3, tag 0x0112: where row 0 and column 0 of the file lie on the picture."""
    return {
        1: stored,  # top, left
        2: stored[:, ::-1],  # top, right
        3: stored[::-1, ::-1],  # bottom, right
        4: stored[::-1],  # bottom, left
        5: stored.transpose(1, 0, 2),  # left, top
        6: np.rot90(stored, -1),  # right, top
        7: stored[::-1, ::-1].transpose(1, 0, 2),  # right, bottom
        8: np.rot90(stored),  # left, bottom
    }[value]


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_every_orientation_is_upright(kind: str, value: int) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(scene(), kind, exif=with_orientation(value), **options)
    with decoding(data) as image:
        # Pillow turns a TIFF upright itself.
        assert orientation(image) == (1 if kind == "TIFF" else value)
    assert difference(open_image(data), upright(SCENE, value)) <= (90 if kind == "JPEG" else 0)


MODES = {
    "TIFF": ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
}


def photo(mode: str) -> Image.Image:
    """A part of a real photo, 161 x 121, in `mode`; its alpha, if any, grows downward."""
    colour = Image.fromarray(skimage.data.coffee()[100:221, 200:361])
    if mode == "I;16":
        return Image.fromarray(np.asarray(colour.convert("L")).astype(np.uint16) * 257)
    if mode in ("LA", "RGBA"):
        colour.putalpha(Image.linear_gradient("L").resize(colour.size))
    return colour.convert(mode)


@pytest.mark.parametrize("by", ["path", "bytes"])
@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes]
)
def test_a_photo_of_any_mode_is_upright(
    tmp_path: Path, kind: str, mode: str, value: int, by: str
) -> None:
    stored = photo(mode)
    file = tmp_path / "photo"
    file.write_bytes(encoded(stored, kind, exif=with_orientation(value)))
    found = open_image(file if by == "path" else file.read_bytes())
    truth = upright(np.asarray(as_displayed(stored)).astype(int), value)
    assert found.size == truth.shape[1::-1]
    apart = np.abs(np.asarray(found).astype(int) - truth)
    assert (apart.mean() <= 8) if kind == "JPEG" else (apart.max() == 0)


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_the_displayed_size_is_known_before_decoding_and_after(kind: str, value: int) -> None:
    size = (64, 96) if value >= 5 else (96, 64)
    data = encoded(scene(), kind, exif=with_orientation(value))
    assert read_header(data).displayed_size == size
    with decoding(data) as image:
        assert displayed_size(image) == size
        image.load()
        assert displayed_size(image) == size


@pytest.mark.parametrize("value", [0, 9, 255])
def test_an_orientation_out_of_range_is_upright(value: int) -> None:
    assert difference(open_image(encoded(scene(), exif=with_orientation(value)))) == 0


def test_a_broken_exif_block_costs_nothing_but_the_orientation() -> None:
    data = encoded(scene(), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7fgarbage")
    assert difference(open_image(data)) == 0


def test_one_bit_and_grey() -> None:
    for mode in ("1", "L"):
        picture = scene().convert(mode)
        assert difference(open_image(encoded(picture)), grey(picture)) == 0


def test_transparency_of_any_kind_lies_on_white() -> None:
    alpha = Image.linear_gradient("L").resize((96, 64))
    colour, levels = scene(), scene().convert("L")
    weight = np.asarray(alpha).astype(float)[..., None] / 255
    on_white = np.rint(SCENE * weight + 255 * (1 - weight)).astype(int)
    colour.putalpha(alpha)
    assert difference(open_image(encoded(colour)), on_white) <= 1
    grey_on_white = np.rint(grey(levels) * weight + 255 * (1 - weight)).astype(int)
    levels.putalpha(alpha)
    assert levels.mode == "LA"
    assert difference(open_image(encoded(levels)), grey_on_white) <= 1


def test_a_palette_with_transparency_lies_on_white() -> None:
    picture = scene().quantize(8)
    clear = int(np.asarray(picture)[0, 0])
    truth = np.asarray(picture.convert("RGB")).astype(int)
    truth[np.asarray(picture) == clear] = 255
    data = encoded(picture, transparency=clear)
    assert "transparency" in opened(data).info
    assert difference(open_image(data), truth) == 0


@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_one_transparent_colour_is_white(mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.array([[0, 1000], [40000, 65535]], np.uint16))
        data = encoded(picture, transparency=1000)
        assert np.asarray(open_image(data))[..., 0].tolist() == [[0, 255], [156, 255]]
        return
    picture = scene().convert(mode)
    colour = picture.getpixel((0, 0))
    data = encoded(picture, transparency=colour)
    assert open_image(data).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(data).getpixel((95, 0)) == picture.convert("RGB").getpixel((95, 0))


def test_sixteen_bits_are_scaled_not_saturated() -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for kind in ("PNG", "TIFF", "PPM"):
        levels = np.asarray(open_image(encoded(Image.fromarray(ramp), kind)))[..., 0]
        assert np.abs(levels.astype(float) - ramp / 257.0).max() <= 0.5


@pytest.mark.parametrize("top", [1.0, 255.0, 3.0e9])
def test_floats_are_scaled_to_their_range(top: float) -> None:
    samples = np.linspace(0, top, 64, dtype=np.float32).reshape(8, 8)
    samples[0, 0] = np.nan
    levels = np.asarray(open_image(encoded(Image.fromarray(samples), "TIFF")))[..., 0]
    assert np.abs(levels.ravel()[1:] - np.linspace(0, 255, 64)[1:]).max() <= 1
    assert levels[0, 0] == 0


def cmyk_jpeg() -> bytes:
    return encoded(scene().convert("CMYK"), "JPEG", quality=100, subsampling=0)


@pytest.mark.parametrize("marker", [True, False])
def test_cmyk_holds_inverted_inks_with_or_without_adobe_s_marker(marker: bool) -> None:
    data = cmyk_jpeg() if marker else without_adobe_marker(cmyk_jpeg())
    assert difference(open_image(data)) <= 12


def test_cmyk_in_tiff_is_plain() -> None:
    assert difference(open_image(encoded(scene().convert("CMYK"), "TIFF"))) == 0


@pytest.mark.parametrize(
    ("mode", "tolerance"),
    [("YCbCr", 4), ("LAB", 40), ("HSV", 8), ("RGBX", 0), ("PA", 0), ("La", 0), ("RGBa", 0)],
)
def test_every_other_mode_becomes_rgb(mode: str, tolerance: int) -> None:
    picture, truth = scene(), SCENE
    if mode == "PA":
        picture = scene().convert("P")
        truth = np.asarray(picture.convert("RGB")).astype(int)
    elif mode == "La":
        picture, truth = scene().convert("LA"), grey(scene())
    elif mode == "RGBa":
        picture = scene().convert("RGBA")
    if mode == "LAB":
        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(picture, srgb, lab, outputMode="LAB")
        assert converted is not None
    else:
        converted = picture.convert(mode)
    assert converted.mode == mode
    assert difference(as_displayed(converted), truth) <= tolerance


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    second = scene().transpose(Image.Transpose.ROTATE_180)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(scene(), kind, save_all=True, append_images=[second], **options)
    assert difference(open_image(data)) <= (20 if kind == "GIF" else 0)


def test_profiles_are_ignored() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert difference(open_image(encoded(scene(), icc_profile=profile))) == 0


def test_what_is_no_image_raises() -> None:
    with pytest.raises(UnknownFormatError, match=r"cannot identify .* it is text"):
        open_image(b"no image")
    with pytest.raises(ImageError, match=r"^the JPEG image is cut short$"):
        open_image(encoded(scene(), "JPEG")[:-200])


def test_whatever_pillow_raises_on_a_damaged_file_is_an_error_of_the_file() -> None:
    with pytest.raises(ImageError, match=r"^the image is broken$"):
        open_image(unknown_pixel_format())


@pytest.mark.parametrize("kind", ["PNG", "HEIF"])
def test_more_pixels_than_pillow_decodes_are_an_error_of_the_file(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(TooManyPixelsError, match="more pixels than can be decoded safely"):
        open_image(heic() if kind == "HEIF" else encoded(scene()))


def test_a_file_that_cannot_be_read_is_no_error_of_an_image(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_image(tmp_path / "none.png")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "AVIF", "GIF", "TIFF"])
def test_alpha_is_kept_where_it_is_asked_for(kind: str) -> None:
    picture = scene().quantize(64) if kind == "GIF" else scene()
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    if kind == "GIF":
        options = {"transparency": int(np.asarray(picture)[0, 0])}
    else:
        picture.putalpha(Image.linear_gradient("L").resize((96, 64)))
    data = encoded(picture, kind, **options)
    kept = open_image(data, keep_alpha=True)
    assert kept.mode == "RGBA"
    assert difference(on_white(kept), np.asarray(open_image(data)).astype(int)) == 0
    assert kept.getextrema()[3][0] <= 4
    assert open_image(encoded(scene()), keep_alpha=True).mode == "RGB"


def test_loads_no_torch() -> None:
    code = "import sys, purnet.imaging; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

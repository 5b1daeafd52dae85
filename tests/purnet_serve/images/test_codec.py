from __future__ import annotations

import re
import struct
import zlib
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from image_files import apng, heic, png_chunk, png_with
from photos import encoded, opened, scene, with_orientation
from PIL import Image, PngImagePlugin

from purnet.imaging import open_image, resize_mask, to_pixels
from purnet_serve.errors import ImageError, SideTooLongError, TooManyPixelsError
from purnet_serve.images import codec
from purnet_serve.images.codec import Decoded, Options, encode, encoding_bytes
from purnet_serve.images.header import Limits, check_header
from purnet_serve.images.postprocess import Margin, Postprocessing

LIMITS = Limits(40_000_000, 16_384)
SIZE = 32


def decode(data: bytes, size: int, limits: Limits, *, reduced_jpeg: bool = True) -> Decoded:
    """Check and decode, as the service does."""
    return codec.decode(data, size, check_header(data, limits), reduced_jpeg=reduced_jpeg)


def red(data: bytes) -> np.ndarray:
    return decode(data, SIZE, LIMITS).pixels[..., 0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_every_mode_gives_the_mask_of_what_a_person_sees(kind: str, mode: str) -> None:
    deep = np.asarray(scene().convert("L")).astype(np.uint16) * 257
    picture = Image.fromarray(deep) if mode == "I;16" else scene().convert(mode)
    possible = {"PNG": mode != "CMYK", "JPEG": mode in ("L", "RGB", "CMYK", "1")}
    if not possible.get(kind, mode in ("L", "LA", "RGB", "RGBA", "P")):
        return
    data = encoded(picture, kind)
    decoded = decode(data, SIZE, LIMITS)
    assert (decoded.width, decoded.height) == (96, 64)
    assert np.array_equal(decoded.pixels, to_pixels(open_image(data), SIZE))
    shown = np.asarray(scene().convert("RGB" if mode in ("RGB", "RGBA", "P", "CMYK") else "L"))
    shown = shown[..., 0] if shown.ndim == 3 else shown
    truth = to_pixels(Image.fromarray(shown).convert("RGB"), SIZE)[..., 0].astype(int)
    allowed = 90 if mode == "1" else 25
    assert np.abs(decoded.pixels[..., 0].astype(int) - truth).max() <= allowed


@pytest.mark.parametrize("value", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_mask_and_cutout_lie_as_the_photo_is_displayed(kind: str, value: int) -> None:
    data = encoded(scene(), kind, exif=with_orientation(value))
    shown = open_image(data)
    decoded = decode(data, SIZE, LIMITS)
    assert (decoded.width, decoded.height) == shown.size
    off = np.abs(decoded.pixels.astype(int) - to_pixels(shown, SIZE))
    assert off.max() <= 1, "the order of resizing and turning shows in rounding only"
    mask = decoded.pixels[..., 0].copy()
    answer = opened(encode(mask, decoded, None, Options()).body)
    assert np.array_equal(np.asarray(answer), resize_mask(mask, shown.size))
    cut = opened(encode(mask, decoded, data, Options(output="cutout")).body)
    alpha = np.asarray(cut)[..., 3:]
    assert np.array_equal(np.asarray(cut)[..., :3], np.where(alpha > 0, np.asarray(shown), 0))


@pytest.mark.parametrize("size", [(2600, 1950), (2605, 1955)])
def test_a_large_jpeg_is_decoded_at_reduced_scale_unless_that_is_off(size: tuple[int, int]) -> None:
    data = encoded(scene(*size), "JPEG", quality=92)
    small, full = decode(data, 320, LIMITS), to_pixels(open_image(data), 320)
    assert np.array_equal(decode(data, 320, LIMITS, reduced_jpeg=False).pixels, full)
    assert (small.width, small.height) == size
    difference = np.abs(small.pixels.astype(int) - full)
    assert not np.array_equal(small.pixels, full), "it was not decoded at reduced scale"
    assert difference.mean() <= 1
    assert np.quantile(difference, 0.99) <= 4


def test_limits_above_pillow_s_own_still_end_in_our_error() -> None:
    data = png_with(width=9500, height=9500)
    with pytest.raises(TooManyPixelsError):
        decode(data, SIZE, Limits(1_000_000_000, 100_000))


def test_a_file_that_contradicts_itself_is_broken() -> None:
    data = encoded(scene(), "JPEG")
    with pytest.raises(ImageError):
        decode(png_with(width=97), SIZE, LIMITS)
    assert decode(data + encoded(scene(500, 500), "JPEG"), SIZE, LIMITS).width == 96


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_damaged_pixels_are_broken_and_not_a_guess(mode: str) -> None:
    data = bytearray(encoded(scene().convert(mode)))
    data[data.index(b"IDAT") + 40] ^= 1
    with pytest.raises(ImageError):
        decode(bytes(data), SIZE, LIMITS)


def test_a_wide_and_thin_answer_counts_the_rows_of_the_network() -> None:
    thin = Decoded(np.zeros((320, 320, 3), np.uint8), 16_384, 1, "PNG")
    assert encoding_bytes(thin, Options()) >= 60_000_000


def peak_bytes() -> int:
    """The most memory this process had in RAM."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.findall(r"VmHWM:\s+(\d+)", status)[0])


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP", "late zTXt"])
def test_bombs_in_metadata_do_not_go_off(kind: str) -> None:
    bomb = zlib.compress(bytes(100_000_000), 9)
    chunks = {
        "zTXt": png_chunk(b"zTXt", b"k\x00\x00" + bomb),
        "iTXt": png_chunk(b"iTXt", b"k\x00\x01\x00\x00\x00" + bomb),
        "iCCP": png_chunk(b"iCCP", b"k\x00\x00" + bomb),
    }
    if kind == "late zTXt":
        whole = png_with()
        data = whole[:-12] + chunks["zTXt"] + whole[-12:]
    else:
        data = png_with(chunks[kind])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_bytes()
    with suppress(ImageError):  # refusing the photo is as right as ignoring the text
        assert decode(data, SIZE, LIMITS).width == 96
    assert peak_bytes() - before < 50_000_000


@pytest.mark.parametrize("output", ["original", "model"])
def test_a_cutout_keeps_the_transparency_of_its_photo(output: Literal["original", "model"]) -> None:
    photo = scene(SIZE, SIZE)
    own = np.zeros((SIZE, SIZE), np.uint8)
    own[:, 10:20], own[:, 20:] = 70, 255
    photo.putalpha(Image.fromarray(own))
    data, mask = encoded(photo), np.full((SIZE, SIZE), 100, np.uint8)
    mask[25:] = 0
    decoded = decode(data, SIZE, LIMITS)
    cut = np.asarray(opened(encode(mask, decoded, data, Options("cutout", output)).body))
    assert np.array_equal(cut[..., 3], np.minimum(own, mask))
    assert np.array_equal(cut[:25, 10:, :3], np.asarray(photo)[:25, 10:, :3])
    assert not cut[cut[..., 3] == 0].any()


@pytest.mark.parametrize("output", ["mask", "cutout"])
def test_webp_is_encoded_where_it_is_asked_for(output: Literal["mask", "cutout"]) -> None:
    data = encoded(scene())
    decoded = decode(data, SIZE, LIMITS)
    mask = decoded.pixels[..., 0].copy()
    answer = encode(mask, decoded, data, Options(output, format="webp"))
    plain = encode(mask, decoded, data, Options(output))
    assert (answer.media_type, plain.media_type) == ("image/webp", "image/png")
    assert answer.box == plain.box
    found, truth = np.asarray(opened(answer.body)), np.asarray(opened(plain.body))
    if output == "mask":
        assert np.array_equal(found[..., 0], truth)
    else:
        assert np.array_equal(found[..., 3], truth[..., 3])


def test_webp_holds_no_side_of_16384_pixels() -> None:
    decoded = Decoded(np.zeros((SIZE, SIZE, 3), np.uint8), 16_384, 1, "PNG")
    mask = np.zeros((SIZE, SIZE), np.uint8)
    with pytest.raises(SideTooLongError) as caught:
        encode(mask, decoded, None, Options(format="webp"))
    assert (caught.value.limit, caught.value.actual) == (16_383, 16_384)
    assert opened(encode(mask, decoded, None, Options()).body).size == (16_384, 1)
    small = Options(size="model", format="webp")
    assert opened(encode(mask, decoded, None, small).body).size == (SIZE, SIZE)


def test_the_longest_side_is_that_of_the_answer() -> None:
    mask = np.zeros((SIZE, SIZE), np.uint8)
    wide = Decoded(np.zeros((SIZE, SIZE, 3), np.uint8), 16_384, 100, "PNG")
    smaller = Options(format="webp", postprocessing=Postprocessing(max_pixels=250_000))
    size = opened(encode(mask, wide, None, smaller).body).size
    assert 200_000 < size[0] * size[1] <= 250_000
    none = Margin(0, "px")
    strip = Options(
        format="webp",
        postprocessing=Postprocessing(crop=(none, none, none, none), max_pixels=250_000),
    )
    with pytest.raises(SideTooLongError):
        encode(mask, wide, None, strip)
    wider = Decoded(np.zeros((SIZE, SIZE, 3), np.uint8), 66_000, 1, "PNG")
    with pytest.raises(SideTooLongError) as caught:
        encode(mask, wider, None, Options(format="jpeg"))
    assert (caught.value.limit, caught.value.actual) == (65_500, 66_000)


def test_the_first_frame_of_an_animation_need_not_be_the_default_image() -> None:
    data = apng([(scene(), 0, 0)], default=Image.new("RGB", (96, 64), "red"))
    assert np.array_equal(red(data), red(encoded(scene())))


def test_an_animation_of_ten_thousand_frames_is_its_first() -> None:
    frames = []
    body = zlib.compress(b"\x00" + bytes(3))
    for number in range(10_000):
        control = struct.pack(">IIIIIHHBB", 2 * number + 1, 1, 1, 0, 0, 1, 1, 0, 0)
        frames.append(png_chunk(b"fcTL", control))
        frames.append(png_chunk(b"fdAT", struct.pack(">I", 2 * number + 2) + body))
    first = struct.pack(">IIIIIHHBB", 0, 96, 64, 0, 0, 1, 1, 0, 0)
    animation = struct.pack(">II", 10_001, 0)
    whole = png_with(png_chunk(b"acTL", animation), png_chunk(b"fcTL", first))
    data = whole[:-12] + b"".join(frames) + whole[-12:]
    assert np.array_equal(red(data), red(encoded(scene())))


def test_text_after_the_pixels_and_unknown_chunks_are_harmless() -> None:
    extra = PngImagePlugin.PngInfo()
    extra.add_text("Comment", "x" * 100_000)
    out = BytesIO()
    scene().save(out, "PNG", pnginfo=extra)
    assert np.array_equal(red(out.getvalue()), red(encoded(scene())))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "HEIF"])
def test_truncated_is_broken_at_every_length(kind: str) -> None:
    data = heic() if kind == "HEIF" else encoded(scene(), kind)
    for length in range(16, len(data) - 40, 97):
        with pytest.raises(ImageError):
            decode(data[:length], SIZE, LIMITS)


@pytest.mark.parametrize(("threshold", "empty"), [(0, False), (255, False), (None, False)])
def test_thresholds_cut_the_mask_and_never_the_box(threshold: int | None, empty: bool) -> None:
    decoded = decode(encoded(scene()), SIZE, LIMITS)
    mask = decoded.pixels[..., 0].copy()
    answer = encode(mask, decoded, None, Options(threshold=threshold))
    levels = np.asarray(opened(answer.body))
    soft = resize_mask(mask, (96, 64))
    truth = soft if threshold is None else np.where(soft >= threshold, 255, 0)
    assert np.array_equal(levels, truth)
    assert (answer.box is None) == empty
    assert answer.box == encode(mask, decoded, None, Options()).box


def test_a_cutout_without_its_upload_is_a_mistake_of_ours() -> None:
    decoded = decode(encoded(scene()), SIZE, LIMITS)
    with pytest.raises(ValueError, match="needs the upload"):
        encode(decoded.pixels[..., 0].copy(), decoded, None, Options(output="cutout"))


def test_one_pixel() -> None:
    for kind in ("PNG", "JPEG", "WEBP", "AVIF"):
        data = encoded(Image.new("RGB", (1, 1), "red"), kind)
        decoded = decode(data, SIZE, LIMITS)
        answer = encode(decoded.pixels[..., 0].copy(), decoded, data, Options(output="cutout"))
        assert opened(answer.body).size == (1, 1)
        assert answer.box == (0, 0, 1, 1)

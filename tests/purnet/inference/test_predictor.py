from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from photos import scene, with_orientation
from PIL import Image

from purnet.errors import CheckpointError, ImageError, NotFiniteError
from purnet.imaging import UInt8Array, open_image
from purnet.inference.engine import EngineOutput
from purnet.inference.predictor import ImageSource, Predictor

SIZE = 32


class Brightness:
    """An engine whose mask is the red channel; a white image gives no finite output."""

    name = "fake"
    device = "cpu"

    def __init__(self, streams: int = 1) -> None:
        self.streams = streams
        self.batches: list[int] = []

    def __call__(self, pixels: UInt8Array) -> EngineOutput:
        self.batches.append(len(pixels))
        return EngineOutput(masks=pixels[..., 0].copy(), finite=pixels.min(axis=(1, 2, 3)) < 255)


def predictor(reference: int = 0, engine: Brightness | None = None) -> Predictor:
    return Predictor(
        engine or Brightness(),
        variant="fake",
        sha256="0" * 64,
        input_size=SIZE,
        reference=np.full((SIZE, SIZE), reference, np.uint8),
    )


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((SIZE, SIZE, 3), np.uint8),
        np.zeros((1, SIZE, SIZE + 1, 3), np.uint8),
        np.zeros((1, SIZE, SIZE, 4), np.uint8),
        np.zeros((1, SIZE, SIZE, 3), np.float32),
        np.zeros((0, SIZE, SIZE, 3), np.uint8),
    ],
)
def test_pixels_of_another_shape_or_dtype_are_refused(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"pixels must be|at least one"):
        predictor().run(pixels)


def red(level: int, size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new("RGB", size, (level, 0, 0))


@pytest.mark.parametrize("size", [(1, 1), (7, 90), (640, 31), (320, 320)])
def test_a_mask_has_its_images_size(size: tuple[int, int]) -> None:
    mask = predictor().predict(red(90, size))
    assert mask.dtype == np.uint8
    assert mask.shape == size[::-1]
    assert (mask == 90).all()
    mask[0, 0] = 0  # it is the caller's


def test_an_image_may_be_a_path_bytes_a_pillow_image_or_an_array(tmp_path: Path) -> None:
    photo = scene(60, 40)
    path = tmp_path / "photo.png"
    photo.save(path)
    expected = predictor().predict(photo)
    for source in (path, str(path), path.read_bytes(), np.asarray(photo), Image.open(path)):
        assert np.array_equal(predictor().predict(source), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "F"])
def test_a_pillow_image_may_have_any_mode(mode: str) -> None:
    level = 0 if mode == "1" else 80
    grey = Image.new("L", (6, 4), level)
    image = grey.convert("RGB").convert(mode) if mode == "HSV" else grey.convert(mode)
    if mode == "I;16":  # Pillow keeps the number, which is small among 65,536
        image = Image.fromarray(np.full((4, 6), level * 257, np.uint16))
    mask = predictor().predict(image)
    assert np.abs(mask.astype(int) - level).max() <= 1


def test_arrays_may_be_grey_rgb_or_rgba_on_white() -> None:
    grey = np.full((4, 6), 80, np.uint8)
    assert (predictor().predict(grey) == 80).all()
    assert (predictor().predict(np.dstack([grey, grey, grey])) == 80).all()
    clear = np.dstack([grey, grey * 0, grey * 0, grey * 0])
    clear[:2, :, 3] = 255
    mask = predictor().predict(clear[::-1])
    assert (mask[-1].max(), mask[0].min()) == (80, 255)


def test_an_image_is_seen_as_displayed(tmp_path: Path) -> None:
    scene(60, 40).save(tmp_path / "turned.jpg", exif=with_orientation(6))
    mask = predictor().predict(tmp_path / "turned.jpg")
    assert mask.shape == (60, 40)
    assert mask[-1].mean() > mask[0].mean()  # the scene grows red to its right
    with Image.open(tmp_path / "turned.jpg") as image:
        assert np.array_equal(predictor().predict(image), mask)
    assert np.array_equal(predictor().predict(open_image(tmp_path / "turned.jpg")), mask)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (Path("none.png"), r"none\.png cannot be read: No such file"),
        (b"not an image", "the image cannot be read: cannot identify"),
        (np.zeros((4, 6, 2), np.uint8), r"not uint8 \(4, 6, 2\)"),
        (np.zeros((4, 6, 3), np.float32), "not float32"),
        (np.zeros((0, 6), np.uint8), "has no pixels|cannot be read"),
    ],
)
def test_what_is_no_image_is_an_image_error(source: ImageSource, said: str) -> None:
    with pytest.raises(ImageError, match=said):
        predictor().predict(source)


def test_another_type_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        predictor().predict(3)  # type: ignore[arg-type]


def test_many_images_are_predicted_in_order_lazily_and_in_batches() -> None:
    engine = Brightness()
    read: list[int] = []

    def images() -> Iterator[Image.Image]:
        for level in range(7):
            read.append(level)
            yield red(level, (level + 1, 3))

    masks = predictor(engine=engine).predict_many(images(), batch_size=3)
    assert read == []
    assert next(masks).shape == (3, 1)
    assert read == [0, 1, 2]
    assert [(mask.shape, int(mask.max())) for mask in masks] == [
        ((3, level + 1), level) for level in range(1, 7)
    ]
    assert engine.batches == [3, 3, 1]


def test_an_error_comes_after_the_masks_of_the_images_before() -> None:
    masks = predictor().predict_many([red(5), red(6), b"broken", red(7)], batch_size=4)
    assert [int(next(masks).max()) for _ in range(2)] == [5, 6]
    with pytest.raises(ImageError):
        next(masks)


def test_so_does_an_image_of_another_type() -> None:
    masks = predictor().predict_many([red(5), None], batch_size=4)  # type: ignore[list-item]
    assert next(masks).max() == 5
    with pytest.raises(TypeError):
        next(masks)


def test_output_that_is_not_finite_is_an_error_and_run_marks_it() -> None:
    white = Image.new("RGB", (6, 4), "white")
    masks = predictor().predict_many([red(5), white])
    assert next(masks).max() == 5
    with pytest.raises(NotFiniteError):
        next(masks)
    pixels = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    pixels[1] = 255
    assert predictor().run(pixels).finite.tolist() == [True, False, True]


def test_a_batch_holds_at_least_one_image() -> None:
    with pytest.raises(ValueError, match="at least one"):
        next(predictor().predict_many([], batch_size=0))
    assert list(predictor().predict_many([])) == []


def test_self_check_refuses_an_engine_that_disagrees() -> None:
    with pytest.raises(CheckpointError, match="self-check failed: fake on cpu"):
        predictor(reference=0).self_check()


def test_self_check_runs_every_stream() -> None:
    class Faulty(Brightness):
        """Its masks are 0 in a batch, which is what a second stream gives."""

        def __call__(self, pixels: UInt8Array) -> EngineOutput:
            self.batches.append(len(pixels))
            level = 7 if len(pixels) == 1 else 0
            masks = np.full(pixels.shape[:3], level, np.uint8)
            return EngineOutput(masks, np.ones(len(pixels), np.bool_))

    one = Faulty(streams=1)
    predictor(reference=7, engine=one).self_check()
    assert one.batches == [1]
    with pytest.raises(CheckpointError, match="self-check failed"):
        predictor(reference=7, engine=Faulty(streams=3)).self_check()


def test_a_run_is_measured_after_one_that_is_not() -> None:
    engine = Brightness()
    assert predictor(engine=engine).measure(np.zeros((2, SIZE, SIZE, 3), np.uint8)) > 0
    assert engine.batches == [2, 2, 2]


def test_the_predictor_loads_no_torch_by_itself() -> None:
    code = (
        "import sys, purnet.inference.predictor, purnet.imaging, purnet_serve.cli; "
        "print('torch' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert found.stdout.strip() == "False"

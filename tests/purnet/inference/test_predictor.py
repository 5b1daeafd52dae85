from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from purnet.errors import CheckpointError
from purnet.imaging import UInt8Array
from purnet.inference.engine import EngineOutput
from purnet.inference.predictor import Predictor

SIZE = 32


class Brightness:
    """An engine whose mask is the red channel; a white image gives no finite output."""

    name = "fake"
    device = "cpu"

    def __call__(self, pixels: UInt8Array) -> EngineOutput:
        return EngineOutput(masks=pixels[..., 0].copy(), finite=pixels.min(axis=(1, 2, 3)) < 255)


def predictor(reference: int = 0) -> Predictor:
    return Predictor(
        Brightness(),
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


def test_predict_raises_where_run_marks() -> None:
    pixels = np.zeros((3, SIZE, SIZE, 3), np.uint8)
    pixels[1] = 255
    assert predictor().run(pixels).finite.tolist() == [True, False, True]
    with pytest.raises(FloatingPointError, match="image 1"):
        predictor().predict(pixels)


@pytest.mark.parametrize("size", [(1, 1), (7, 90), (640, 31), (320, 320)])
def test_a_mask_has_its_images_size(size: tuple[int, int]) -> None:
    mask = predictor().mask(Image.new("RGB", size, (90, 0, 0)))
    assert mask.mode == "L"
    assert mask.size == size
    assert mask.getextrema() == (90, 90)


def test_self_check_refuses_an_engine_that_disagrees() -> None:
    with pytest.raises(CheckpointError, match="self-check failed: fake on cpu"):
        predictor(reference=0).self_check()


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

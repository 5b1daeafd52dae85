"""An ONNX file is read here as anyone would: by ONNX Runtime, without PurNet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from exported_network import SIZE, Exported
from photos import scene
from PIL import Image
from typer.testing import CliRunner

from purnet.cli.app import app
from purnet.errors import CheckpointError
from purnet.imaging import UInt8Array, open_image, to_pixels
from purnet.inference import export_source, onnx_export
from purnet.inference.factory import load
from purnet.inference.onnx_export import OPSET, export
from purnet.inference.parity import (
    SELF_CHECK_PHOTO,
    MaskDifference,
    mask_difference,
    self_check_pixels,
)
from purnet.inference.torch_engine import reference_output
from purnet.io import sha256_of
from purnet.network.checkpoint import DEFAULT_CHECKPOINT

pytestmark = pytest.mark.needs_torch


@pytest.fixture(scope="module")
def file(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "new" / "purnet.onnx"
    result = CliRunner().invoke(
        app, ["export", str(exported.checkpoint), "--format", "onnx", "-o", str(path)]
    )
    assert result.exit_code == 0, result.output
    assert "of pixels from eager float32" in result.output
    return path


@pytest.fixture(scope="module")
def session(file: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, pixels: UInt8Array) -> tuple[UInt8Array, UInt8Array]:
    masks, finite = session.run(["masks", "finite"], {"pixels": pixels})
    return masks, finite


def test_masks_of_any_batch_are_those_of_eager_float32(
    exported: Exported, session: onnxruntime.InferenceSession
) -> None:
    photo = self_check_pixels(SIZE)[0]
    other = to_pixels(scene(), SIZE)
    for pixels in (photo[None], np.stack([other, photo, photo[::-1]])):
        expected = reference_output(exported.network, np.ascontiguousarray(pixels))
        masks, finite = run(session, np.ascontiguousarray(pixels))
        assert (masks.dtype, finite.tolist()) == (np.uint8, [True] * len(pixels))
        assert mask_difference(masks, expected.masks).passes
        assert np.ptp(masks) > 100, "a flat mask would agree with any other"


def test_the_python_of_the_docs_finds_a_photo_s_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the shipped weights; the mask is that of the library."""
    page = Path(__file__).parents[3] / "docs" / "onnx.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    photo = open_image(SELF_CHECK_PHOTO)
    photo.save(tmp_path / "photo.jpg", quality=95)
    export(DEFAULT_CHECKPOINT, tmp_path / "purnet-lite0-gc.onnx")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, page, "exec"), {})
    found = np.asarray(Image.open(tmp_path / "mask.png"))
    expected = load(DEFAULT_CHECKPOINT, device="cpu").predict(tmp_path / "photo.jpg")
    assert mask_difference(found, expected).mean < 1


def test_the_file_says_what_it_is_and_what_it_takes(
    exported: Exported, session: onnxruntime.InferenceSession, file: Path
) -> None:
    about = session.get_modelmeta().custom_metadata_map
    assert about == {
        "variant": "purnet-lite0",
        "input_size": str(SIZE),
        "sha256": sha256_of(exported.checkpoint),
    }
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape) == (
        "pixels",
        "tensor(uint8)",
        ["N", SIZE, SIZE, 3],
    )
    masks, finite = session.get_outputs()
    assert (masks.name, masks.type, masks.shape) == ("masks", "tensor(uint8)", ["N", SIZE, SIZE])
    assert (finite.name, finite.type, finite.shape) == ("finite", "tensor(bool)", ["N"])
    assert [entry.version for entry in onnx.load(file).opset_import] == [OPSET]


def test_reading_it_needs_neither_torch_nor_purnet(file: Path) -> None:
    script = """
import sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
size = int(session.get_modelmeta().custom_metadata_map["input_size"])
masks, finite = session.run(None, {"pixels": np.zeros((1, size, size, 3), np.uint8)})
assert masks.shape == (1, size, size) and finite.all()
assert not {"torch", "purnet"} & set(sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(file)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "said"),
    [("folder", "ends in .onnx"), ("there.onnx", "exists"), ("file/x.onnx", "cannot be")],
)
def test_where_it_cannot_be_written_is_said(
    exported: Exported, tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "there.onnx").write_bytes(b"mine")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=said):
        export(exported.checkpoint, tmp_path / name)
    assert (tmp_path / "there.onnx").read_bytes() == b"mine"


@pytest.mark.parametrize("failure", ["conversion", "gate"])
def test_a_failed_export_leaves_nothing_behind(
    exported: Exported, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    data = b"no model" if failure == "conversion" else file.read_bytes()
    monkeypatch.setattr(onnx_export, "_convert", lambda _: data)
    monkeypatch.setattr(
        export_source, "mask_difference", lambda *_: MaskDifference(mean=2.0, tail=9.0)
    )
    said = "cannot be converted" if failure == "conversion" else "differs"
    with pytest.raises(CheckpointError, match=said):
        export(exported.checkpoint, tmp_path / "out" / "x.onnx")
    assert list(tmp_path.iterdir()) == []

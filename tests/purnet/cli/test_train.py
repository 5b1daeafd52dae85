"""`purnet train` refuses what it cannot do in one sentence, before any superpixel is computed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from purnet.cli.app import app
from purnet.network import variants
from purnet.network.checkpoint import CheckpointInfo, save

pytestmark = pytest.mark.needs_torch

RECIPE = """
variant = "purnet-lite0"
seed = 1
epoch_samples = 4
held_out_percent = 20
sources = [{ folder = "." }]

[[stages]]
attention = false
iterations = 1
batch_size = 2
image_size = 64
learning_rate = 1e-3
weights = {}
"""


@pytest.fixture
def options(pristine: Path, tmp_path: Path) -> dict[str, Path]:
    """What a run needs, with a file that is no folder and one of no text beside it."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "file").write_bytes(b"\xff\xfe\x80")
    return {
        "--recipe": tmp_path / "recipe.toml",
        "--data": pristine,
        "--out": tmp_path / "run",
        "--cache-dir": tmp_path / "cache",
    }


def refusal(options: dict[str, Path]) -> str:
    arguments = [str(word) for option in options.items() for word in option]
    result = CliRunner().invoke(app, ["train", *arguments])
    assert result.exit_code == 2, result.output
    assert len(result.output.splitlines()) == 1
    cache = options["--cache-dir"]
    assert not cache.is_dir() or not list(cache.iterdir())
    return result.output


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--out", "file", "file cannot be made a folder: File exists"),
        ("--out", "file/run", "file/run cannot be made a folder: Not a directory"),
        ("--recipe", "", "cannot be read: Is a directory"),
        ("--recipe", "file", "file is not TOML"),
    ],
)
def test_a_path_of_the_wrong_kind_is_named(
    option: str, value: str, message: str, options: dict[str, Path], tmp_path: Path
) -> None:
    assert message in refusal({**options, option: tmp_path / value})


@pytest.mark.parametrize(
    ("place", "message"),
    [("file", "file cannot be made a folder"), ("data/cache", "lies in the data folder")],
)
def test_where_superpixels_cannot_be_kept_is_named_if_they_are_needed(
    options: dict[str, Path], tmp_path: Path, place: str, message: str
) -> None:
    recipe = RECIPE.replace("weights = {}", "weights = { structure = 1.0 }")
    (tmp_path / "recipe.toml").write_text(recipe)
    (tmp_path / "data").symlink_to(options["--data"])
    assert message in refusal({**options, "--cache-dir": tmp_path / place})


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A checkpoint of another variant."""
    path, variant = tmp_path / "other.safetensors", "timm/test_resnet"
    weights = variants.build(variant, attention=False).state_dict()
    info = CheckpointInfo(variant=variant, input_size=320, attention=False)
    save(weights, path, info, half=False)
    return path


def test_a_checkpoint_of_another_variant_is_refused(options: dict[str, Path], other: Path) -> None:
    assert "is of timm/test_resnet, but" in refusal({**options, "--init": other})


def test_a_cache_that_no_stage_needs_is_neither_checked_nor_made(
    options: dict[str, Path], other: Path
) -> None:
    unused = {"--cache-dir": options["--data"] / "cache", "--init": other}
    assert "is of timm/test_resnet, but" in refusal(options | unused)
    assert not unused["--cache-dir"].exists()


def test_initial_weights_and_a_backbones_exclude_each_other(
    options: dict[str, Path], tmp_path: Path
) -> None:
    both = {"--init": tmp_path / "file", "--backbone-weights": tmp_path / "file"}
    assert "leave --backbone-weights out" in refusal({**options, **both})


def test_empty_masks_are_named_and_a_finished_run_does_not_pass_for_one_from_other_weights(
    options: dict[str, Path], folder: Path
) -> None:
    Image.new("L", (88, 72)).save(folder / "mask" / "3.png")
    arguments = [str(word) for option in (options | {"--data": folder}).items() for word in option]
    first = CliRunner().invoke(app, ["train", *arguments])
    assert first.exit_code == 0
    assert f"nothing is salient in {folder / 'mask' / '3.png'}" in "".join(first.output.split("\n"))
    init = options["--out"] / "stage1.safetensors"
    result = CliRunner().invoke(app, ["train", *arguments, "--init", str(init)])
    assert result.exit_code == 2
    assert "belongs to a run from other initial weights" in result.output


def test_training_needs_torch_torchvision_numpy_and_pillow_alone(options: dict[str, Path]) -> None:
    """Beside what the package needs by itself; so it runs where little is installed."""
    absent = ("cv2", "matplotlib", "openvino", "py_sod_metrics", "scipy", "skimage", "timm")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"
        "from purnet.cli.app import app; app()"
    )
    arguments = [str(word) for option in options.items() for word in option]
    subprocess.run([sys.executable, "-c", code, "train", *arguments], check=True)
    assert (options["--out"] / "stage1.safetensors").exists()
    assert not (options["--out"] / "curves.png").exists()


def test_all_sources_that_are_not_there_are_named_and_nothing_is_made(
    options: dict[str, Path], tmp_path: Path
) -> None:
    sources = '[{ folder = "." }, { folder = "people" }, { folder = "scenes" }]'
    recipe = RECIPE.replace('[{ folder = "." }]', sources)
    options["--recipe"].write_text(recipe)
    message = refusal(options)
    assert all(str(options["--data"] / name) in message for name in ("people", "scenes"))
    assert not options["--out"].exists()

"""What the wheel holds."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(require: Any, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Paths in the wheel, built from a copy: setuptools leaves folders beside the source."""
    require(find_spec("setuptools"), "setuptools builds the wheel")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("model", "service"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = ("pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run([sys.executable, "-m", *command, "-w", out, source], check=True, timeout=300)
    (wheel,) = out.glob("*.whl")
    with ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_only_our_two_packages_lie_at_the_top(names: set[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"purnet", "purnet_serve"}


def test_all_that_runs_is_in_it(names: set[str]) -> None:
    source = {
        path.relative_to(folder).as_posix()
        for folder in (ROOT / "model", ROOT / "service")
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path)
    }
    assert source - names == set()
    weights = {"purnet-lite0-gc.safetensors", "self_check.png", "README.md"}
    export = {"export.json", "model.xml", "model.bin", "reference.png"}
    assert names >= {
        "purnet/py.typed",
        "purnet_serve/py.typed",
        "purnet/training/recipes/lite0.toml",
        "purnet_serve/page/index.html",
        "purnet_serve/page/app.js",
        *(f"purnet/weights/{name}" for name in weights),
        *(f"purnet/weights/purnet-lite0-gc-openvino/{name}" for name in export),
    }


def test_pictures_of_training_are_not(names: set[str]) -> None:
    pictures = {name for name in names if name.endswith((".png", ".webp", ".jpg"))}
    assert pictures == {
        "purnet_serve/page/sample.jpg",
        "purnet_serve/page/sample-cutout.webp",
        "purnet/weights/self_check.png",
        "purnet/weights/purnet-lite0-gc-openvino/reference.png",
    }

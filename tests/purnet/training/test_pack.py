"""Training data in pieces, and training in stretches by what is packed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from purnet.errors import DatasetError, WriteError
from purnet.network import checkpoint
from purnet.training.pack import main, pack
from purnet.training.recipe import Recipe, load_recipe
from purnet.training.sources import load_data
from purnet.training.unpack import unpack

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "gpu_training.sh"
RECIPE = """
variant = "purnet-lite0"
seed = 1
epoch_samples = 4
held_out_percent = 20
sources = [{ folder = "discs" }]
superpixels = { count = 12 }

[[stages]]
attention = false
iterations = 2
average_from = 1
batch_size = 2
image_size = 64
learning_rate = 1e-3
weights = { structure = 1.0 }
"""


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A data root whose only set holds a photo that is larger than what is packed."""
    shutil.copytree(pristine, tmp_path / "root" / "discs")
    for part, mode in (("image", "RGB"), ("mask", "L")):
        path = tmp_path / "root" / "discs" / part / "0.png"
        with Image.open(path) as image:
            image.convert(mode).resize((640, 480)).save(path)
    return tmp_path / "root"


@pytest.fixture
def settings(tmp_path: Path) -> Recipe:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return load_recipe(tmp_path / "recipe.toml")


def test_names_split_and_pictures_stay(root: Path, settings: Recipe, tmp_path: Path) -> None:
    pieces = pack(settings, root, tmp_path / "out", piece_bytes=70_000).pieces
    assert len(pieces) > 1
    assert sorted((tmp_path / "out").iterdir()) == pieces
    for piece in pieces:
        assert piece.stat().st_size <= 70_000
    unpack(tmp_path / "out", tmp_path / "unpacked")

    cache = tmp_path / "unpacked" / "superpixels"
    kept = set(cache.iterdir())
    before = load_data(settings, root, tmp_path / "cache")
    after = load_data(settings, tmp_path / "unpacked" / "data", cache)
    assert [pair.stem for pair in after.train] == [pair.stem for pair in before.train]
    assert [pair.stem for pair in after.validation] == [pair.stem for pair in before.validation]
    assert set(after.regions or []) == kept
    for old, new in zip(before.train, after.train, strict=True):
        with Image.open(new.image) as photo, Image.open(new.mask) as mask:
            assert max(photo.size) <= 320
            assert mask.size == photo.size
            for packed, path in ((photo, old.image), (mask, old.mask)):
                with Image.open(path) as original:
                    small = original.convert(packed.mode).resize(packed.size, 3)
                difference = np.asarray(small, float) - np.asarray(packed, float)
                assert np.abs(difference).mean() < 20


def test_the_same_data_gives_the_same_bytes(root: Path, settings: Recipe, tmp_path: Path) -> None:
    (one,), (other,) = (pack(settings, root, tmp_path / name).pieces for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_what_is_not_packed_is_named_and_pieces_of_an_earlier_pack_go(
    root: Path,
    settings: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, broken = tmp_path / "out", root / "discs" / "image" / "3.png"
    out.mkdir()
    for name in ("pack-00.tar", "pack-07.tar", "notes.tar"):
        (out / name).write_bytes(b"old")
    broken.write_bytes(b"no photo")
    options = ("--data", root, "--out", out, "--recipe", tmp_path / "recipe.toml")
    monkeypatch.setattr(sys, "argv", ["pack", *map(str, options)])

    main()

    assert {path.name for path in out.iterdir()} == {"pack-00.tar", "notes.tar"}
    printed = capsys.readouterr()
    assert f"skipped {broken}: cannot be read" in printed.err
    assert "pack-00.tar" in printed.out


def test_a_piece_that_cannot_be_written_is_not_there(
    root: Path, settings: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(tarfile.TarFile, "addfile", fail)
    with pytest.raises(WriteError, match="out cannot be written: disk full"):
        pack(settings, root, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_photo_lies_in_the_piece_of_its_mask(
    root: Path, settings: Recipe, tmp_path: Path
) -> None:
    pieces = pack(settings, root, tmp_path / "out", piece_bytes=70_000).pieces
    where: dict[str, set[Path]] = {}
    for piece in pieces:
        with tarfile.open(piece) as tar:
            for name in tar.getnames():
                where.setdefault(Path(name).stem, set()).add(piece)
    assert len(pieces) > 1
    assert [stem for stem, found in where.items() if len(found) > 1] == []


def test_larger_photos_and_worse_ones_may_be_packed(
    root: Path, settings: Recipe, tmp_path: Path
) -> None:
    for side, quality in ((320, 90), (500, 90), (500, 10)):
        pack(settings, root, tmp_path / f"{side}-{quality}", side=side, quality=quality)
    unpack(tmp_path / "500-90", tmp_path / "unpacked")
    with Image.open(tmp_path / "unpacked" / "data" / "discs" / "image" / "0.webp") as photo:
        assert max(photo.size) == 500
    sizes = {
        path.name: sum(piece.stat().st_size for piece in path.glob("pack-*"))
        for path in tmp_path.iterdir()
    }
    assert sizes["320-90"] < sizes["500-90"] > sizes["500-10"]


def test_without_superpixels_pictures_are_stored_plainly_and_masks_in_sixteen_levels(
    root: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("structure", "saliency"))
    pack(load_recipe(tmp_path / "recipe.toml"), root, tmp_path / "out")
    unpack(tmp_path / "out", tmp_path / "unpacked")
    pictures = list((tmp_path / "unpacked" / "data").rglob("*.*"))
    assert {path.suffix for path in pictures} == {".bmp"}
    levels = set()
    for path in pictures:
        if path.parent.name == "mask":
            with Image.open(path) as mask:
                assert mask.mode == "L"
                levels |= set(np.unique(np.asarray(mask)).tolist())
    assert {0, 255} <= levels <= set(range(0, 256, 17))


def test_pieces_that_are_missing_or_broken_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(DatasetError, match=r"none holds no pack-\*\.tar"):
        unpack(tmp_path / "none", tmp_path / "out")
    (tmp_path / "none" / "pack-00.tar").write_bytes(b"no archive" * 100)
    with pytest.raises(DatasetError, match=r"pack-00\.tar is broken"):
        unpack(tmp_path / "none", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["none"]


def test_a_broken_picture_and_a_folder_that_is_there_are_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("structure", "saliency"))
    (piece,) = pack(load_recipe(tmp_path / "recipe.toml"), root, tmp_path / "out").pieces
    broken = tmp_path / "data" / "discs" / "image" / "bad.webp"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no photo")
    with tarfile.open(piece, "a") as tar:
        tar.add(broken, "data/discs/image/bad.webp")
    with pytest.raises(DatasetError, match=r"bad\.webp cannot be read"):
        unpack(tmp_path / "out", tmp_path / "unpacked")
    with pytest.raises(WriteError, match="out is there already"):
        unpack(tmp_path / "out", tmp_path / "out")


@pytest.mark.slow
def test_training_in_stretches_on_lent_machines_equals_training_at_once(
    root: Path, settings: Recipe, tmp_path: Path
) -> None:
    pieces = pack(settings, root, tmp_path / "pack").pieces

    def stretch(name: str, *carried: Path, minutes: str) -> Path:
        """One stretch on a machine that holds nothing but what is carried there."""
        work, out = tmp_path / name, tmp_path / f"{name}-out"
        work.mkdir()
        for path in (*pieces, *carried):
            shutil.copy(path, work)
        subprocess.run(
            [SCRIPT, "stretch", work, out, "--recipe", tmp_path / "recipe.toml"],
            env={**os.environ, "PYTHON": sys.executable, "MINUTES": minutes},
            check=True,
            capture_output=True,
        )
        assert all(path.stat().st_size <= 15 * 2**20 for path in out.iterdir())
        return out

    first = stretch("first", minutes="0")
    second = stretch("second", *first.iterdir(), minutes="9")
    whole = stretch("whole", minutes="9")

    weights = []
    for out in (second, whole):
        subprocess.run([SCRIPT, "join", out, out / "run"], check=True)
        weights.append(checkpoint.read(out / "run" / "resume.pt")[1])
        checkpoint.load(out / "run" / "stage1-best.safetensors")
        checkpoint.load(out / "run" / "stage1-mean.safetensors")
    assert len(list(second.glob("resume.pt.part-*"))) > 1
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())

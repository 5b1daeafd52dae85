from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from folders import lock
from photos import encoded, scene, unknown_pixel_format
from PIL import Image, features
from typer.testing import CliRunner

from purnet.cli.app import app
from purnet.cli.predict import Report, plan, predicted, write_all
from purnet.errors import ModelError
from purnet.imaging import UInt8Array, open_image
from purnet.inference import factory
from purnet.inference.engine import EngineOutput
from purnet.inference.predictor import Predictor

SIZE = 32


class LeftHalf:
    """An engine that finds the left half of everything salient, and blanks not finite."""

    name = "fake"
    device = "cpu"

    def __call__(self, pixels: UInt8Array) -> EngineOutput:
        masks = np.zeros(pixels.shape[:3], np.uint8)
        masks[:, :, : SIZE // 2] = 255
        return EngineOutput(masks=masks, finite=pixels.any(axis=(1, 2, 3)))


@pytest.fixture
def predictor() -> Predictor:
    reference = np.zeros((SIZE, SIZE), np.uint8)
    return Predictor(
        LeftHalf(), variant="fake", sha256="0" * 64, input_size=SIZE, reference=reference
    )


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    grey = Image.linear_gradient("L").resize((60, 40))
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F"):
        name = mode.replace(";", "_")
        suffix = "tif" if mode in {"CMYK", "YCbCr", "I;16", "F", "PA"} else "png"
        if mode == "PA":
            grey.convert("RGBA").save(folder / f"{name}.png")
        elif mode == "I;16":
            wide = np.asarray(grey).astype(np.uint16) * 257
            Image.fromarray(wide).save(folder / f"{name}.{suffix}")
        else:
            grey.convert("RGB").convert(mode if mode != "F" else "L").convert(mode).save(
                folder / f"{name}.{suffix}"
            )
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.convert("RGB").save(folder / "turned.jpg", exif=exif)
    return folder


def predict_all(
    predictor: Predictor, targets: dict[Path, Path], *, with_cutout: bool, report: Report
) -> list[Path]:
    answers = predicted(predictor, [*targets], with_cutout=with_cutout)
    return write_all(answers, targets, report)


def ignore(_source: Path, _error: Exception | None) -> None:
    """A report nobody reads."""


def test_every_photo_of_a_folder_gets_a_mask_of_its_displayed_size(
    photos: Path, predictor: Predictor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    targets = plan([photos], out).targets
    assert predict_all(predictor, targets, with_cutout=False, report=ignore) == []
    assert len(targets) == 12
    for source, target in targets.items():
        assert target == out / f"{source.stem}.png"
        with Image.open(target) as mask:
            assert mask.mode == "L"
            assert mask.size == ((40, 60) if source.stem == "turned" else (60, 40))
            values = np.asarray(mask)
        assert values[:, 0].min() == 255
        assert values[:, -1].max() == 0


def test_a_cutout_keeps_the_transparency_of_its_photo(predictor: Predictor, tmp_path: Path) -> None:
    photo = scene()
    photo.putalpha(Image.linear_gradient("L").resize(photo.size))
    (tmp_path / "cup.png").write_bytes(encoded(photo))
    targets = {tmp_path / "cup.png": tmp_path / "cutout.png"}
    assert predict_all(predictor, targets, with_cutout=True, report=ignore) == []
    cut, own = np.asarray(Image.open(tmp_path / "cutout.png")), np.asarray(photo)
    assert np.array_equal(cut[:, :40, 3], own[:, :40, 3])
    assert np.array_equal(cut[5:, :40, :3], own[5:, :40, :3])
    assert not cut[:, 60:].any(), "nothing of the background is left"


def test_a_cutout_is_the_photo_with_the_mask_as_its_alpha(
    photos: Path, predictor: Predictor, tmp_path: Path
) -> None:
    targets = plan([photos / "RGB.png"], tmp_path).targets
    predict_all(predictor, targets, with_cutout=True, report=ignore)
    with Image.open(tmp_path / "RGB.png") as found:
        assert found.mode == "RGBA"
        alpha = np.asarray(found)[..., 3]
    assert alpha[:, 0].min() == 255
    assert alpha[:, -1].max() == 0


def test_a_broken_photo_is_named_and_the_rest_is_done(
    photos: Path, predictor: Predictor, tmp_path: Path
) -> None:
    (photos / "broken.jpg").write_bytes((photos / "turned.jpg").read_bytes()[:200])
    (photos / "text.png").write_text("not a photo")
    Image.new("RGB", (9, 9)).save(photos / "not_finite.png")
    (photos / "odd.bmp").write_bytes(unknown_pixel_format())
    (photos / "loop.jpg").symlink_to(photos / "loop.jpg")
    (photos / "nowhere.jpg").symlink_to(photos / "gone.jpg")
    heard: dict[str, bool] = {}
    failed = predict_all(
        predictor,
        plan([photos], tmp_path / "out").targets,
        with_cutout=False,
        report=lambda source, error: heard.update({source.name: error is None}),
    )
    names = {
        *("broken.jpg", "text.png", "not_finite.png"),
        *("odd.bmp", "loop.jpg", "nowhere.jpg"),
    }
    assert {path.name for path in failed} == names
    assert {name for name, fine in heard.items() if not fine} == names
    assert len(heard) == 18
    assert len(list((tmp_path / "out").iterdir())) == 12


@pytest.mark.skipif(not features.check("avif"), reason="Pillow here reads no AVIF")
def test_a_damaged_avif_is_named(predictor: Predictor, tmp_path: Path) -> None:
    photo = tmp_path / "x.avif"
    photo.write_bytes(encoded(scene(), "AVIF").replace(b"pitm", b"xxxx"))
    targets = plan([photo], tmp_path / "out").targets
    assert predict_all(predictor, targets, with_cutout=False, report=ignore) == [photo]


def test_a_photo_in_a_folder_that_cannot_be_read_is_named_and_the_rest_is_done(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, good = tmp_path / "locked" / "x.png", tmp_path / "y.png"
    hidden.parent.mkdir()
    for file in (hidden, good):
        scene().save(file)
    lock(hidden.parent, monkeypatch)
    targets = plan([hidden, good], tmp_path / "out").targets
    assert predict_all(predictor, targets, with_cutout=False, report=ignore) == [hidden]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["y.png"]


def test_what_is_there_is_an_error_unless_it_is_to_be_skipped_or_replaced(
    photos: Path, predictor: Predictor, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert not predict_all(predictor, plan([photos], out).targets, with_cutout=False, report=ignore)
    (out / "L.png").write_bytes(b"old")
    with pytest.raises(ModelError, match=r"1\.png is there already: give --resume to skip"):
        plan([photos], out)
    resumed = plan([photos], out, resume=True)
    assert (resumed.targets, resumed.done) == ({}, 12)
    (out / "RGB.png").unlink()
    assert [*plan([photos], out, resume=True).targets] == [photos / "RGB.png"]
    targets = plan([photos], out, overwrite=True).targets
    assert not predict_all(predictor, targets, with_cutout=False, report=ignore)
    assert len(list(out.iterdir())) == 12
    assert open_image(out / "L.png").size == (60, 40)


def test_subfolders_are_mirrored(predictor: Predictor, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("x.jpg", "a/x.jpg", "a/b/y.HEIC", "masks/old.png", ".hidden/z.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).touch()
    (photos / "loop").symlink_to(photos)
    out = photos / "masks"
    work = plan([photos], out, recursive=True)
    relative = {s.relative_to(photos): t.relative_to(out) for s, t in work.targets.items()}
    assert {str(source): str(target) for source, target in relative.items()} == {
        "x.jpg": "x.png",
        "a/x.jpg": "a/x.png",
        "a/b/y.HEIC": "a/b/y.png",
    }
    assert {path.name: reason for path, reason in work.not_taken} == {
        ".hidden": "it is hidden",
        "loop": "it is a link to a folder",
        "masks": "it is the folder of the masks",
    }


def test_what_of_a_folder_is_not_taken_is_named(
    photos: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory, "load", lambda *_args, **_options: predictor)
    (photos / "more").mkdir()
    (photos / "notes.txt").touch()
    run = CliRunner().invoke(app, ["predict", str(photos), "-o", str(tmp_path / "out")])
    assert run.exit_code == 0
    assert f"not taken: {photos / 'more'}: it is a folder; --recursive" in run.stderr
    assert f"not taken: {photos / 'notes.txt'}: its name is not that of a photo" in run.stderr
    for number in range(12):
        (photos / f"{number}.txt").touch()
    run = CliRunner().invoke(app, ["predict", str(photos), "-o", str(tmp_path / "other")])
    assert "not taken: 4 more" in run.stderr


def test_one_photo_may_have_a_file_for_its_mask(photos: Path, tmp_path: Path) -> None:
    photo, target = photos / "turned.jpg", tmp_path / "new" / "mask.png"
    assert plan([photo], target).targets == {photo: target}
    (tmp_path / "folder.png").mkdir()
    assert plan([photo], tmp_path / "folder.png").targets == {
        photo: tmp_path / "folder.png" / "turned.png"
    }
    for inputs in ([photo, photos / "L.png"], [photos]):
        with pytest.raises(ModelError, match="is one file, for one photo"):
            plan(inputs, target)
    with pytest.raises(ModelError, match="masks are written as PNG"):
        plan([photo], tmp_path / "mask.jpg")


def test_standard_input_and_output(
    photos: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factory, "load", lambda *_args, **_options: predictor)
    photo = (photos / "turned.jpg").read_bytes()
    run = CliRunner().invoke(app, ["predict", "-"], input=photo)
    assert run.exit_code == 0, run.stderr
    assert open_image(run.stdout_bytes).size == (40, 60)
    target = tmp_path / "mask.png"
    assert CliRunner().invoke(app, ["predict", "-", "-o", str(target)], input=photo).exit_code == 0
    assert target.read_bytes() == run.stdout_bytes
    named = CliRunner().invoke(app, ["predict", str(photos / "turned.jpg"), "-o", "-"])
    assert named.stdout_bytes == run.stdout_bytes
    broken = CliRunner().invoke(app, ["predict", "-"], input=b"nothing")
    assert (broken.exit_code, broken.stdout_bytes) == (1, b"")
    assert "standard input: cannot identify" in broken.stderr


def test_nothing_is_loaded_where_nothing_is_left_to_do(
    photos: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["predict", str(photos / "turned.jpg"), "-o", str(tmp_path / "out"), "--resume"]
    monkeypatch.setattr(factory, "load", lambda *_args, **_options: predictor)
    assert CliRunner().invoke(app, arguments).exit_code == 0
    monkeypatch.setattr(factory, "load", pytest.fail)
    run = CliRunner().invoke(app, arguments)
    assert run.exit_code == 0, run.output
    assert "0 of 0 written" in run.stderr


@pytest.mark.parametrize(
    "arguments", [("x.jpg",), ("-", "x.jpg"), ("x.jpg", "-o", "out", "--resume", "--overwrite")]
)
def test_a_command_line_that_makes_no_sense_is_refused(arguments: tuple[str, ...]) -> None:
    run = CliRunner().invoke(app, ["predict", *arguments])
    assert run.exit_code == 2
    assert "Usage" in run.stderr


def test_names_may_be_as_long_as_the_file_system_allows(
    predictor: Predictor, tmp_path: Path
) -> None:
    photo = tmp_path / f"{'x' * 251}.jpg"
    scene().save(photo)
    targets = plan([photo], tmp_path / "out").targets
    assert predict_all(predictor, targets, with_cutout=False, report=ignore) == []


def test_a_full_disk_leaves_the_mask_that_was_there_and_no_part(
    photos: Path, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "RGB.png").write_bytes(b"old")

    def write(file: Path, data: bytes) -> None:
        file.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write)
    targets = plan([photos / "RGB.png"], tmp_path, overwrite=True).targets
    assert predict_all(predictor, targets, with_cutout=False, report=ignore) == [*targets]
    assert (tmp_path / "RGB.png").read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "RGB.png"}


@pytest.mark.parametrize(("broken", "status"), [(False, 0), (True, 1)])
def test_the_exit_status_tells_whether_all_went_well(
    photos: Path,
    predictor: Predictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: bool,
    status: int,
) -> None:
    monkeypatch.setattr(factory, "load", lambda *_args, **_options: predictor)
    if broken:
        (photos / "text.png").write_text("not a photo")
    result = CliRunner().invoke(app, ["predict", str(photos), "-o", str(tmp_path / "out")])
    assert result.exit_code == status
    assert ("text.png" in result.output) == broken
    assert f"12 of {12 + broken} written" in result.output


def test_an_input_that_cannot_be_used_exits_with_2(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.jpg")
    result = CliRunner().invoke(app, ["predict", missing, "-o", str(tmp_path)])
    assert result.exit_code == 2
    assert "missing.jpg" in result.output


def test_declaring_the_command_imports_nothing_heavy() -> None:
    code = "import sys, purnet.cli.predict; sys.exit(bool({'torch', 'PIL'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""What `purnet predict` will do, told before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from folders import lock

from purnet.cli.predict import plan
from purnet.errors import ModelError


def test_a_folder_that_cannot_be_read_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.png").touch()
    lock(tmp_path, monkeypatch)
    with pytest.raises(ModelError, match="cannot be read: Permission denied"):
        plan([tmp_path], tmp_path / "out")


def test_a_photo_that_cannot_be_looked_at_is_reported_with_the_others(tmp_path: Path) -> None:
    hidden = tmp_path / ("x" * 300 + ".png")
    assert list(plan([hidden], tmp_path / "mask.png").targets) == [hidden]


def test_what_is_no_regular_file_is_no_photo_of_a_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "x.png").touch()
    assert [path.name for path in plan([tmp_path], tmp_path / "out").targets] == ["x.png"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["missing.jpg"], "there is no file or folder"),
        (["empty"], "there are no photos"),
        (["a/x.jpg", "b/x.png"], r"would both be written to .*x\.png"),
    ],
)
def test_what_cannot_be_planned_is_told_before_any_work(
    tmp_path: Path, inputs: list[str], message: str
) -> None:
    for folder in ("a", "b", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "a" / "x.jpg").touch()
    (tmp_path / "b" / "x.png").touch()
    with pytest.raises(ModelError, match=message):
        plan([tmp_path / name for name in inputs], tmp_path / "out")


def test_a_photo_is_never_overwritten_by_its_mask(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    with pytest.raises(ModelError, match="overwritten"):
        plan([tmp_path / "x.png"], tmp_path)


@pytest.mark.parametrize("out", [".", "photos/..", "linked"])
def test_nothing_beside_the_photos_is_overwritten(tmp_path: Path, out: str) -> None:
    for name in ("photos/x.jpg", "cat.jpg", "cat.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path)
    with pytest.raises(ModelError, match=r"cat\.png is there already, beside the photos"):
        plan([tmp_path / "cat.jpg", tmp_path / "photos"], tmp_path / out)
    (tmp_path / "cat.png").unlink()
    assert len(plan([tmp_path / "cat.jpg", tmp_path / "photos"], tmp_path / out).targets) == 2


def test_a_photo_is_not_overwritten_through_a_link(tmp_path: Path) -> None:
    photos = [tmp_path / "x.jpg", tmp_path / "y.jpg"]
    for photo in photos:
        photo.touch()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x.png").symlink_to(tmp_path / "y.jpg")
    with pytest.raises(ModelError, match=r"x\.png would be overwritten by the mask of .*x\.jpg"):
        plan(photos, tmp_path / "out")


def test_a_photo_named_twice_is_done_once(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").touch()
    assert len(plan([tmp_path / "x.jpg", tmp_path], tmp_path / "out").targets) == 1


def test_hidden_files_of_a_folder_are_no_photos(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").touch()
    (tmp_path / "._x.jpg").touch()
    assert [path.name for path in plan([tmp_path], tmp_path / "out").targets] == ["x.jpg"]

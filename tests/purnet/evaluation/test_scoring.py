from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
from folders import lock
from PIL import Image

from purnet.data.pairs import read_truth
from purnet.errors import DatasetError, EvaluationError, NotFiniteError
from purnet.evaluation import scoring
from purnet.evaluation.scoring import dataset_to_predict, map_of, resize_to, saved_maps, score


class Levels:
    """A predictor of random masks, the same for every instance; one of them is not finite."""

    def __init__(self, seed: int, *, fails: int | None = None) -> None:
        self.random = np.random.default_rng(seed)
        self.fails, self.calls = fails, 0

    def predict(self, image: Image.Image) -> np.ndarray:
        self.calls += 1
        mask = self.random.integers(0, 256, image.size[::-1], dtype=np.uint8)
        if self.calls - 1 == self.fails:
            raise NotFiniteError("not finite")
        return mask


def test_saved_maps_are_scored_against_masks_of_the_same_stem(disk):
    images = saved_maps(disk.predictions, disk.truth, resize=False)
    result = score(images, None)
    assert result.name == "mask"
    assert result.complete
    assert [image.stem for image in result.scored] == ["good", "middling", "poor"]
    # Squares of 12 x 12 in 40 x 30 that miss by 0, 6 and 16 pixels.
    assert [image.mae for image in result.scored] == pytest.approx([0, 144 / 1200, 288 / 1200])
    assert result.metrics["mae"] == pytest.approx((0 + 144 + 288) / 1200 / 3)
    assert result.metrics["purnet_precision"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert result.metrics["purnet_f"] == pytest.approx(0.5)


def test_a_whole_data_set_may_stand_for_its_masks(disk):
    images = saved_maps(disk.predictions, disk.dataset, resize=False)
    assert images.name == "squares"
    assert [case.photo for case in images.cases] == [
        disk.dataset / "image" / f"{stem}.jpg" for stem in ("good", "middling", "poor")
    ]


def test_a_picture_beside_the_folders_of_a_data_set_does_not_hide_them(disk):
    Image.new("RGB", (40, 30)).save(disk.dataset / "preview.jpg")
    images = saved_maps(disk.predictions, disk.dataset, resize=False)
    assert [case.stem for case in images.cases] == ["good", "middling", "poor"]
    assert images.left_out == []


def test_photos_are_found_beside_a_folder_of_masks(disk):
    images = saved_maps(disk.predictions, disk.truth, resize=False)
    assert images.cases[0].photo == disk.dataset / "image" / "good.jpg"


def test_masks_alone_will_do(disk, tmp_path):
    alone = disk.truth.rename(tmp_path / "alone")
    images = saved_maps(disk.predictions, alone, resize=False)
    assert [case.photo for case in images.cases] == [None, None, None]


def test_a_missing_prediction_is_named_and_the_rest_scored(disk):
    (disk.predictions / "middling.png").unlink()
    images = saved_maps(disk.predictions, disk.truth, resize=False)
    result = score(images, None)
    assert result.missing == ["middling"]
    assert result.images == 2
    assert not result.complete


def test_a_prediction_without_truth_is_named(disk):
    stray = disk.predictions / "stray.png"
    Image.new("L", (40, 30)).save(stray)
    images = saved_maps(disk.predictions, disk.truth, resize=False)
    assert images.left_out == [(stray, "has no truth")]


@pytest.mark.parametrize("kept", [10, -40], ids=["broken header", "truncated"])
def test_a_broken_prediction_is_named_and_the_rest_scored(disk, kept):
    broken = disk.predictions / "poor.png"
    broken.write_bytes(broken.read_bytes()[:kept])
    images = saved_maps(disk.predictions, disk.truth, resize=False)
    result = score(images, None)
    assert result.images == 2
    [left_out] = result.left_out
    assert left_out.file == str(broken)
    assert left_out.reason.startswith("cannot be read: ")


def test_another_size_is_an_error_before_anything_is_scored(disk):
    Image.new("L", (20, 15)).save(disk.predictions / "poor.png")
    with pytest.raises(EvaluationError, match=r"--resize.*poor.png is 20x15, its truth 40x30"):
        saved_maps(disk.predictions, disk.truth, resize=False)


def test_many_other_sizes_are_counted(disk):
    for number in range(7):
        Image.new("L", (20, 15)).save(disk.predictions / f"{number}.png")
        Image.new("L", (40, 30)).save(disk.truth / f"{number}.png")
    with pytest.raises(EvaluationError, match=r"4.png is 20x15, its truth 40x30; and 2 more"):
        saved_maps(disk.predictions, disk.truth, resize=False)


def test_resize_fits_the_map_to_its_truth(disk):
    path = disk.predictions / "good.png"
    Image.open(path).resize((80, 60), Image.Resampling.NEAREST).save(path)
    images = saved_maps(disk.predictions, disk.truth, resize=True)
    truth = read_truth(images.cases[0].truth)
    assert resize_to(map_of(images.cases[0], None), truth).shape == (30, 40)
    assert score(images, None).scored[0].mae == 0


def test_folders_without_one_stem_in_common_are_an_error(disk, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="has the name of"):
        saved_maps(tmp_path / "empty", disk.truth, resize=False)


def test_truths_that_cannot_be_read_are_why_nothing_is_scored(disk):
    for path in disk.truth.iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(EvaluationError, match=r"can be read: good\.png cannot be read"):
        saved_maps(disk.predictions, disk.truth, resize=False)


def test_a_missing_folder_is_an_error(disk, tmp_path):
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        saved_maps(tmp_path / "nowhere", disk.truth, resize=False)


@pytest.mark.parametrize("which", ["predictions", "truth"])
def test_a_folder_that_cannot_be_read_is_an_error_that_says_so(disk, monkeypatch, which):
    lock(getattr(disk, which), monkeypatch)
    with pytest.raises(DatasetError, match="cannot be read: Permission denied"):
        saved_maps(disk.predictions, disk.truth, resize=False)


def test_truths_that_are_empty_are_counted(disk):
    Image.new("L", (40, 30), 128).save(disk.truth / "poor.png")
    images = saved_maps(disk.predictions, disk.truth, resize=False)
    result = score(images, None)
    assert result.empty_truths == ["poor"]
    assert result.title == "mask: 3 images"


def test_a_set_whose_truths_are_all_empty_is_remarked_on(disk):
    for mask in disk.truth.iterdir():
        Image.new("L", (40, 30), 38).save(mask)
    images = saved_maps(disk.predictions, disk.truth, resize=False)
    assert score(images, None).title == "mask: 3 images, and nothing is salient in any truth"


def test_nothing_that_can_be_scored_is_an_error(disk):
    images = dataset_to_predict(str(disk.dataset), None)
    for case in images.cases:
        case.truth.write_bytes(b"broken")
    with pytest.raises(EvaluationError, match="could be scored: cannot be read"):
        score(images, Levels(0))


def test_a_data_set_folder_is_found_as_given_or_below_the_root(disk):
    given = dataset_to_predict(str(disk.dataset), None)
    below = dataset_to_predict(disk.dataset.name, disk.dataset.parent)
    assert given == below
    assert given.name == "squares"


def test_a_folder_called_like_a_set_of_the_paper_is_that_set(disk, tmp_path):
    folder = disk.dataset.rename(tmp_path / "ECSSD")
    images = dataset_to_predict(str(folder), None)
    assert images.name == "ECSSD"
    result = score(images, Levels(0))
    assert result.published["ResNet-50"] == {"mae": 0.035, "weighted_f": 0.907, "purnet_f": 0.928}


def test_a_data_set_that_is_not_there_is_an_error(disk):
    with pytest.raises(DatasetError, match="XPIE is not a folder"):
        dataset_to_predict("XPIE", disk.dataset)


def test_a_set_without_published_numbers_has_none(disk):
    images = saved_maps(disk.predictions, disk.truth, resize=False)
    assert score(images, None).published == {}


def test_scores_do_not_depend_on_the_number_of_processes(disk, monkeypatch):
    images = dataset_to_predict(str(disk.dataset), None)
    alone = score(images, Levels(3, fails=1))
    assert [out.reason for out in alone.left_out] == ["has no map: not finite"]
    monkeypatch.setattr(scoring, "_IMAGES_A_PROCESS", 1)
    calls = []
    advance = partial(calls.append, 1)
    assert score(images, Levels(3, fails=1), processes=2, progress=advance) == alone
    assert len(calls) == 3
    (disk.truth / "good.png").write_bytes(b"broken")
    assert score(images, Levels(3), processes=2) == score(images, Levels(3))


def test_a_process_that_is_killed_is_one_sentence(disk, monkeypatch):
    monkeypatch.setattr(scoring, "_IMAGES_A_PROCESS", 1)
    images = saved_maps(disk.predictions, disk.truth, resize=False)
    monkeypatch.setattr(scoring, "_submit", lambda pool, *_: pool.submit(os._exit, 9))
    with pytest.raises(EvaluationError, match="ended from outside"):
        score(images, None, processes=1)

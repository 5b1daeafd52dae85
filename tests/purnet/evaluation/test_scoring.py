from __future__ import annotations

import os

import numpy as np
import pytest
from folders import lock
from PIL import Image

from purnet.data.pairs import UnreadableError, read_truth
from purnet.errors import DatasetError, EvaluationError
from purnet.evaluation import scoring
from purnet.evaluation.scoring import dataset_cases, fitted, folder_cases, score


def test_saved_maps_are_scored_against_masks_of_the_same_stem(disk):
    work, map_of = folder_cases(disk.predictions, disk.truth, resize=False)
    result = score(work, map_of)
    assert result.name == "mask"
    assert result.complete
    assert [image.stem for image in result.scored] == ["good", "middling", "poor"]
    # Squares of 12 x 12 in 40 x 30 that miss by 0, 6 and 16 pixels.
    assert [image.mae for image in result.scored] == pytest.approx([0, 144 / 1200, 288 / 1200])
    assert result.metrics["mae"] == pytest.approx((0 + 144 + 288) / 1200 / 3)
    assert result.metrics["purnet_precision"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert result.metrics["purnet_f"] == pytest.approx(0.5)


def test_a_whole_data_set_may_stand_for_its_masks(disk):
    work, _ = folder_cases(disk.predictions, disk.dataset, resize=False)
    assert work.name == "squares"
    assert [case.photo for case in work.cases] == [
        disk.dataset / "image" / f"{stem}.jpg" for stem in ("good", "middling", "poor")
    ]


def test_a_picture_beside_the_folders_of_a_data_set_does_not_hide_them(disk):
    Image.new("RGB", (40, 30)).save(disk.dataset / "preview.jpg")
    work, _ = folder_cases(disk.predictions, disk.dataset, resize=False)
    assert [case.stem for case in work.cases] == ["good", "middling", "poor"]
    assert work.left_out == []


def test_photos_are_found_beside_a_folder_of_masks(disk):
    work, _ = folder_cases(disk.predictions, disk.truth, resize=False)
    assert work.cases[0].photo == disk.dataset / "image" / "good.jpg"


def test_masks_alone_will_do(disk, tmp_path):
    alone = disk.truth.rename(tmp_path / "alone")
    work, _ = folder_cases(disk.predictions, alone, resize=False)
    assert [case.photo for case in work.cases] == [None, None, None]


def test_a_missing_prediction_is_named_and_the_rest_scored(disk):
    (disk.predictions / "middling.png").unlink()
    work, map_of = folder_cases(disk.predictions, disk.truth, resize=False)
    result = score(work, map_of)
    assert result.missing == ["middling"]
    assert result.images == 2
    assert not result.complete


def test_a_prediction_without_truth_is_named(disk):
    stray = disk.predictions / "stray.png"
    Image.new("L", (40, 30)).save(stray)
    work, _ = folder_cases(disk.predictions, disk.truth, resize=False)
    assert work.left_out == [(stray, "has no truth")]


@pytest.mark.parametrize("kept", [10, -40], ids=["broken header", "truncated"])
def test_a_broken_prediction_is_named_and_the_rest_scored(disk, kept):
    broken = disk.predictions / "poor.png"
    broken.write_bytes(broken.read_bytes()[:kept])
    work, map_of = folder_cases(disk.predictions, disk.truth, resize=False)
    result = score(work, map_of)
    assert result.images == 2
    [left_out] = result.left_out
    assert left_out.file == str(broken)
    assert left_out.reason.startswith("cannot be read: ")


def test_another_size_is_an_error_before_anything_is_scored(disk):
    Image.new("L", (20, 15)).save(disk.predictions / "poor.png")
    with pytest.raises(EvaluationError, match=r"--resize.*poor.png is 20x15, its truth 40x30"):
        folder_cases(disk.predictions, disk.truth, resize=False)


def test_many_other_sizes_are_counted(disk):
    for number in range(7):
        Image.new("L", (20, 15)).save(disk.predictions / f"{number}.png")
        Image.new("L", (40, 30)).save(disk.truth / f"{number}.png")
    with pytest.raises(EvaluationError, match=r"4.png is 20x15, its truth 40x30; and 2 more"):
        folder_cases(disk.predictions, disk.truth, resize=False)


def test_resize_fits_the_map_to_its_truth(disk):
    path = disk.predictions / "good.png"
    Image.open(path).resize((80, 60), Image.Resampling.NEAREST).save(path)
    work, map_of = folder_cases(disk.predictions, disk.truth, resize=True)
    truth = read_truth(work.cases[0].truth)
    assert fitted(map_of(work.cases[0]), truth).shape == (30, 40)
    assert score(work, map_of).scored[0].mae == 0


def test_folders_without_one_stem_in_common_are_an_error(disk, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="can be held against"):
        folder_cases(tmp_path / "empty", disk.truth, resize=False)


def test_a_missing_folder_is_an_error(disk, tmp_path):
    with pytest.raises(DatasetError, match="nowhere is not a folder"):
        folder_cases(tmp_path / "nowhere", disk.truth, resize=False)


@pytest.mark.parametrize("which", ["predictions", "truth"])
def test_a_folder_that_cannot_be_read_is_an_error_that_says_so(disk, monkeypatch, which):
    lock(getattr(disk, which), monkeypatch)
    with pytest.raises(DatasetError, match="cannot be read: Permission denied"):
        folder_cases(disk.predictions, disk.truth, resize=False)


def test_truths_that_are_empty_are_counted(disk):
    Image.new("L", (40, 30), 128).save(disk.truth / "poor.png")
    work, map_of = folder_cases(disk.predictions, disk.truth, resize=False)
    result = score(work, map_of)
    assert result.empty_truths == 1
    assert result.title == "mask: 3 images"


def test_a_set_whose_truths_are_all_empty_is_remarked_on(disk):
    for mask in disk.truth.iterdir():
        Image.new("L", (40, 30), 38).save(mask)
    work, map_of = folder_cases(disk.predictions, disk.truth, resize=False)
    assert score(work, map_of).title == "mask: 3 images, and nothing is salient in any truth"


def test_nothing_that_can_be_scored_is_an_error(disk):
    work = dataset_cases(str(disk.dataset), None)
    for case in work.cases:
        case.truth.write_bytes(b"broken")
    with pytest.raises(EvaluationError, match="could be scored: cannot be read"):
        score(work, lambda case: np.zeros((30, 40), np.uint8))


def test_a_data_set_folder_is_found_as_given_or_below_the_root(disk):
    given = dataset_cases(str(disk.dataset), None)
    below = dataset_cases(disk.dataset.name, disk.dataset.parent)
    assert given == below
    assert given.name == "squares"


def test_a_folder_called_like_a_set_of_the_paper_is_that_set(disk, tmp_path):
    folder = disk.dataset.rename(tmp_path / "ECSSD")
    work = dataset_cases(str(folder), None)
    assert work.name == "ECSSD"
    result = score(work, lambda case: np.asarray(Image.open(case.truth)))
    assert result.published["ResNet-50"] == {"mae": 0.035, "weighted_f": 0.907, "purnet_f": 0.928}


def test_a_data_set_that_is_not_there_is_an_error(disk):
    with pytest.raises(DatasetError, match="XPIE is not a folder"):
        dataset_cases("XPIE", disk.dataset)


def test_a_set_without_published_numbers_has_none(disk):
    work, map_of = folder_cases(disk.predictions, disk.truth, resize=False)
    assert score(work, map_of).published == {}


def test_scores_do_not_depend_on_the_number_of_processes(disk, monkeypatch):
    work = dataset_cases(str(disk.dataset), None)
    saliency = read_truth(disk.predictions / "middling.png")

    def map_of(case):
        if case.stem == "poor":
            raise UnreadableError(case.photo, "has no map")
        return saliency

    alone = score(work, map_of)
    assert [out.reason for out in alone.left_out] == ["has no map"]
    monkeypatch.setattr(scoring, "_IMAGES_A_PROCESS", 1)
    calls = []
    assert score(work, map_of, processes=2, progress=lambda: calls.append(1)) == alone
    assert len(calls) == 3
    (disk.truth / "good.png").write_bytes(b"broken")
    assert score(work, map_of, processes=2) == score(work, map_of)


def test_a_process_that_is_killed_is_one_sentence(disk, monkeypatch):
    monkeypatch.setattr(scoring, "_IMAGES_A_PROCESS", 1)
    work = dataset_cases(str(disk.dataset), None)
    monkeypatch.setattr(scoring, "_submit", lambda pool, case, map_of: pool.submit(os._exit, 9))
    with pytest.raises(EvaluationError, match="ended from outside"):
        score(work, lambda case: case.truth, processes=1)

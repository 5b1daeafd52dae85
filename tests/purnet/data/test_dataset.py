from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from purnet.data.augment import Augmentation
from purnet.data.dataset import SaliencyDataset, Sample, SampleKey, epoch_order
from purnet.data.pairs import is_held_out
from purnet.data.superpixels import IGNORE, Superpixels, load_regions
from purnet.errors import DatasetError, WriteError
from purnet.training.recipe import LossWeights, Recipe, Source
from purnet.training.sources import TrainingData, load_data

EVERYTHING = Augmentation(
    min_crop=0.5,
    flip=0.5,
    rotate_deg=10,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    hue=0.05,
    grey=0.2,
)


def test_a_sample_has_its_documented_shapes_and_ranges(
    samples: Callable[..., Sequence[Sample]],
) -> None:
    sample = samples(EVERYTHING)[0]
    assert sample.image.shape == (3, 64, 64)
    assert sample.image.dtype == torch.uint8
    assert sample.mask.shape == (1, 64, 64)
    assert sample.mask.dtype == torch.uint8
    assert sample.regions.shape == (1, 64, 64)
    assert sample.regions.dtype == torch.int64


@pytest.mark.parametrize("index", [0, 2])
@pytest.mark.parametrize(
    "augmentation",
    [
        EVERYTHING,
        Augmentation(copy_paste=1.0, brightness=0.3, hue=0.1),
    ],
    ids=["everything", "copy_paste"],
)
def test_augmentation_follows_from_seed_epoch_and_position_alone(
    samples: Callable[..., Sequence[Sample]], augmentation: Augmentation, index: int
) -> None:
    first, again = samples(augmentation)[index], samples(augmentation)[index]
    torch.manual_seed(99)
    after_other_draws = samples(augmentation)[index]
    for other in (again, after_other_draws):
        assert torch.equal(first.image, other.image)
        assert torch.equal(first.mask, other.mask)
        assert torch.equal(first.regions, other.regions)
    assert not torch.equal(first.image, samples(augmentation, epoch=1)[index].image)


def test_a_pair_that_comes_again_in_an_epoch_is_varied_anew(data: TrainingData) -> None:
    dataset = SaliencyDataset(data.train, data.regions, augmentation=EVERYTHING, seed=1)
    first, again = (dataset[SampleKey(0, position, 2, 64)] for position in (2, 9))
    assert first.pair == again.pair == 2
    assert not torch.equal(first.image, again.image)
    assert not torch.equal(first.mask, again.mask)


def test_loading_a_sample_leaves_the_global_generator_alone(
    samples: Callable[..., Sequence[Sample]],
) -> None:
    before = torch.get_rng_state()
    samples(EVERYTHING)[0]
    assert torch.equal(before, torch.get_rng_state())


def test_photo_mask_and_regions_move_together(
    samples: Callable[..., Sequence[Sample]], data: TrainingData, tmp_path: Path
) -> None:
    # The photo's disc is bright where the mask is set, and a region of its own here; geometry must
    # keep it so.
    discs = []
    for pair in data.train:
        disc = np.asarray(Image.open(pair.mask)) > 127
        discs.append(tmp_path / f"{pair.stem}.png")
        Image.fromarray(disc.astype(np.uint16)).save(discs[-1])
    augmentation = Augmentation(min_crop=0.5, flip=0.5, rotate_deg=10)
    moved = samples(augmentation, regions=discs)
    compared = 0
    for index in range(len(data.train)):
        sample = moved[index]
        bright = sample.image[0] > 160
        inside = sample.mask[0] > 127
        region = sample.regions[0] == 1
        if inside.sum() < 30:
            continue
        compared += 1
        for other in (bright, region):
            assert (other & inside).sum() / (other | inside).sum() > 0.8
    assert compared >= 4


@pytest.mark.parametrize("setting", ["brightness", "contrast", "saturation", "hue"])
def test_colours_change_by_each_setting_and_nothing_else_does(
    setting: str, samples: Callable[..., Sequence[Sample]]
) -> None:
    plain = samples(Augmentation())[0]
    changed = samples(Augmentation(**{setting: 0.5}))[0]
    assert not torch.equal(changed.image, plain.image)
    assert torch.equal(changed.mask, plain.mask)
    assert torch.equal(changed.regions, plain.regions)


def test_grey_photos_come_as_often_as_asked(
    samples: Callable[..., Sequence[Sample]], data: TrainingData
) -> None:
    def is_grey(augmentation: Augmentation, index: int) -> bool:
        image = samples(augmentation)[index].image
        return torch.equal(image[0], image[1]) and torch.equal(image[1], image[2])

    everyone = range(len(data.train))
    assert not any(is_grey(Augmentation(), index) for index in everyone)
    assert all(is_grey(Augmentation(grey=1), index) for index in everyone)
    assert 0 < sum(is_grey(Augmentation(grey=0.5), index) for index in everyone) < len(everyone)


def test_rotation_fills_regions_with_the_ignore_label_and_the_mask_with_nothing(
    samples: Callable[..., Sequence[Sample]],
) -> None:
    sample = samples(Augmentation(rotate_deg=30))[1]
    filled = sample.regions == IGNORE
    assert filled.any()
    assert not sample.mask[filled].any()
    assert (sample.regions[~filled] < 100).all()


def test_without_augmentation_a_sample_is_the_resized_pair(
    samples: Callable[..., Sequence[Sample]], data: TrainingData
) -> None:
    sample = samples(Augmentation())[0]
    mask = Image.open(data.train[0].mask).resize((64, 64), Image.Resampling.BILINEAR)
    difference = np.abs(np.asarray(mask, dtype=int) - sample.mask[0].numpy().astype(int))
    assert difference.max() <= 1


def test_an_epoch_takes_its_shares_and_repeats_nothing_early() -> None:
    order = epoch_order([10, 4], [3, 1], samples=40, seed=0, epoch=0)
    first, second = [i for i in order if i < 10], [i for i in order if i >= 10]
    assert len(first) == 30
    assert len(second) == 10
    assert all(first.count(index) == 3 for index in range(10))
    assert all(2 <= second.count(index) <= 3 for index in range(10, 14))
    assert order == epoch_order([10, 4], [3, 1], samples=40, seed=0, epoch=0)
    assert order != epoch_order([10, 4], [3, 1], samples=40, seed=0, epoch=1)


def test_an_epoch_has_just_as_many_samples_as_asked() -> None:
    for samples in range(1, 40):
        order = epoch_order([5, 5, 5], [1, 1, 1], samples=samples, seed=0, epoch=0)
        assert len(order) == samples


def test_the_validation_split_is_decided_by_name() -> None:
    held = [is_held_out(str(number), percent=5) for number in range(4000)]
    assert 0.03 < sum(held) / len(held) < 0.07
    assert held == [is_held_out(str(number), percent=5) for number in range(4000)]


def test_loading_splits_and_writes_only_into_the_cache(
    folder: Path, recipe: Recipe, tmp_path: Path
) -> None:
    before = sorted(folder.rglob("*"))
    data = load_data(recipe, folder, tmp_path / "cache")
    assert len(data.train) + len(data.validation) == 10
    assert {p.stem for p in data.train}.isdisjoint(p.stem for p in data.validation)
    assert sorted(folder.rglob("*")) == before
    assert len(list((tmp_path / "cache").iterdir())) == len(data.train)


def test_superpixels_are_computed_only_where_a_stage_compares_regions(
    folder: Path, recipe: Recipe, tmp_path: Path
) -> None:
    stage = recipe.stages[0].model_copy(update={"weights": LossWeights(iou=1)})
    data = load_data(recipe.model_copy(update={"stages": [stage]}), folder, tmp_path / "cache")
    assert data.regions is None
    assert not (tmp_path / "cache").exists()


def test_a_data_set_without_superpixels_gives_no_regions_and_the_same_photos(
    data: TrainingData,
) -> None:
    augmentation = EVERYTHING.model_copy(update={"copy_paste": 0.5})
    with_regions, without = (
        SaliencyDataset(data.train, regions, augmentation=augmentation, seed=1)
        for regions in (data.regions, None)
    )
    for index in range(4):
        one, other = (
            dataset[SampleKey(0, index, index, 64)] for dataset in (with_regions, without)
        )
        assert other.regions.shape == (0, 64, 64)
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.mask, other.mask)


def test_samples_have_the_size_that_is_asked_for(data: TrainingData) -> None:
    dataset = SaliencyDataset(data.train, data.regions, augmentation=EVERYTHING, seed=1)
    for size in (32, 96):
        assert dataset[SampleKey(0, 0, 0, size)].image.shape == (3, size, size)


def test_superpixels_are_computed_once(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    settings = Superpixels(count=12)
    images = sorted((folder / "image").iterdir())
    first = list(settings.compute_all(images, cache, processes=1))
    stamps = [path.stat().st_mtime_ns for path in first]
    assert list(settings.compute_all(images, cache, processes=1)) == first
    assert [path.stat().st_mtime_ns for path in first] == stamps
    other = list(Superpixels(count=20).compute_all(images, cache, processes=1))
    assert set(other).isdisjoint(first)


def test_superpixels_that_cannot_be_kept_name_their_place(folder: Path, tmp_path: Path) -> None:
    photo = folder / "image" / "1.png"
    with pytest.raises(WriteError, match=r"gone/\w+\.png cannot be written: No such file"):
        Superpixels(count=12).compute(photo, tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file cannot be made a folder: File exists"):
        list(Superpixels(count=12).compute_all([photo], tmp_path / "file", processes=1))


def test_superpixels_divide_a_photo_into_about_as_many_regions_as_asked() -> None:
    regions = Superpixels(count=200, max_side=256).regions(Image.fromarray(skimage.data.coffee()))
    assert regions.dtype == np.uint16
    assert max(regions.shape) == 256
    labels = np.unique(regions)
    assert labels.tolist() == list(range(len(labels)))
    assert 130 <= len(labels) <= 260


def test_superpixels_are_the_same_with_many_processes(folder: Path, tmp_path: Path) -> None:
    images = sorted((folder / "image").iterdir())[:4]
    settings = Superpixels(count=12)
    alone = list(settings.compute_all(images, tmp_path / "a", processes=1))
    together = list(settings.compute_all(images, tmp_path / "b", processes=2))
    for a, b in zip(alone, together, strict=True):
        assert a.name == b.name
        assert np.array_equal(load_regions(a), load_regions(b))


def test_a_process_that_was_ended_from_outside_is_told(tmp_path, monkeypatch):
    def broken(*_args, **_options):
        raise BrokenProcessPool

    monkeypatch.setattr(ProcessPoolExecutor, "map", broken)
    with pytest.raises(DatasetError, match="memory may be short"):
        list(Superpixels().compute_all([], tmp_path / "cache", processes=2))


def test_a_broken_pair_is_named_and_skipped(folder: Path, recipe: Recipe, tmp_path: Path) -> None:
    (folder / "image" / "3.png").write_bytes(b"not an image")
    data = load_data(recipe, folder, tmp_path / "cache")
    assert [path.name for path, _ in data.skipped] == ["3.png"]
    assert "3" not in {pair.stem for pair in (*data.train, *data.validation)}


def damaged_avif(photo: Image.Image, path: Path) -> None:
    """Whole in its boxes, broken in its pixels."""
    photo.save(path, format="AVIF")
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start:] = bytes(255 - byte for byte in content[start:])
    path.write_bytes(content)


def odd_dds(_photo: Image.Image, path: Path) -> None:
    """A header whose pixel format nobody knows."""
    header = struct.pack("<7I44x", 124, 0x1007, 8, 8, 0, 0, 0)
    path.write_bytes(b"DDS " + header + struct.pack("<2I4s5I20x", 32, 4, b"ODD!", 0, 0, 0, 0, 0))


@pytest.mark.parametrize("damage", [damaged_avif, odd_dds])
def test_a_photo_its_decoder_chokes_on_is_named_and_skipped(
    damage: Callable[[Image.Image, Path], None], folder: Path, recipe: Recipe, tmp_path: Path
) -> None:
    path = folder / "image" / "3.png"
    with Image.open(path) as photo:
        damage(photo, path)
    data = load_data(recipe, folder, tmp_path / "cache")
    assert [path.name for path, _ in data.skipped] == ["3.png"]
    assert "3" not in {pair.stem for pair in (*data.train, *data.validation)}


def test_a_folder_without_pairs_says_which_layouts_are_known(
    recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    elsewhere = recipe.model_copy(update={"sources": [Source(folder="empty")]})
    with pytest.raises(DatasetError, match="image/ \\+ mask/"):
        load_data(elsewhere, tmp_path, tmp_path / "cache")


def test_a_split_that_leaves_nothing_to_validate_is_an_error(
    folder: Path, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="held_out_percent"):
        load_data(recipe.model_copy(update={"held_out_percent": 0}), folder, tmp_path / "cache")

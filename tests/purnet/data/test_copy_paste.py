"""Copy-paste lays an object where the mask says, where nothing else is salient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from purnet.data.augment import Augmentation
from purnet.data.copy_paste import (
    LENGTH,
    MAX_SALIENT,
    Layers,
    compose,
    cut_object,
    find_background,
)
from purnet.data.dataset import Sample
from purnet.training.sources import TrainingData

RED, GREEN = (250, 0, 0), (0, 200, 0)
OBJECT_REGION = 3


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


def photo_of(box: tuple[int, int, int, int] | None, *, size: tuple[int, int] = (100, 80)) -> Layers:
    """A red object in a box on green, its pixels one region and the background another."""
    layers = Layers(Image.new("RGB", size, GREEN), Image.new("L", size), Image.new("I", size))
    if box is not None:
        corners = (box[0], box[1], box[2] - 1, box[3] - 1)
        for layer, value in zip(layers, (RED, 255, OBJECT_REGION), strict=True):
            ImageDraw.Draw(layer).rectangle(corners, fill=value)
    return layers


def test_an_object_is_cut_at_its_mask() -> None:
    cutout = cut_object(photo_of((20, 10, 70, 60)))
    assert cutout is not None
    assert {layer.size for layer in cutout} == {(50, 50)}
    assert cutout.photo.getcolors() == [(2500, RED)]
    assert cutout.mask.getextrema() == (255, 255)


def test_nothing_is_cut_from_an_empty_a_tiny_or_a_vague_mask() -> None:
    vague = photo_of((20, 10, 70, 60))
    ImageDraw.Draw(vague.mask).rectangle((0, 0, 99, 40), fill=128)
    for layers in (photo_of(None), photo_of((20, 10, 26, 20)), vague):
        assert cut_object(layers) is None


def test_a_teachers_soft_border_becomes_crisp() -> None:
    layers = photo_of((20, 10, 80, 70))
    ImageDraw.Draw(layers.mask).rectangle((20, 10, 79, 13), fill=128)
    cutout = cut_object(layers)
    assert cutout is not None
    assert cutout.mask.getpixel((0, 0)) == round(255 * (128 - 64) / 128)
    assert cutout.mask.getpixel((0, 10)) == 255


def test_a_background_has_nothing_salient() -> None:
    mask = photo_of((0, 0, 50, 80)).mask
    boxes = [box for _ in range(20) if (box := find_background(mask)) is not None]
    assert boxes
    for box in boxes:
        part = np.asarray(mask.crop(box))
        assert part.shape == (box[3] - box[1], box[2] - box[0])
        assert part.mean() <= MAX_SALIENT * 255
    assert len(set(boxes)) > 1


def test_an_object_that_fills_its_photo_leaves_no_background() -> None:
    assert find_background(photo_of((5, 5, 95, 75)).mask) is None


def test_photo_mask_and_regions_agree_after_pasting() -> None:
    cutout = cut_object(photo_of((20, 10, 70, 60)))
    assert cutout is not None
    sizes = []
    for _ in range(40):
        made = compose(photo_of(None), cutout, 96)
        assert {layer.size for layer in made} == {(96, 96)}
        mask, regions = np.asarray(made.mask), np.asarray(made.regions)
        red = np.asarray(made.photo)[..., 0]
        # The photo is the background where nothing is salient, and the object where it surely is.
        assert (red[mask == 0] == GREEN[0]).all()
        assert (red[mask == 255] > 200).all()
        assert set(np.unique(regions[mask < 128])) == {0}
        # Turning may leave a label out on the outermost pixels.
        assert (regions[mask == 255] == OBJECT_REGION + 1).mean() > 0.9
        sizes.append((mask >= 128).mean())
    assert max(sizes) > 10 * min(sizes)
    assert max(sizes) <= LENGTH[1] ** 2


def test_a_cutouts_own_transparency_blends_into_the_background() -> None:
    cutout = cut_object(photo_of((20, 10, 70, 60)))
    assert cutout is not None
    half = cutout._replace(mask=cutout.mask.point(lambda _level: 128))
    made = compose(photo_of(None), half, 96)
    mask, red = np.asarray(made.mask), np.asarray(made.photo)[..., 0]
    assert mask.max() == 128
    assert abs(int(red[mask == 128].max()) - RED[0] * 128 / 255) <= 1


def test_layers_without_regions_are_pasted_alike() -> None:
    made = []
    for regions in (True, False):
        torch.manual_seed(5)
        photo, background = photo_of((20, 10, 70, 60)), photo_of(None)
        if not regions:
            photo, background = photo._replace(regions=None), background._replace(regions=None)
        cutout = cut_object(photo)
        assert cutout is not None
        made.append(compose(background, cutout, 96))
    assert made[1].regions is None
    assert np.array_equal(made[0].photo, made[1].photo)
    assert np.array_equal(made[0].mask, made[1].mask)


def test_as_many_samples_are_pasted_as_asked(
    samples: Callable[..., Sequence[Sample]], data: TrainingData
) -> None:
    plain = samples(Augmentation())
    none = samples(Augmentation(copy_paste=0.0))
    always = samples(Augmentation(copy_paste=1.0))
    changed = 0
    for index in range(len(data.train)):
        assert torch.equal(plain[index].image, none[index].image)
        changed += not torch.equal(plain[index].image, always[index].image)
    assert changed >= len(data.train) - 2

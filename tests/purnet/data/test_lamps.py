"""Lamps light up what is around an object and never the mask."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from purnet.data import lamps
from purnet.data.dataset import Augmentation, SaliencyDataset
from purnet.data.lamps import add_lamps
from purnet.training.recipe import Recipe
from purnet.training.sources import TrainingData

SIDE = 96
OBJECT = (slice(None), slice(16, 80), slice(40, 56))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(5)


def scene(level: int = 120) -> tuple[Tensor, Tensor]:
    """A photo of one grey, and the mask of an upright bar in it."""
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    mask[OBJECT] = 255
    return torch.full((3, SIDE, SIDE), level, dtype=torch.uint8), mask


def test_a_lit_photo_is_a_photo_and_its_source_is_left_alone() -> None:
    photo, mask = scene()
    before = photo.clone(), mask.clone()
    lit = add_lamps(photo, mask)
    assert (lit.shape, lit.dtype) == (photo.shape, torch.uint8)
    assert torch.equal(photo, before[0])
    assert torch.equal(mask, before[1])


def test_by_day_lamps_only_add_light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lamps, "NIGHT", 0.0)
    photo, mask = scene()
    for _ in range(10):
        lit = add_lamps(photo, mask)
        assert (lit >= photo).all()
        # Each has a core that is burnt out in every channel.
        assert lit.amin(dim=0).max() > 240


def test_at_night_what_is_around_the_object_is_darker_than_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lamps, "NIGHT", 1.0)
    monkeypatch.setattr(lamps, "MOST_LAMPS", 1)
    monkeypatch.setattr(lamps, "LIGHT", (0.0, 0.0))
    monkeypatch.setattr(lamps, "OBJECT_GAMMA", (1.0, 1.0))
    photo, mask = scene()
    for _ in range(10):
        lit = add_lamps(photo, mask).float()
        assert lit[OBJECT].median() >= 120
        assert lit[:, :, :40].median() < 120


def test_at_night_things_show_near_a_lamp_in_its_light(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lamps, "NIGHT", 1.0)
    monkeypatch.setattr(lamps, "HALO_STRENGTH", (0.0, 0.0))
    photo, mask = scene()
    photo[:, ::2] = 60
    levels = []
    for light in (0.0, 2.0):
        monkeypatch.setattr(lamps, "LIGHT", (light, light))
        torch.manual_seed(5)
        levels.append(add_lamps(photo, mask).float())
    dark, light_up = (level[:, :, :40] for level in levels)
    assert (light_up >= dark).all()
    assert light_up.mean() > dark.mean() + 10
    # The things themselves, not a veil over them: the stripes differ more than in the dark.
    stripes = [(one[:, 1::2] - one[:, ::2]).median() for one in (dark, light_up)]
    assert stripes[1] > stripes[0]
    assert torch.equal(levels[0][OBJECT], levels[1][OBJECT])


def test_no_lamp_stands_on_the_object() -> None:
    salient = scene()[1][0].float() / 255
    places = [lamps._place(salient) for _ in range(200)]
    assert all(salient[place] == 0 for place in places)
    assert len(set(places)) > 100


def test_lamps_stand_near_the_object_as_often_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    salient = torch.zeros(SIDE, SIDE)
    salient[:20, :20] = 1
    beyond = []
    for near in (0.0, 1.0):
        monkeypatch.setattr(lamps, "NEAR", near)
        places = [lamps._place(salient) for _ in range(200)]
        assert all(salient[place] == 0 for place in places)
        beyond.append(sum(max(place) > SIDE / 2 for place in places))
    assert beyond[0] > 100
    assert beyond[1] == 0


def test_an_object_that_fills_its_photo_is_lit_all_the_same() -> None:
    photo, mask = scene()
    assert add_lamps(photo, torch.full_like(mask, 255)).shape == photo.shape


@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_photos_stay_in_range(level: int) -> None:
    photo, mask = scene(level)
    lit = [add_lamps(photo, mask) for _ in range(20)]
    # The cores of lamps are white on black; nothing wraps around to black on white.
    assert torch.stack(lit).amax(dim=(1, 2, 3)).min() > 240
    if level == 255:
        assert torch.stack([one[OBJECT] for one in lit]).min() == 255


def test_as_many_samples_are_lit_as_asked_and_their_masks_stay(
    samples: Callable[..., SaliencyDataset], data: TrainingData
) -> None:
    plain = samples(Augmentation())
    none = samples(Augmentation(lamps=0.0))
    always = samples(Augmentation(lamps=1.0))
    for index in range(len(data.train)):
        assert torch.equal(plain[index].image, none[index].image)
        assert not torch.equal(plain[index].image, always[index].image)
        assert torch.equal(plain[index].mask, always[index].mask)
        assert torch.equal(plain[index].regions, always[index].regions)


def test_a_recipe_without_lamps_reads_as_it_did_before_there_were_any(recipe: Recipe) -> None:
    assert "lamps" not in repr(recipe)
    assert "lamps=0.4" in repr(replace(recipe, augmentation=Augmentation(lamps=0.4)))

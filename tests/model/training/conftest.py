"""A small data set that is made, not found, and a recipe that fits it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from model.training.data import Augmentation, SaliencyDataset
from model.training.losses import LossWeights
from model.training.sources import TrainingData, load_data
from model.training.stages import Recipe, Source, Stage
from model.training.superpixels import Superpixels


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten photos of a bright disc on noise, with their masks, in `image/ + mask/`."""
    root = tmp_path_factory.mktemp("pristine")
    rng = np.random.default_rng(7)
    for part in ("image", "mask"):
        (root / part).mkdir(parents=True)
    for number in range(10):
        x, y = (int(v) for v in rng.integers(10, 50, 2))
        box = (x, y, x + 20, y + 16)
        photo = Image.fromarray(rng.integers(0, 90, (72, 88, 3), dtype=np.uint8))
        ImageDraw.Draw(photo).ellipse(box, fill=(230, 200, 60))
        mask = Image.new("L", photo.size)
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        photo.save(root / "image" / f"{number}.png")
        mask.save(root / "mask" / f"{number}.png")
    return root


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of `pristine` for a test to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "set"))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """Two short stages of the default network on 64-pixel squares."""
    first = Stage(
        attention=False,
        iterations=4,
        batch_size=2,
        image_size=64,
        learning_rate=1e-3,
        weights=LossWeights(saliency=1, structure=1, iou=1),
    )
    everything = LossWeights(saliency=1, structure=1, iou=1, promotion=1, object=1, error=1)
    return Recipe(
        variant="purnet-lite0",
        seed=3,
        epoch_samples=6,
        sources=[Source(folder=".")],
        stages=[first, replace(first, attention=True, weights=everything)],
        superpixels=Superpixels(count=12),
        ema=0.5,
        held_out_percent=20,
    )


@pytest.fixture(scope="module")
def data(pristine: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return load_data(recipe, pristine, tmp_path_factory.mktemp("cache"))


@pytest.fixture
def samples(data: TrainingData) -> Callable[..., SaliencyDataset]:
    """The training pairs as an augmentation varies them, 64 pixels a side.

    `regions` stand in for their superpixels.
    """

    def varied(
        augmentation: Augmentation, *, epoch: int = 0, regions: list[Path] | None = None
    ) -> SaliencyDataset:
        return SaliencyDataset(
            data.train,
            data.train_regions if regions is None else regions,
            size=64,
            augmentation=augmentation,
            seed=1,
            epoch=epoch,
        )

    return varied

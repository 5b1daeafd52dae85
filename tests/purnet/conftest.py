"""Weights, data sets made here, and the numeric reference where this machine has it."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny_network import TINY
from torch import Tensor

from purnet.data.augment import Augmentation
from purnet.data.dataset import SaliencyDataset, Sample, SampleKey
from purnet.data.superpixels import Superpixels
from purnet.network import released, variants
from purnet.training.recipe import LossWeights, Recipe, Source, Stage
from purnet.training.sources import TrainingData, load_data


def _draw(name: str, shape: list[int], kind: str) -> Tensor:
    """One tensor of the reference's weights, by its page's recipe."""
    if kind == "count":
        return torch.tensor(0)
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    draw = draw.astype(np.float32)
    values = {
        "conv": lambda: draw * float(np.sqrt(2 / np.prod(shape[1:]))),
        "deconv": lambda: draw * 0.1 + 1 / (shape[0] * 4),
        "bn_weight": lambda: 0.72 + 0.05 * draw,
        "bn_var": lambda: 1 + 0.1 * np.abs(draw),
        "prelu": lambda: 0.25 + 0.02 * draw,
        "bias": lambda: 0.1 * draw,
    }
    return torch.from_numpy(np.asarray(values[kind]()))


@dataclass(frozen=True)
class Reference:
    """What the authors' network computes for weights and an input that anybody can make."""

    folder: Path

    def tensors(self, stage: int) -> list[dict[str, Any]]:
        """Name, shape and kind of every tensor of `stage{1,3}.pth`."""
        found: list[dict[str, Any]] = json.loads(
            (self.folder / f"stage{stage}_state_dict.json").read_text()
        )
        return found

    def state(self, stage: int) -> dict[str, Tensor]:
        """A state dict in their layout."""
        return {t["name"]: _draw(t["name"], t["shape"], t["kind"]) for t in self.tensors(stage)}

    def outputs(self, stage: int) -> dict[str, Tensor]:
        """What their network returns, sigmoid or tanh applied."""
        with np.load(self.folder / f"stage{stage}_outputs.npz") as arrays:
            return {name: torch.from_numpy(array) for name, array in arrays.items()}

    @property
    def images(self) -> Tensor:
        """(2, 3, 320, 320) float32, as already normalised."""
        draw = np.random.default_rng(1000).standard_normal((2, 3, 320, 320))
        return torch.from_numpy(draw.astype(np.float32))


@pytest.fixture(scope="session")
def reference(require: Any) -> Reference:
    """From `PURNET_REFERENCE`, or `reference` beside the data folder `PURNET_DATA`."""
    data = os.environ.get("PURNET_DATA")
    folder = os.environ.get("PURNET_REFERENCE") or (data and Path(data).parent / "reference")
    require(folder, "set PURNET_REFERENCE or PURNET_DATA to find the numeric reference")
    found = Path(folder or "") / "purnet-resnet50"
    require(found.is_dir(), f"there is no {found}")
    return Reference(found)


State = dict[str, Tensor]


def _state(variant: str, *, attention: bool) -> State:
    torch.manual_seed(1)
    return {
        name: torch.rand_like(tensor) if tensor.is_floating_point() else tensor + 3
        for name, tensor in variants.build(variant, attention=attention).state_dict().items()
    }


@pytest.fixture(scope="session")
def random_state() -> Callable[..., State]:
    """Of a variant: tensors unlike those that a network starts with, statistics included."""
    return _state


@pytest.fixture(scope="module")
def lite() -> State:
    return _state("purnet-lite0", attention=True)


@pytest.fixture(scope="module")
def stage1() -> State:
    """A state dict of the authors' stage 1."""
    ours = _state(released.VARIANT, attention=False)
    return {released.theirs(k): v for k, v in ours.items() if not k.startswith("normalize.")}


@pytest.fixture
def pth(tmp_path: Path) -> Callable[[Any], Path]:
    """Saves anything as a file in the authors' format."""

    def write(content: Any) -> Path:
        path = tmp_path / "some.pth"
        torch.save(content, path)
        return path

    return write


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


@pytest.fixture(scope="session")
def tiny() -> Iterator[str]:
    """The name of a variant of a few thousand parameters, known as long as tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(variants.VARIANTS, TINY.name, TINY)
        yield TINY.name


@pytest.fixture(scope="module")
def recipe(tiny: str) -> Recipe:
    """Two short stages of a tiny network on 64-pixel squares."""
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
        variant=tiny,
        seed=3,
        epoch_samples=6,
        sources=[Source(folder=".")],
        stages=[first, first.model_copy(update={"attention": True, "weights": everything})],
        superpixels=Superpixels(count=12),
        ema=0.5,
        held_out_percent=20,
    )


@pytest.fixture(scope="module")
def data(pristine: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> TrainingData:
    return load_data(recipe, pristine, tmp_path_factory.mktemp("cache"))


@dataclass(frozen=True)
class Samples:
    """Samples of one epoch, 64 pixels a side."""

    dataset: SaliencyDataset
    epoch: int

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[SampleKey(self.epoch, index, index, 64)]


@pytest.fixture
def samples(data: TrainingData) -> Callable[..., Samples]:
    """The training pairs as an augmentation varies them.

    `regions` stand in for their superpixels.
    """

    def varied(
        augmentation: Augmentation, *, epoch: int = 0, regions: list[Path] | None = None
    ) -> Samples:
        dataset = SaliencyDataset(
            data.train, regions or data.regions, augmentation=augmentation, seed=1
        )
        return Samples(dataset, epoch)

    return varied


STEMS = ("good", "middling", "poor")
SIZE = (40, 30)


def square(left: int) -> Image.Image:
    """A white square of 12 pixels on black, `left` pixels from the left edge."""
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[9:21, left : left + 12] = 255
    return Image.fromarray(mask)


@dataclass(frozen=True)
class Disk:
    """A data set, and saved maps that hit its objects wholly, half and not at all."""

    dataset: Path
    predictions: Path

    @property
    def truth(self) -> Path:
        return self.dataset / "mask"


@pytest.fixture
def disk(tmp_path) -> Disk:
    disk = Disk(tmp_path / "squares", tmp_path / "maps")
    for folder in (disk.dataset / "image", disk.truth, disk.predictions):
        folder.mkdir(parents=True)
    for stem, left in zip(STEMS, (10, 16, 26), strict=True):
        Image.new("RGB", SIZE, (200, 80, 40)).save(disk.dataset / "image" / f"{stem}.jpg")
        square(10).save(disk.truth / f"{stem}.png")
        square(left).save(disk.predictions / f"{stem}.png")
    return disk

"""Photos, masks and superpixels, sampled and augmented: a pure function of seed, epoch and index.

Nothing here holds random state. The order of an epoch and the augmentation of a sample follow
from numbers alone, so an interrupted run goes on exactly where it was, with any number of loader
processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pydantic import Field
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from purnet.data.copy_paste import Layers, compose, cut_object, find_ground
from purnet.data.pairs import Pair, read_truth
from purnet.data.ranges import Fraction, NotNegative
from purnet.data.superpixels import IGNORE, load_regions
from purnet.data.terse import TerseRepr
from purnet.imaging import open_image

GROUND_PHOTOS = 8
"""Photos that are looked at for a composite's ground; about one in five has any."""


class Matte(tv_tensors.Image):  # type: ignore[misc]
    """A grey mask: moved with the photo and interpolated like it, never recoloured."""


class Regions(tv_tensors.Mask):  # type: ignore[misc]
    """Superpixel labels: moved with the photo, nearest neighbour."""


class Sample(NamedTuple):
    """One training example of side S; batched, each gains a leading dimension."""

    image: Tensor
    """(3, S, S) uint8 RGB."""
    mask: Tensor
    """(1, S, S) uint8, 255 = salient."""
    regions: Tensor
    """(1, S, S) int64 labels, `IGNORE` for pixels of no region."""
    number: Tensor
    """Which pair of its data set it is, int64."""


@dataclass(frozen=True, repr=False)
class Augmentation(TerseRepr):
    """How training samples are varied. The defaults vary nothing."""

    min_crop: Annotated[Fraction, Field(gt=0)] = 1.0
    """Least part of the photo's area that a random crop keeps."""
    flip: Fraction = 0.0
    """Probability of a mirror image."""
    rotate_deg: NotNegative = 0.0
    """Rotations are drawn from ± this many degrees."""
    brightness: NotNegative = 0.0
    contrast: NotNegative = 0.0
    saturation: NotNegative = 0.0
    hue: Annotated[NotNegative, Field(le=0.5)] = 0.0
    """A part of the colour circle; half of it either way is all of it."""
    grey: Fraction = 0.0
    """Probability of losing all colour."""
    composite: Fraction = field(default=0.0, repr=False)
    """Probability of laying the object on a part of another photo where nothing is salient."""

    def geometry(self, size: int, *, region_fill: int = IGNORE) -> v2.Transform:
        """What moves photo, mask and regions together, to (size, size).

        `region_fill` labels the pixels that a rotation fills in.
        """
        steps: list[Any] = []
        if self.rotate_deg:
            steps.append(
                v2.RandomRotation(
                    self.rotate_deg,
                    interpolation=v2.InterpolationMode.BILINEAR,
                    fill={tv_tensors.Image: 127, Matte: 0, Regions: region_fill},
                )
            )
        if self.min_crop < 1:
            steps.append(v2.RandomResizedCrop(size, scale=(self.min_crop, 1), ratio=(0.7, 1.4)))
        else:
            steps.append(v2.Resize((size, size)))
        if self.flip:
            steps.append(v2.RandomHorizontalFlip(self.flip))
        return v2.Compose(steps)

    def colour(self) -> v2.Transform:
        """What changes the photo alone."""
        steps: list[Any] = [
            v2.ColorJitter(self.brightness, self.contrast, self.saturation, self.hue)
        ]
        if self.grey:
            steps.append(v2.RandomGrayscale(self.grey))
        return v2.Compose(steps)


class SaliencyDataset(Dataset[Sample]):
    """Pairs with the paths of their superpixels, seen at one size in one epoch."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        regions: Sequence[Path],
        *,
        size: int,
        augmentation: Augmentation,
        seed: int,
        epoch: int,
        region_fill: int = IGNORE,
    ) -> None:
        self.pairs = pairs
        self.regions = regions
        self.seed = seed
        self.epoch = epoch
        self._size = size
        self._composite = augmentation.composite
        self._geometry = augmentation.geometry(size, region_fill=region_fill)
        self._colour = augmentation.colour()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        layers = self._layers(index)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(f"{self.seed}/{self.epoch}/{index}".encode()))
            composite = self._composed(layers) if self._composite else None
            tensors = _tensors(layers if composite is None else composite)
            if composite is None:
                tensors = self._geometry(tensors)
            photo = self._colour(tensors["image"])
        return Sample(
            image=photo.as_subclass(Tensor),
            mask=tensors["mask"].as_subclass(Tensor),
            regions=tensors["regions"].as_subclass(Tensor).long(),
            number=torch.tensor(index),
        )

    def _mask(self, index: int) -> Image.Image:
        return Image.fromarray(read_truth(self.pairs[index].mask))

    def _layers(self, index: int, mask: Image.Image | None = None) -> Layers:
        """The layers of a pair; `mask` is its own, where it was read before."""
        photo = open_image(self.pairs[index].image)
        # Pillow keeps 16-bit labels whole only in its 32-bit mode.
        labels = Image.fromarray(load_regions(self.regions[index]).astype(np.int32))
        return Layers(
            photo=photo,
            mask=self._mask(index) if mask is None else mask,
            regions=labels.resize(photo.size, Image.Resampling.NEAREST),
        )

    def _composed(self, layers: Layers) -> Layers | None:
        """A composite, as often as the augmentation says and these photos allow; else None."""
        if torch.rand(()) >= self._composite:
            return None
        cutout = cut_object(layers)
        if cutout is None:
            return None
        for other in torch.randint(len(self.pairs), (GROUND_PHOTOS,)).tolist():
            mask = self._mask(other)
            box = find_ground(mask)
            if box is not None:
                # Coloured apart from the ground, as objects and grounds are lit in all ways.
                cutout = cutout._replace(photo=self._colour(cutout.photo))
                return compose(self._layers(other, mask).crop(box), cutout, self._size)
        return None


def _tensors(layers: Layers) -> dict[str, Tensor]:
    """The layers as torchvision tells them apart: each (C, H, W)."""

    def plane(layer: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(layer)).unsqueeze(0)

    return {
        "image": tv_tensors.Image(layers.photo),
        "mask": Matte(plane(layers.mask)),
        "regions": Regions(plane(layers.regions)),
    }


def epoch_order(
    sizes: Sequence[int], shares: Sequence[float], *, samples: int, seed: int, epoch: int
) -> list[int]:
    """Indices of one epoch over several sets laid end to end, in random order.

    Set k holds `sizes[k]` items and gives `shares[k]` of the samples (shares need not sum to 1).
    Within a set no item comes again before all others have come.
    """
    rng = np.random.default_rng([seed, epoch])
    # Rounding the running sum, not each share, makes the counts add up to `samples`.
    bounds = np.rint(np.cumsum([0.0, *shares]) / sum(shares) * samples).astype(int)
    counts = [int(count) for count in np.diff(bounds)]
    chosen: list[Any] = []
    start = 0
    for size, count in zip(sizes, counts, strict=True):
        rounds = -(-count // size)
        draws = np.concatenate([rng.permutation(size) for _ in range(rounds)] or [np.empty(0, int)])
        chosen.append(start + draws[:count])
        start += size
    return [int(index) for index in rng.permutation(np.concatenate(chosen))]


def is_held_out(stem: str, *, percent: float) -> bool:
    """Whether a pair belongs to the validation split: decided by its name, so for ever the same."""
    return zlib.crc32(stem.encode()) % 10_000 < percent * 100

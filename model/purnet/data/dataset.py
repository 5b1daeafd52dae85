"""Photos, masks and superpixels as samples: a pure function of the seed and of the sample's key.

Nothing here holds random state. The order of an epoch and the augmentation of a sample follow
from numbers alone, so an interrupted run goes on exactly where it was, with any number of loader
processes.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from purnet.data.augment import Augmentation, Regions, SoftMask
from purnet.data.copy_paste import Layers, compose, cut_object, find_background
from purnet.data.pairs import Pair, read_truth
from purnet.data.superpixels import IGNORE, load_regions
from purnet.imaging import open_image

BACKGROUND_PHOTOS = 8
"""Photos that are looked at for a background to paste on; about one in five has any."""


class SampleKey(NamedTuple):
    """Which sample: what a sampler gives and a data set is asked for."""

    epoch: int
    """Of all stages: one number for each epoch of each stage."""
    position: int
    """In the epoch. A pair that comes again in an epoch is varied anew."""
    pair: int
    """Index of the pair in its data set."""
    size: int
    """Side S of the sample, in pixels."""


class Sample(NamedTuple):
    """One training example of side S; batched, each gains a leading dimension."""

    image: Tensor
    """(3, S, S) uint8 RGB."""
    mask: Tensor
    """(1, S, S) uint8, 255 = salient."""
    regions: Tensor
    """(1, S, S) int64 labels, `IGNORE` for pixels of no region; (0, S, S) where the data set has
    no superpixels."""
    pair: Tensor
    """Index of its pair in the data set, int64."""


class SaliencyDataset(Dataset[Sample]):
    """Pairs, with the paths of their superpixels where a loss needs these."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        regions: Sequence[Path] | None,
        *,
        augmentation: Augmentation,
        seed: int,
        region_fill: int = IGNORE,
    ) -> None:
        self.pairs = pairs
        self.regions = regions
        self.augmentation = augmentation
        self.seed = seed
        self.region_fill = region_fill
        self._colour = augmentation.colour()

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: SampleKey) -> Sample:
        layers = self._layers(key.pair)
        with torch.random.fork_rng(devices=[]):
            # Not `torch.manual_seed`, which seeds CUDA devices too.
            torch.default_generator.manual_seed(
                zlib.crc32(f"{self.seed}/{key.epoch}/{key.position}".encode())
            )
            pasted = self._pasted(layers, key.size)
            tensors = _tensors(layers if pasted is None else pasted)
            if pasted is None:
                geometry = self.augmentation.geometry(key.size, region_fill=self.region_fill)
                tensors = geometry(tensors)
            # Of an image of Pillow, which takes half the time that a tensor takes.
            photo = self._colour(to_pil_image(tensors["image"]))
        regions = tensors.get("regions")
        return Sample(
            image=pil_to_tensor(photo),
            mask=tensors["mask"].as_subclass(Tensor),
            regions=torch.empty((0, key.size, key.size), dtype=torch.long)
            if regions is None
            else regions.as_subclass(Tensor).long(),
            pair=torch.tensor(key.pair),
        )

    def _mask(self, index: int) -> Image.Image:
        return Image.fromarray(read_truth(self.pairs[index].mask))

    def _layers(self, index: int, mask: Image.Image | None = None) -> Layers:
        """The layers of a pair; `mask` is its own, where it was read before."""
        photo = open_image(self.pairs[index].image)
        labels = None
        if self.regions is not None:
            # Pillow keeps 16-bit labels whole only in its 32-bit mode.
            labels = Image.fromarray(load_regions(self.regions[index]).astype(np.int32))
            labels = labels.resize(photo.size, Image.Resampling.NEAREST)
        return Layers(photo=photo, mask=self._mask(index) if mask is None else mask, regions=labels)

    def _pasted(self, layers: Layers, size: int) -> Layers | None:
        """The object on another photo, as often as the augmentation says and the photos allow."""
        probability = self.augmentation.copy_paste
        if not probability or torch.rand(()) >= probability:
            return None
        cutout = cut_object(layers)
        if cutout is None:
            return None
        for other in torch.randint(len(self.pairs), (BACKGROUND_PHOTOS,)).tolist():
            mask = self._mask(other)
            box = find_background(mask)
            if box is not None:
                # Coloured apart from its background, as objects are lit in all ways.
                cutout = cutout._replace(photo=self._colour(cutout.photo))
                return compose(self._layers(other, mask).crop(box), cutout, size)
        return None


def _tensors(layers: Layers) -> dict[str, Tensor]:
    """The layers in the types that torchvision moves by: each (C, H, W)."""

    def plane(layer: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(layer)).unsqueeze(0)

    tensors = {"image": tv_tensors.Image(layers.photo), "mask": SoftMask(plane(layers.mask))}
    if layers.regions is not None:
        tensors["regions"] = Regions(plane(layers.regions))
    return tensors


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
        orders = [rng.permutation(size) for _ in range(rounds)] or [np.empty(0, int)]
        chosen.append(start + np.concatenate(orders)[:count])
        start += size
    return [int(index) for index in rng.permutation(np.concatenate(chosen))]

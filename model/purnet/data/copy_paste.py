"""Copy-paste: the object of one photo, laid on a part of another where nothing is salient.

Photos of large, centred objects are easy to come by; small, thin and off-centre ones are not.
Pasting makes the second kind out of the first: the object may be a tenth as wide as it is long,
and its mask is as exact as the cut. (Ghiasi et al., CVPR 2021.)

Every function draws from torch's global generator, as torchvision's transforms do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

SURE = (64, 192)
"""Grey levels of a mask below which a pixel is surely background, above which surely object."""
MIN_OBJECT = 0.02
"""Part of its photo an object must cover to be worth cutting out: less is too few pixels."""
MAX_UNSURE = 0.3
"""Most unsure pixels per sure object pixel: a vague mask would cut a vague object."""
MAX_SALIENT = 0.01
"""Mean of the mask, in [0, 1], up to which a part of a photo counts as having nothing salient."""
BACKGROUND_TRIES = 24
"""Parts of one photo that are looked at."""
MIN_BACKGROUND = 0.3
"""Least side of a background, relative to its photo's: smaller would be a blur when enlarged."""
LENGTH = (0.3, 1.0)
"""Longer side of the object's box, relative to the sample's side."""
SLIMNESS = 0.08
"""Least shorter side of that box, relative to its longer one."""
TURN_DEG = 20.0


Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, the last two outside."""


class Layers(NamedTuple):
    """What a sample is made of: images of one size."""

    photo: Image.Image
    """Mode RGB."""
    mask: Image.Image
    """Mode L, 255 = salient."""
    regions: Image.Image | None
    """Mode I, superpixel labels from 0; None where no loss needs them."""

    def crop(self, box: Box) -> Layers:
        """The part inside a box."""
        return self._each(lambda layer, _resampling: layer.crop(box))

    def resize(self, size: tuple[int, int]) -> Layers:
        """To (width, height): bilinear, labels by nearest neighbour."""
        return self._each(lambda layer, resampling: layer.resize(size, resampling))

    def rotate(self, degrees: float) -> Layers:
        """Counter-clockwise, enlarged to hold the corners; what comes in new is not salient."""
        return self._each(lambda layer, resampling: layer.rotate(degrees, resampling, expand=True))

    def _each(self, change: Callable[[Image.Image, Image.Resampling], Image.Image]) -> Layers:
        bilinear, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
        return Layers(
            change(self.photo, bilinear),
            change(self.mask, bilinear),
            None if self.regions is None else change(self.regions, nearest),
        )


def cut_object(layers: Layers) -> Layers | None:
    """The box around the object, its mask made crisp; None without an object that can be cut."""
    mask = np.asarray(layers.mask)
    low, high = SURE
    sure = mask >= high
    if sure.mean() < MIN_OBJECT or ((mask > low) & ~sure).sum() > MAX_UNSURE * sure.sum():
        return None
    crisp = layers.mask.point(lambda level: round(255 * (level - low) / (high - low)))
    box = crisp.getbbox()
    return None if box is None else layers._replace(mask=crisp).crop(box)


def find_background(mask: Image.Image) -> Box | None:
    """A random part of a photo where nothing is salient; None when a few tries find none."""
    # Sums over rectangles from one corner: a part's mean costs four look-ups.
    sums = np.pad(np.asarray(mask, dtype=np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    width, height = mask.size
    for _ in range(BACKGROUND_TRIES):
        w = round(width * _uniform(MIN_BACKGROUND, 1))
        h = round(height * _uniform(MIN_BACKGROUND, 1))
        left = round(_uniform(0, width - w))
        top = round(_uniform(0, height - h))
        right, bottom = left + w, top + h
        total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        if total <= MAX_SALIENT * 255 * w * h:
            return left, top, right, bottom
    return None


def compose(background: Layers, cutout: Layers, size: int) -> Layers:
    """Paste an object on a background, at a random place, size, slimness and angle: (size, size).

    Regions of the object get labels of their own, beyond the background's.
    """
    background = background.resize((size, size))
    long = size * _uniform(*LENGTH)
    short = long * math.exp(_uniform(math.log(SLIMNESS), 0))
    width, height = (long, short) if _uniform(0, 1) < 0.5 else (short, long)
    placed = cutout.resize((max(1, round(width)), max(1, round(height))))
    placed = placed.rotate(_uniform(-TURN_DEG, TURN_DEG))
    # Up to a quarter of the box may lie outside: objects touch the border in real photos too.
    left, top = (round(_uniform(-side / 4, size - side * 3 / 4)) for side in placed.photo.size)
    corner = (left, top)
    photo, mask = background.photo.copy(), Image.new("L", (size, size))
    photo.paste(placed.photo, corner, placed.mask)
    mask.paste(placed.mask, corner)
    if background.regions is None or placed.regions is None:
        return Layers(photo, mask, None)
    regions = background.regions.copy()
    beyond = int(np.asarray(regions).max()) + 1
    own = Image.fromarray(np.asarray(placed.regions) + np.int32(beyond))
    regions.paste(own, corner, placed.mask.point(lambda level: 255 if level >= 128 else 0))
    return Layers(photo, mask, regions)


def _uniform(low: float, high: float) -> float:
    """Evenly between two numbers."""
    return low + (high - low) * torch.rand(()).item()

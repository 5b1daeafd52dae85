"""Composites: the object of one photo, laid on a part of another where nothing is salient.

Photos of large, centred objects are easy to come by; small, thin and off-centre ones are not. A
composite makes the second kind out of the first: its object may be a tenth as wide as it is long,
and its mask is as exact as the cut. (Copy-paste augmentation: Ghiasi et al., CVPR 2021.)

Every function draws from torch's global generator, as torchvision's transforms do.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from purnet.data.draws import log_uniform, uniform

SURE = (64, 192)
"""Grey levels of a mask below which a pixel is surely ground, above which surely object."""
LEAST_OBJECT = 0.02
"""Part of its photo an object must cover to be worth cutting out: less is too few pixels."""
MOST_UNSURE = 0.3
"""Most unsure pixels per sure object pixel: a vague mask would cut a vague object."""
MOST_SALIENT = 0.01
"""Mean of the mask, in [0, 1], up to which a part of a photo counts as having nothing salient."""
GROUND_TRIES = 24
"""Parts of one photo that are looked at."""
LEAST_GROUND = 0.3
"""Least side of a ground, relative to its photo's: smaller would be a blur when enlarged."""
LENGTH = (0.3, 1.0)
"""Longer side of the object's box, relative to the composite's side."""
SLIMNESS = 0.08
"""Least shorter side of that box, relative to its longer one."""
TURN_DEG = 20.0


Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, the last two outside."""


class Layers(NamedTuple):
    """What a sample is made of: three images of one size."""

    photo: Image.Image
    """Mode RGB."""
    mask: Image.Image
    """Mode L, 255 = salient."""
    regions: Image.Image
    """Mode I, superpixel labels from 0."""

    def crop(self, box: Box) -> Layers:
        """The part inside a box."""
        return Layers(*(layer.crop(box) for layer in self))

    def resize(self, size: tuple[int, int]) -> Layers:
        """To (width, height): bilinear, labels by nearest neighbour."""
        bilinear, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
        return Layers(
            self.photo.resize(size, bilinear),
            self.mask.resize(size, bilinear),
            self.regions.resize(size, nearest),
        )

    def rotate(self, degrees: float) -> Layers:
        """Counter-clockwise, enlarged to hold the corners; what comes in new is not salient."""
        bilinear, nearest = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
        return Layers(
            self.photo.rotate(degrees, bilinear, expand=True),
            self.mask.rotate(degrees, bilinear, expand=True),
            self.regions.rotate(degrees, nearest, expand=True),
        )


def cut_object(layers: Layers) -> Layers | None:
    """The box around the object, its mask made crisp; None without an object that can be cut."""
    mask = np.asarray(layers.mask)
    low, high = SURE
    sure = mask >= high
    if sure.mean() < LEAST_OBJECT or ((mask > low) & ~sure).sum() > MOST_UNSURE * sure.sum():
        return None
    crisp = layers.mask.point(lambda level: round(255 * (level - low) / (high - low)))
    box = crisp.getbbox()
    return None if box is None else layers._replace(mask=crisp).crop(box)


def find_ground(mask: Image.Image) -> Box | None:
    """A random part of a photo where nothing is salient; None when a few tries find none."""
    # Sums over rectangles from one corner: a part's mean costs four look-ups.
    sums = np.pad(np.asarray(mask, dtype=np.int64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    width, height = mask.size
    for _ in range(GROUND_TRIES):
        w = round(width * uniform(LEAST_GROUND, 1))
        h = round(height * uniform(LEAST_GROUND, 1))
        left = round(uniform(0, width - w))
        top = round(uniform(0, height - h))
        right, bottom = left + w, top + h
        total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        if total <= MOST_SALIENT * 255 * w * h:
            return left, top, right, bottom
    return None


def compose(ground: Layers, cutout: Layers, size: int) -> Layers:
    """Lay an object on a ground, at a random place, size, slimness and angle: (size, size).

    Regions of the object get labels of their own, beyond the ground's.
    """
    ground = ground.resize((size, size))
    long = size * uniform(*LENGTH)
    short = long * log_uniform(SLIMNESS, 1)
    width, height = (long, short) if uniform(0, 1) < 0.5 else (short, long)
    placed = cutout.resize((max(1, round(width)), max(1, round(height))))
    placed = placed.rotate(uniform(-TURN_DEG, TURN_DEG))
    # Up to a quarter of the box may lie outside: objects touch the border in real photos too.
    left, top = (round(uniform(-side / 4, size - side * 3 / 4)) for side in placed.photo.size)
    corner = (left, top)
    photo, mask = ground.photo.copy(), Image.new("L", (size, size))
    photo.paste(placed.photo, corner, placed.mask)
    mask.paste(placed.mask, corner)
    regions = ground.regions.copy()
    beyond = int(np.asarray(regions).max()) + 1
    own = Image.fromarray(np.asarray(placed.regions) + np.int32(beyond))
    regions.paste(own, corner, placed.mask.point(lambda level: 255 if level >= 128 else 0))
    return Layers(photo, mask, regions)

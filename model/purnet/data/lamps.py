"""Night and lamps: a photo darkened around its object and lit by lamps that are not salient.

Few training photos were taken at night, and in those the bright thing is the object. Here it need
not be: lamps, their halos and the rays that a lens draws around them are light added to the photo,
and the mask stays as it was.

Every function draws from torch's global generator, as torchvision's transforms do.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from purnet.data.draws import log_uniform, uniform

MOST_LAMPS = 8
NIGHT = 0.7
"""Probability that the surroundings are darkened; else the lamps burn by day."""
GROUND_GAMMA = (1.5, 3.5)
"""Exponents that darken what is around the object at night."""
OBJECT_GAMMA = (0.6, 1.6)
"""And those of the object: floodlit to dusky."""
CORE = (0.004, 0.03)
"""Radius of a lamp, relative to the photo's side."""
HALO = (0.03, 0.3)
"""How far its halo reaches, likewise: there it is down to 1/e."""
HALO_STRENGTH = (0.05, 0.6)
DAYLIGHT = 1.2
"""The most light that lamps give, relative to that in the photo."""
LIGHT = (0.0, 2.0)
"""How brightly a lamp lights what stands beside it, relative to daylight."""
RAYS = (4, 6, 8, 12)
"""How many rays a lens draws around a lamp, one of these numbers; half of the lamps have none."""
NEAR = 0.5
"""Probability that a lamp stands near the object; else it stands anywhere."""
NEARNESS = 0.08
"""How far that is: the standard deviation, relative to the photo's side."""
OUTSIDE_TRIES = 16
"""Random places that are looked at for one beside the object."""


def add_lamps(photo: Tensor, mask: Tensor) -> Tensor:
    """Light up the surroundings of an object.

    Args:
        photo: (3, S, S) uint8 RGB.
        mask: (1, S, S) uint8, 255 = salient: no lamp stands there, though a halo may reach it.

    Returns:
        (3, S, S) uint8.
    """
    lit = photo.float() / 255
    salient = mask.float() / 255
    lamps = [_lamp(salient[0]) for _ in range(1 + int(torch.randint(MOST_LAMPS, ())))]
    if uniform(0, 1) < NIGHT:
        # At most half of a channel's light goes, and blue is kept, as dusk keeps it.
        tint = torch.tensor([uniform(0.5, 1), uniform(0.5, 1), 1.0]).view(3, 1, 1)
        ground = lit ** uniform(*GROUND_GAMMA) * tint
        # Near a lamp things show in its light.
        ground = torch.minimum(lit * DAYLIGHT, ground + lit * sum(lamp.light for lamp in lamps))
        lit = (ground + (lit ** uniform(*OBJECT_GAMMA) - ground) * salient).clamp(max=1)
    for lamp in lamps:
        # Light adds up in the dark and saturates in the bright.
        lit = 1 - (1 - lit) * (1 - lamp.seen)
    return (lit * 255).round().to(torch.uint8)


class _Lamp(NamedTuple):
    seen: Tensor
    """What the camera sees of it: core, rays and halo. (3, S, S) in [0, 1]."""
    light: Tensor
    """What falls on the things around it. (3, S, S) from 0."""


def _lamp(salient: Tensor) -> _Lamp:
    height, width = salient.shape
    side = max(height, width)
    y, x = _place(salient)
    dy = (torch.arange(height) - y).view(-1, 1) / side
    dx = (torch.arange(width) - x) / side
    distance = (dy.square() + dx.square()).sqrt()
    warmth = uniform(0, 1)
    colour = torch.tensor([1.0, 0.95 - 0.35 * warmth, 1 - 0.8 * warmth]).view(3, 1, 1)
    if uniform(0, 1) < 0.2:
        colour = colour.flip(0)
    # Light on the ground lies flat.
    squash = log_uniform(1, 4)
    reach = ((dy * squash).square() + dx.square()).sqrt() / log_uniform(*HALO)
    glow = uniform(*HALO_STRENGTH) * (-reach).exp()
    core = log_uniform(*CORE)
    if uniform(0, 1) < 0.5:
        rays = RAYS[int(torch.randint(len(RAYS), ()))]
        angle = torch.atan2(dy, dx) + uniform(0, 2 * math.pi)
        # The distance from the nearest ray's line, so that rays are as thin far out as close by.
        beside = distance * torch.sin(angle * rays / 2).abs() * 2 / rays
        fading = (-distance / (core * uniform(2, 8))).exp()
        glow = torch.maximum(glow, (-beside / (core * 0.3)).exp() * fading)
    burnt_out = (1.5 * (-(distance / core).square()).exp()).clamp(max=1)
    return _Lamp(
        seen=torch.maximum(glow * colour, burnt_out),
        light=uniform(*LIGHT) * (-reach / uniform(1, 3)).exp() * colour,
    )


def _place(salient: Tensor) -> tuple[int, int]:
    """A random (row, column), beside the object where a few tries find one."""
    height, width = salient.shape
    # Those who light an object put their lamps at its foot.
    near = (salient > 0.5).nonzero() if uniform(0, 1) < NEAR else salient.new_empty(0, 2)
    row = column = 0
    for _ in range(OUTSIDE_TRIES):
        if len(near):
            there = near[int(torch.randint(len(near), ()))]
            y, x = (there + torch.randn(2) * NEARNESS * max(height, width)).round().int().tolist()
            row, column = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        else:
            row, column = int(torch.randint(height, ())), int(torch.randint(width, ()))
        if salient[row, column] < 0.25:
            break
    return row, column

"""What pyramids and branches are made of: convolutions, upsampling, pyramids and heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Block = Callable[[int, int, int], nn.Module]
"""Makes a convolution with its batch normalisation and activation: (in, out, kernel) -> module."""


def conv_block(cin: int, cout: int, kernel: int) -> nn.Sequential:
    """Dense convolution, batch normalisation, PReLU with one slope, as released."""
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, padding=kernel // 2), nn.BatchNorm2d(cout), nn.PReLU()
    )


def separable_block(cin: int, cout: int, kernel: int) -> nn.Sequential:
    """Depthwise then pointwise convolution, each batch-normalised; 1x1 is pointwise alone."""
    depthwise: list[nn.Module] = []
    if kernel > 1:
        depthwise = [
            nn.Conv2d(cin, cin, kernel, padding=kernel // 2, groups=cin, bias=False),
            nn.BatchNorm2d(cin),
        ]
    return nn.Sequential(
        *depthwise,
        nn.Conv2d(cin, cout, 1, bias=False),
        nn.BatchNorm2d(cout),
        nn.ReLU(inplace=True),
    )


class BilinearUpsample(nn.Module):
    """Upsample by a whole factor, without weights."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, factor * H, factor * W)."""
        return F.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=False)


def transposed_upsample(channels: int, factor: int) -> nn.ConvTranspose2d:
    """Upsample by a learned transposed convolution that starts as bilinear interpolation.

    Kernel 2 * factor, no bias. Padding factor / 2 crops the output to factor times the input, just
    as the released code does after the fact.
    """
    layer = nn.ConvTranspose2d(
        channels, channels, 2 * factor, factor, padding=factor // 2, bias=False
    )
    ramp = 1 - (torch.arange(2 * factor) - (factor - 0.5)).abs() / factor
    weight = torch.zeros_like(layer.weight)
    for channel in range(channels):
        weight[channel, channel] = torch.outer(ramp, ramp)
    layer.weight.data.copy_(weight)
    return layer


class Pyramid(nn.Module):
    """A feature pyramid network (Lin et al., CVPR 2017): lateral projections, summed top-down."""

    def __init__(
        self,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        width: int,
        block: Block,
        upsample: Callable[[int, int], nn.Module],
    ) -> None:
        super().__init__()
        self.laterals = nn.ModuleList(block(cin, width, 1) for cin in channels)
        # The top-down pathway: descents[i] takes level i + 1 to level i.
        self.descents = nn.ModuleList()
        for fine, coarse in pairwise(strides):
            layers = [block(width, width, 3)]
            if coarse != fine:
                layers.append(upsample(width, coarse // fine))
            self.descents.append(nn.Sequential(*layers))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Backbone features -> per level (N, width, H / stride, W / stride)."""
        sums = [self.laterals[-1](features[-1])]
        for level in reversed(range(len(self.descents))):
            sums.append(self.laterals[level](features[level]) + self.descents[level](sums[-1]))
        return sums[::-1]


class Head(nn.Module):
    """Features of a level -> one map of logits."""

    def __init__(self, *, width: int, blocks: Sequence[nn.Module], upsample: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.logits = nn.Conv2d(width, 1, 1)
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, h, w) -> (N, 1, h', w'), h' and w' as the variant's upsampling makes them."""
        y: Tensor = self.upsample(self.logits(self.blocks(x)))
        return y


def resize_logits(logits: Tensor, size: Sequence[int]) -> Tensor:
    """(N, 1, h, w) -> (N, 1, *size), bilinear; returned as they are where sizes agree."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


@torch.no_grad()
def scale_output(layer: nn.Conv2d, factor: float) -> None:
    """Multiply what a convolution returns, by its weights and bias."""
    for parameter in layer.parameters():
        parameter.mul_(factor)

"""The network: three pyramids over one backbone, and per level three branches.

    image -> backbone -+-> promotion pyramid ----> promotion branch:     attention A
                       +-> rectification pyramid -> rectification branch: attention R
                       +-> purification pyramid --> purification branch:  saliency, from A and R

Levels are lists, finest first. Li, Su, Xia, Ma, Tian: Salient Object Detection with Purificatory
Mechanism and Structural Similarity Loss, IEEE TIP 2021.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purnet.network.backbones import Backbone

Block = Callable[[int, int, int], nn.Module]
"""Makes a convolution with its normalisation and activation: (in, out, kernel) -> module."""

Attentions = tuple[Tensor, Tensor]
"""Promotion attention A and rectification attention R of one level, each (N, C, h, w)."""


# --- building blocks ---------------------------------------------------------------------------


def conv_block(cin: int, cout: int, kernel: int) -> nn.Sequential:
    """Dense convolution, batch normalisation, PReLU with one slope, as released."""
    return nn.Sequential(
        nn.Conv2d(cin, cout, kernel, padding=kernel // 2), nn.BatchNorm2d(cout), nn.PReLU()
    )


def separable_block(cin: int, cout: int, kernel: int) -> nn.Sequential:
    """Depthwise then pointwise convolution, each normalised; 1x1 is pointwise alone."""
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
    """Every level is projected, then sums run from the coarsest level to the finest."""

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
        # descents[i] takes level i + 1 to level i.
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


# --- attentions --------------------------------------------------------------------------------


class SoftmaxPromotion(nn.Module):
    """The released promotion attention: softmax over positions times softmax over channels.

    It has no weights and sums to 1 over all positions and channels together, so 1 + A is all but
    the identity; kept for released weights.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> attention of that shape, in [0, 1]."""
        spatial = x.flatten(2).softmax(dim=2).view_as(x)
        channel = x.mean(dim=(2, 3), keepdim=True).softmax(dim=1)
        attention: Tensor = spatial * channel
        return attention


class GatePromotion(nn.Module):
    """Promotion attention that acts: a gate over positions times a gate over channels, learnt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(width, 1, 1)
        self.channel = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> attention of that shape, in (0, 1)."""
        context = x.mean(dim=(2, 3), keepdim=True)
        attention: Tensor = self.spatial(x).sigmoid() * self.channel(context).sigmoid()
        return attention


# --- branches ----------------------------------------------------------------------------------


class PromotionBranch(nn.Module):
    """Promotion attention of one level, and the head that trains it to find objects."""

    def __init__(self, *, attention: nn.Module, head: Head) -> None:
        super().__init__()
        self.attention = attention
        self.head = head

    def attend(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> promotion attention A of that shape, in [0, 1]."""
        attention: Tensor = self.attention(x)
        return attention

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w) -> attention A (N, C, h, w), promotion logits (N, 1, h', w')."""
        attention = self.attend(x)
        return attention, self.head(x * (1 + attention))


class RectificationBranch(nn.Module):
    """Rectification attention of one level: tanh of error features minus object features."""

    def __init__(
        self,
        *,
        object_features: nn.Module,
        error_features: nn.Module,
        object_head: Head,
        error_head: Head,
    ) -> None:
        super().__init__()
        self.object_features = object_features
        self.error_features = error_features
        self.object_head = object_head
        self.error_head = error_head

    def attend(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> rectification attention R of that shape, in (-1, 1)."""
        residual: Tensor = self.error_features(x) - self.object_features(x)
        return residual.tanh()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C, h, w) -> attention R (N, C, h, w), object logits, error logits (N, 1, h', w').

        Object logits go through a sigmoid, error logits through tanh.
        """
        objects = self.object_features(x)
        residual = self.error_features(x) - objects
        attention = residual.tanh()
        return attention, self.object_head(objects * (1 + attention)), self.error_head(residual)


class PurificationBranch(nn.Module):
    """Saliency of one level from its features, promoted by A and rectified by R."""

    def __init__(self, *, refine: nn.Module | None, head: Head) -> None:
        super().__init__()
        self.refine = refine
        self.head = head

    def purify(self, x: Tensor, attentions: Attentions | None) -> Tensor:
        """(N, C, h, w), (A, R) of that shape -> purified features of that shape."""
        if self.refine is not None and attentions is not None:
            promotion, rectification = attentions
            x = self.refine(x * (1 + promotion)) * (1 + rectification)
        return x

    def forward(self, x: Tensor, attentions: Attentions | None) -> Tensor:
        """(N, C, h, w), (A, R) of that shape -> saliency logits (N, 1, h', w')."""
        logits: Tensor = self.head(self.purify(x, attentions))
        return logits


class EdgeRefinement(nn.Module):
    """A last step at stride 2: the finest level's saliency, corrected by the backbone's stem.

    It starts as bilinear upsampling.
    """

    def __init__(self, *, stem_channels: int, width: int, channels: int = 16) -> None:
        super().__init__()
        self.stem = separable_block(stem_channels, channels, 1)
        self.features = separable_block(width, channels, 1)
        self.mix = separable_block(2 * channels + 1, channels, 3)
        self.logits = nn.Conv2d(channels, 1, 1)
        nn.init.zeros_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, stem: Tensor, features: Tensor, logits: Tensor) -> Tensor:
        """Stem features (N, C', 2h, 2w), level-1 features (N, C, h, w) and logits (N, 1, h, w).

        Returns logits (N, 1, 2h, 2w).
        """
        size = stem.shape[-2:]
        logits = resize_logits(logits, size)
        fine = F.interpolate(
            self.features(features), size=size, mode="bilinear", align_corners=False
        )
        correction: Tensor = self.logits(self.mix(torch.cat([self.stem(stem), fine, logits], 1)))
        return logits + correction


# --- subnetworks -------------------------------------------------------------------------------


class AttentionSubnetwork(nn.Module):
    """Promotion or rectification: a pyramid and one branch a level."""

    def __init__(
        self, *, pyramid: Pyramid, branches: Sequence[PromotionBranch | RectificationBranch]
    ) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.branches = nn.ModuleList(branches)

    def forward(self, features: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
        """Backbone features -> per level what its branch returns, the attention first."""
        sums = self.pyramid(features)
        return [branch(x) for branch, x in zip(self.branches, sums, strict=True)]

    def finest(self, features: Sequence[Tensor]) -> Tensor:
        """Backbone features -> the finest level's attention alone, (N, C, h, w)."""
        branch = cast("PromotionBranch | RectificationBranch", self.branches[0])
        return branch.attend(self.pyramid(features)[0])


class PurificationSubnetwork(nn.Module):
    """Purification: a pyramid, one branch a level and, in some variants, a last step for edges."""

    def __init__(
        self,
        *,
        pyramid: Pyramid,
        branches: Sequence[PurificationBranch],
        edges: EdgeRefinement | None = None,
    ) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.branches = nn.ModuleList(branches)
        self.edges = edges

    def forward(
        self,
        features: Sequence[Tensor],
        attentions: Sequence[Attentions | None],
        stem: Tensor | None = None,
    ) -> list[Tensor]:
        """Backbone features, attentions of the finest levels -> saliency logits of those levels.

        As many levels are computed as attentions are given; None stands for a level without. With
        `edges` and stem features the refined logits come before them.
        """
        sums = self.pyramid(features)
        branches = [cast("PurificationBranch", branch) for branch in self.branches]
        purified = [
            branch.purify(x, attention)
            for branch, x, attention in zip(branches, sums, attentions, strict=False)
        ]
        logits: list[Tensor] = [
            branch.head(x) for branch, x in zip(branches, purified, strict=False)
        ]
        if self.edges is not None and stem is not None:
            logits.insert(0, self.edges(stem, purified[0], logits[0]))
        return logits


# --- network -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PurNetOutput:
    """Logits of every level, finest first, each (N, 1, h', w') at its head's own resolution.

    Saliency, promotion and object logits go through a sigmoid, error logits through tanh. Without
    attentions (training stage 1) only `saliency` has entries. Where the variant refines edges,
    `saliency` has one more than there are levels: the refined one, before all others.
    """

    saliency: list[Tensor]
    promotion: list[Tensor] = field(default_factory=list)
    object: list[Tensor] = field(default_factory=list)
    error: list[Tensor] = field(default_factory=list)


class Normalize(nn.Module):
    """(x - mean) / std over channels, the constants being buffers."""

    mean: Tensor
    std: Tensor

    def __init__(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """RGB in [0, 1] (N, 3, H, W) -> normalised, same shape."""
        return (images - self.mean) / self.std


class PurNet(nn.Module):
    """PurNet from its parts. Build a named one with `purnet.network.variants.build`.

    Images are float RGB in [0, 1], (N, 3, H, W), not clipped; H and W are multiples of the
    coarsest stride, else `ValueError`. Without attentions it is the network of training stage 1.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        purification: PurificationSubnetwork,
        promotion: AttentionSubnetwork | None = None,
        rectification: AttentionSubnetwork | None = None,
    ) -> None:
        super().__init__()
        self.normalize: nn.Module = Normalize(mean=backbone.mean, std=backbone.std)
        self.backbone = backbone
        self.purification = purification
        self.promotion = promotion
        self.rectification = rectification

    @property
    def stride(self) -> int:
        """Image sides must be multiples of this many pixels."""
        return self.backbone.strides[-1]

    def forward(self, images: Tensor, *, isolate: bool = False) -> PurNetOutput:
        """Every output of every level, for training.

        `isolate=True` keeps each loss to its own parts, as the paper trains: promotion and
        rectification see detached backbone features, purification sees detached attentions.
        """

        def cut(x: Tensor) -> Tensor:
            return x.detach() if isolate else x

        features, stem = self._features(images)
        if self.promotion is None or self.rectification is None:
            return PurNetOutput(saliency=self.purification(features, [None] * len(features), stem))
        shared = [cut(x) for x in features]
        promoted = self.promotion(shared)
        rectified = self.rectification(shared)
        attentions = [(cut(p[0]), cut(r[0])) for p, r in zip(promoted, rectified, strict=True)]
        return PurNetOutput(
            saliency=self.purification(features, attentions, stem),
            promotion=[logits for _, logits in promoted],
            object=[logits for _, logits, _ in rectified],
            error=[logits for _, _, logits in rectified],
        )

    def predict(self, images: Tensor) -> Tensor:
        """The finest saliency logits at image size, (N, 1, H, W): sigmoid gives the saliency map.

        Computes only what they depend on. Equal, bit for bit, to `forward(images).saliency[0]`
        brought to image size by `resize_logits`.
        """
        features, stem = self._features(images)
        attentions: Attentions | None = None
        if self.promotion is not None and self.rectification is not None:
            attentions = self.promotion.finest(features), self.rectification.finest(features)
        logits = self.purification(features, [attentions], stem)[0]
        return resize_logits(logits, images.shape[-2:])

    def _features(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Backbone features and, for a variant that refines edges, those of its stem."""
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"image sides must be multiples of {self.stride}, got {height} x {width}"
            )
        normalized = self.normalize(images)
        if self.purification.edges is None:
            features: list[Tensor] = self.backbone(normalized)
            return features, None
        stem: Tensor = cast("nn.Module", self.backbone.stem)(normalized)
        return self.backbone.from_stem(stem), stem


def resize_logits(logits: Tensor, size: Sequence[int]) -> Tensor:
    """(N, 1, h, w) -> (N, 1, *size), bilinear; returned as they are where sizes agree."""
    if tuple(logits.shape[-2:]) == tuple(size):
        return logits
    return F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)

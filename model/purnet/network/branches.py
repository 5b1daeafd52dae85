"""The parts of one level: attentions, the branches they serve, and the last step for edges."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from purnet.network.blocks import Head, resize_logits, scale_output, separable_block

Attentions = tuple[Tensor, Tensor]
"""Promotion attention A and rectification attention R of one level, each (N, C, h, w)."""


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


class GlobalContext(nn.Module):
    """Self-attention over the positions of the coarsest features, added to them.

    A position sees the whole photo: convolutions alone see a part of it. Multi-head attention
    (Vaswani et al., NeurIPS 2017) as a residual block for images (Wang et al., Non-local Neural
    Networks, CVPR 2018). It starts as the identity. Time and memory grow with the square of the
    number of positions.
    """

    def __init__(self, channels: int, *, heads: int = 4, head_width: int = 32) -> None:
        super().__init__()
        self.heads = heads
        width = heads * head_width
        self.project = nn.Sequential(
            nn.Conv2d(channels, 3 * width, 1, bias=False), nn.BatchNorm2d(3 * width)
        )
        self.merge = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(self.merge.weight)
        nn.init.zeros_(self.merge.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) -> the same shape."""
        batch, _, height, width = x.shape
        # Per head (N, heads, h * w, head_width).
        query, key, value = (
            part.reshape(batch, self.heads, -1, height * width).transpose(2, 3)
            for part in self.project(x).chunk(3, dim=1)
        )
        seen = F.scaled_dot_product_attention(query, key, value)
        merged: Tensor = self.merge(seen.transpose(2, 3).reshape(batch, -1, height, width))
        return x + merged


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
        """Stem features (N, C', 2h, 2w), finest-level features (N, C, h, w), logits (N, 1, h, w).

        Returns logits (N, 1, 2h, 2w).
        """
        size = stem.shape[-2:]
        logits = resize_logits(logits, size)
        fine = F.interpolate(
            self.features(features), size=size, mode="bilinear", align_corners=False
        )
        correction: Tensor = self.logits(self.mix(torch.cat([self.stem(stem), fine, logits], 1)))
        return logits + correction

    @torch.no_grad()
    def scale_logits(self, factor: float) -> None:
        """Multiply what `forward` returns, given that the logits it gets are multiplied alike."""
        depthwise = cast("nn.Conv2d", self.mix[0])
        depthwise.weight[-1].div_(factor)  # of the channel that is those logits
        scale_output(self.logits, factor)

"""The network: three pyramids over one backbone, and per level three branches.

    image -> backbone -+-> promotion pyramid ----> promotion branch:     attention A
                       +-> rectification pyramid -> rectification branch: attention R
                       +-> purification pyramid --> purification branch:  saliency, from A and R

Some variants let the coarsest features of the backbone see the whole photo before the pyramids, and
sharpen the finest map by the first features. Levels are lists, finest first.

Li, Su, Xia, Ma, Tian: Salient Object Detection with Purificatory Mechanism and Structural
Similarity Loss, IEEE TIP 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from purnet.network.backbones import Backbone
from purnet.network.blocks import Pyramid, resize_logits, scale_output
from purnet.network.branches import (
    Attentions,
    EdgeRefinement,
    GlobalContext,
    PromotionBranch,
    PurificationBranch,
    RectificationBranch,
)


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
        context: GlobalContext | None = None,
    ) -> None:
        super().__init__()
        self.normalize: nn.Module = Normalize(mean=backbone.mean, std=backbone.std)
        self.backbone = backbone
        self.context = context
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

    def scale_logits(self, factor: float) -> None:
        """Multiply the finest saliency logits by a factor, in place.

        Above 1 it makes saliency maps less grey. The order of logits stays the same, that of pixels
        nearly so: their levels are rounded to 8 bits.
        """
        branch = cast("PurificationBranch", self.purification.branches[0])
        scale_output(branch.head.logits, factor)
        if self.purification.edges is not None:
            self.purification.edges.scale_logits(factor)

    def incompatible_keys(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Names of tensors that are missing or do not match this network, sorted.

        Empty where `load_state_dict(tensors, strict=False)` leaves out nothing but what a smaller
        network lacks: attentions, what uses them, and the refinement of edges.
        """
        purification = self.purification
        optional = [
            self.promotion,
            self.rectification,
            purification.edges,
            self.context,
            *(branch.refine for branch in purification.branches),
        ]
        may_lack = {
            f"{path}.{name}"
            for path, module in self.named_modules()
            if module in optional
            for name in module.state_dict()
        }
        own = self.state_dict()
        missing = own.keys() - tensors.keys() - may_lack
        unlike = {n for n, x in tensors.items() if n not in own or x.shape != own[n].shape}
        return sorted(missing | unlike)

    def _features(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Backbone features and, for a variant that refines edges, those of its stem."""
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ValueError(
                f"image sides must be multiples of {self.stride}, got {height} x {width}"
            )
        normalized = self.normalize(images)
        stem: Tensor | None = None
        if self.purification.edges is None:
            features: list[Tensor] = self.backbone(normalized)
        else:
            stem = cast("nn.Module", self.backbone.stem)(normalized)
            features = self.backbone.from_stem(stem)
        if self.context is not None:
            features[-1] = self.context(features[-1])
        return features, stem

"""Any timm model as a backbone, through the extra `timm`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from purnet.errors import ModelError
from purnet.network.backbones import IMAGENET_MEAN, IMAGENET_STD, Backbone

PROBE_SIDE = 320
"""Side in pixels of the image that a timm model is tried with: what prediction feeds it."""


class TimmBackbone(Backbone):
    """Any timm model that can give feature maps, by its name.

    Raises `ModelError` where timm is missing, the name is unknown, or the model cannot give feature
    maps (N, C, H, W) of a 320-pixel square at strides that divide each other.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.net: Any = _timm_model(name, features_only=True)
        info = self.net.feature_info
        self.channels = tuple(info.channels())
        self.strides = tuple(info.reduction())
        self.mean = tuple(self.net.pretrained_cfg.get("mean", IMAGENET_MEAN))
        self.std = tuple(self.net.pretrained_cfg.get("std", IMAGENET_STD))
        if any(coarse % fine for fine, coarse in pairwise(self.strides)):
            raise ModelError(f"timm's {name!r} has strides {self.strides}: not multiples in order")
        self._probe()

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`."""
        features: list[Tensor] = self.net(images)
        return features

    def classifier(self) -> nn.Module:
        """See `Backbone.classifier`."""
        whole: nn.Module = _timm_model(self.name)
        return whole

    @torch.no_grad()
    def _probe(self) -> None:
        """Check that features have the shapes the model declares; some are channels-last."""
        self.net.eval()
        try:
            shapes = [
                tuple(x.shape[1:]) for x in self.net(torch.zeros(1, 3, PROBE_SIDE, PROBE_SIDE))
            ]
        except _TIMM_REFUSALS as error:
            raise ModelError(
                f"timm's {self.name!r} takes no image of {PROBE_SIDE}x{PROBE_SIDE} pixels: {error}"
            ) from error
        self.net.train()
        sides = [PROBE_SIDE // stride for stride in self.strides]
        expected = [(c, side, side) for c, side in zip(self.channels, sides, strict=True)]
        if shapes != expected:
            raise ModelError(
                f"timm's {self.name!r} gives features of shapes {shapes} as (C, H, W); "
                f"pyramids need {expected}"
            )


_TIMM_REFUSALS = (
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)  # its models have no common error


def _timm_model(name: str, **options: Any) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ModelError(
            f"timm/{name} needs the extra `timm`: pip install 'purnet-serve[timm]'"
        ) from error
    if not timm.is_model(name):
        raise ModelError(f"timm knows no model named {name!r}")
    try:
        return timm.create_model(name, pretrained=False, **options)
    except _TIMM_REFUSALS as error:
        raise ModelError(f"timm's {name!r} cannot give feature maps: {error}") from error

